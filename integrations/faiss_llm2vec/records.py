"""Documents on their way into a store, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from faiss_llm2vec.filters import FieldRows


@dataclass(slots=True)  # frozen, it would take three times as long to make
class Document:
    """A document on its way in."""

    id: str
    text: str
    metadata: str  # JSON
    fields: FieldRows  # what filters see of the metadata


@dataclass(frozen=True)
class Documents:
    """Documents in columns, made one by one when iterated over.

    Objects that stay alive make Python look for cycles, and it then visits every number in the caller's lists of
    floats. Strings, and tuples of them, do not count.
    """

    ids: list[str]
    texts: list[str]
    metadata: list[str]
    fields: list[FieldRows]

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Documents:
        given = list(documents)
        return cls(
            ids=[document.id for document in given],
            texts=[document.text for document in given],
            metadata=[document.metadata for document in given],
            fields=[document.fields for document in given],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Document]:
        return map(Document, self.ids, self.texts, self.metadata, self.fields)


@dataclass(frozen=True)
class Record:
    """A document as it was stored.

    `vector`, (dimension,) float32, is there if it was asked for: `get(..., with_vectors=True)`.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    vector: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Hit:
    """A document found by a search.

    `score`, higher is better: cosine similarity in [-1, 1] (metric "cosine"), inner product ("dot"), or the negative
    Euclidean distance ("l2", 0 is identical); BM25 in mode "bm25", a sum of reciprocal ranks in mode "hybrid", and what
    the cross-encoder says where one reranks. `vector`, (dimension,) float32, is there if it was asked for.
    """

    id: str
    text: str
    score: float
    metadata: dict[str, Any]
    vector: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """What JSON can say of it; `vector` only where there is one."""
        told = {name: getattr(self, name) for name in ("id", "text", "score", "metadata")}
        return told if self.vector is None else {**told, "vector": self.vector.tolist()}
