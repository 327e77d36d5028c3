"""How a store is read: documents by id or filter, their vectors, and searches; each sees the contents of one moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from faiss_llm2vec import inputs, inspection
from faiss_llm2vec.access import Access
from faiss_llm2vec.changing import Writer
from faiss_llm2vec.kinds import Vectors
from faiss_llm2vec.models import StoreModel
from faiss_llm2vec.records import Hit, Record
from faiss_llm2vec.searching import Search, vectors_or_none
from st_llm2vec.errors import InvalidInputError


class Reader:
    """What `FaissStore` reads of its contents, with its model."""

    def __init__(self, access: Access, model: StoreModel, writer: Writer) -> None:
        self._access = access
        self._contents = access.contents
        self._model = model
        self._writer = writer  # makes the word index at the first search by words

    def get(
        self, ids: Sequence[str] | None, where: Mapping[str, Any] | None, limit: int | None, with_vectors: bool
    ) -> list[Record]:
        """Documents, with their vectors if they are wanted."""
        limit = None if limit is None else inputs.whole("limit", limit)
        inputs.check_chosen("get", ids, where)
        with self._access.reading():
            docids = self._contents.selected(ids, where)[:limit]
            rows = self._contents.database.rows(docids)
            vectors = vectors_or_none(self._contents, docids, with_vectors)
            return [
                Record(id=row.id, text=row.text, metadata=row.labels, vector=vector)
                for row, vector in zip(rows, vectors, strict=True)
            ]

    def scan(self, size: int) -> Iterator[list[Record]]:
        """Every document there is at the first step."""
        with self._access.reading():
            docids = self._contents.docids().tolist()
        for start in range(0, len(docids), size):
            with self._access.reading():
                rows = self._contents.database.rows(docids[start : start + size])
            yield [Record(id=row.id, text=row.text, metadata=row.labels) for row in rows]

    def vectors(self, ids: Sequence[str] | None, where: Mapping[str, Any] | None) -> Vectors:
        """Vectors (documents, dimension)."""
        inputs.check_chosen("vectors", ids, where)
        with self._access.reading():
            return self._contents.vectors(np.array(self._contents.selected(ids, where), dtype=np.int64))

    def count(self, where: Mapping[str, Any] | None) -> int:
        """How many documents there are, or match."""
        with self._access.reading():
            return self._contents.manifest.count if where is None else len(self._contents.matching(where))

    def verify(self) -> list[str]:
        """What is wrong with the store."""
        with self._access.reading():
            return list(self._contents.missing) if self._access.recovers else self._contents.damage()

    def stats(self) -> dict[str, Any]:
        """What the store is and what it costs."""
        with self._access.reading():
            return {**inspection.stats(self._contents), "writer": self._access.writes}

    def search(self, search: Search, queries: list[str] | Vectors, vectors: Any) -> list[list[Hit]]:
        """The hits of each query.

        Args:
            queries: Texts, or vectors (n, dimension).
            vectors: (n, dimension), of queries that are texts; None encodes them.
        """
        texts = queries if isinstance(queries, list) else []
        if not texts and len(queries) and (vectors is not None or search.by_words or search.rerank is not None):
            raise InvalidInputError(
                f"mode={search.mode!r}, rerank and vectors go with texts: give the query as a text, and its vector."
            )
        if search.by_words:
            self._writer.index_words()
        if vectors is None and search.by_vector:
            vectors = queries
            if texts:
                vectors = self._model.open(self._contents.manifest, "search for a text").encode_query(texts)
        with self._access.reading():
            return search.hits(self._contents, texts, vectors)
