"""A document as a row of the database, with a checksum of its content; what it holds is checked where it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from faiss_llm2vec import filters
from faiss_llm2vec.filters import FieldRows
from st_llm2vec.errors import InvalidInputError, StoreCorruptedError


class Row(NamedTuple):
    """One document as stored."""

    docid: int
    id: str
    text: str
    metadata: str  # JSON object
    checksum: int

    @property
    def sound(self) -> bool:
        # Damage can make a column NULL, a number or bytes.
        texts = (self.id, self.text, self.metadata)
        return all(isinstance(text, str) for text in texts) and self.checksum == _integer(row_digest(*self[:4]))

    @property
    def labels(self) -> dict[str, Any]:
        """The metadata.

        Raises:
            StoreCorruptedError: It is not flat, or no JSON object at all.
        """
        return self._labels_and_fields()[0]

    @property
    def fields(self) -> FieldRows:
        """What filters see of the metadata."""
        return self._labels_and_fields()[1]

    def _labels_and_fields(self) -> tuple[dict[str, Any], FieldRows]:
        try:
            labels = json.loads(self.metadata)
            if isinstance(labels, dict):
                return labels, tuple(filters.field_rows(labels))
            reason = f"it is a {type(labels).__name__}"
        except RecursionError:
            reason = "it is nested too deeply"
        except (ValueError, InvalidInputError) as error:
            reason = str(error)
        raise StoreCorruptedError(f"metadata of document {self.id!r} must be a flat JSON object: {reason:.300}")


def with_docids(docids: Iterable[int], fields: Iterable[FieldRows]) -> list[tuple[str, str, Any, int]]:
    """Rows of the table `fields`, sorted, so that inserting walks the primary key instead of jumping about in it."""
    return sorted(
        (field, type, value, docid)
        for docid, entries in zip(docids, fields, strict=True)
        for field, type, value in entries
    )


def row_digest(docid: int, id: str, text: str, metadata: str) -> bytes:
    content = f"{docid} {len(id)} {len(text)} {id}{text}{metadata}"
    return hashlib.blake2b(content.encode(), digest_size=8).digest()


def checksum(*values: object) -> int:
    """64 bits over `values`: with the lengths in front, no two lists of values are the same text."""
    parts = [value if isinstance(value, str) else repr(value) for value in values]
    content = f"{[*map(len, parts)]}{''.join(parts)}"
    return _integer(hashlib.blake2b(content.encode(), digest_size=8).digest())


def _integer(digest: bytes) -> int:
    """64 bits of BLAKE2b, as SQLite's signed integer."""
    return int.from_bytes(digest, "little", signed=True)
