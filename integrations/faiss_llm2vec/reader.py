"""What any number of store objects may do at once: search, get, count, verify."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

import numpy as np

from faiss_llm2vec import access, inputs, models
from faiss_llm2vec.contents import Contents
from faiss_llm2vec.diversity import diverse
from faiss_llm2vec.filters import Ids
from faiss_llm2vec.kinds import Vectors
from faiss_llm2vec.records import Hit, Record
from st_llm2vec.errors import InvalidInputError, StoreError
from st_llm2vec.types import Encoder

Self = TypeVar("Self", bound="StoreReader")  # typing has it from Python 3.11 on


class StoreReader:
    """An open store, as `FaissStore` shows it to those who do not change it."""

    _stated: str | None = None  # fingerprint, by the caller

    def __init__(self, path: Path, model: Encoder | None, *, mmap: bool, recover: bool) -> None:
        self.path = access.absolute(path)  # whatever the working folder becomes
        self.model = model
        self._recover = recover
        self._access = access.Access(self.path, mmap=mmap, recover=recover)

    @property
    def _contents(self) -> Contents:
        return self._access.contents

    @property
    def missing(self) -> tuple[str, ...]:
        """What `open(recover=True)` could not read; empty for a sound store."""
        return self._contents.missing

    def refresh(self) -> None:
        """Goes on to what the store holds now; else, a store object goes on seeing what it opened.

        A store object that stays open for long should be refreshed now and then: as long as one sees an old state,
        the write-ahead log has to keep what was written since.

        Raises:
            StoreMismatchError: Another store is in this place now, made with another model.
            StoreCorruptedError: A file is damaged or missing. What was seen before can still be read.
        """
        if self._recover:
            raise StoreError(f"{self.path} was opened with recover=True; open it again to see what it holds now.")
        self._access.refresh(lambda manifest: models.check_same(self.path, manifest, self.model, self._stated))

    def close(self) -> None:
        """Frees the files and the writer's lock. Everything acknowledged is on the disk already."""
        self._access.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        with_vectors: bool = False,
    ) -> list[Record]:
        """The documents with these ids, in their order, or all that match a filter, oldest first, or both if both.

        Ids that do not exist are passed over; `limit` stops after so many.
        """
        limit = None if limit is None else inputs.whole("limit", limit)
        if ids is None and where is None:
            raise InvalidInputError("get() needs ids= or where=; get(where={}) returns every document.")
        with self._access.reading():
            docids = self._contents.selected(ids, where)[:limit]
            rows = self._contents.database.rows(docids)
            return [
                Record(id=row.id, text=row.text, metadata=row.labels, vector=vector)
                for row, vector in zip(rows, self._vectors_or_none(docids, with_vectors), strict=True)
            ]

    def vectors(self, ids: Sequence[str] | None = None, where: Mapping[str, Any] | None = None) -> Vectors:
        """The stored vectors of the documents that `get` returns, in the same order: (documents, dimension) float32."""
        if ids is None and where is None:
            raise InvalidInputError("vectors() needs ids= or where=; vectors(where={}) returns every vector.")
        with self._access.reading():
            return self._contents.vectors(np.array(self._contents.selected(ids, where), dtype=np.int64))

    @overload
    def search(
        self,
        query: str,
        k: int = 10,
        *,
        where: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
        mmr: float | None = None,
        fetch_k: int | None = None,
        effort: float = 1.0,
        with_vectors: bool = False,
    ) -> list[Hit]: ...
    @overload
    def search(
        self,
        query: list[str],
        k: int = 10,
        *,
        where: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
        mmr: float | None = None,
        fetch_k: int | None = None,
        effort: float = 1.0,
        with_vectors: bool = False,
    ) -> list[list[Hit]]: ...
    @overload
    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        where: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
        mmr: float | None = None,
        fetch_k: int | None = None,
        effort: float = 1.0,
        with_vectors: bool = False,
    ) -> Any: ...
    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        where: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
        mmr: float | None = None,
        fetch_k: int | None = None,
        effort: float = 1.0,
        with_vectors: bool = False,
    ) -> Any:
        """The best documents for a query, best first; fewer than `k` where fewer match.

        Args:
            query: a text or a vector (dimension,), or a batch of them: a list of texts or an array (n, dimension).
            where: only documents that match this filter (filters.py) are returned.
            score_threshold: only hits with at least this score are returned.
            mmr: from 1.0 (relevance only) to 0.0 (diversity only): pick `k` of the `fetch_k` best by maximal marginal
                relevance over cosine similarities. Hits then come in the order they were picked.
            fetch_k: candidates for `mmr`, max(20, 4 k) by default.
            effort: how many times wider than usual an index is searched: more recall, more time. Flat is exact anyway.
            with_vectors: give each hit its vector.

        Returns:
            A list of hits for a single query, a list of such lists for a batch.
        """
        k = wanted = inputs.whole("k", k)
        fetch_k = None if fetch_k is None else inputs.whole("fetch_k", fetch_k)
        if mmr is not None:
            mmr = inputs.real("mmr", mmr, lambda m: 0 <= m <= 1, "a number from 0.0 (diversity) to 1.0 (relevance)")
            wanted = max(k, fetch_k or max(20, 4 * k))
        lowest = -np.inf
        if score_threshold is not None:
            lowest = inputs.real("score_threshold", score_threshold, lambda s: not np.isnan(s), "a number")
        effort = inputs.real("effort", effort, lambda e: 0 < e < np.inf, "a positive number (2.0: twice as wide)")
        effort = min(effort, 1e6)  # as wide as an index is; more would leave the range of FAISS's integers
        queries, single = self._queries(query)
        with self._access.reading():
            among = None if where is None else self._contents.matching(where)
            scores, found = self._contents.nearest(queries, wanted, among, effort)
            results = []
            for vector, row_scores, row_found in zip(queries, scores, found, strict=True):
                keep = np.flatnonzero((row_found >= 0) & (row_scores >= lowest))
                if mmr is not None:
                    keep = keep[diverse(vector, self._contents.vectors(row_found[keep]), k, mmr)]
                results.append(self._hits(row_found[keep], row_scores[keep], with_vectors))
        return results[0] if single else results

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many documents there are, or match a filter."""
        with self._access.reading():
            return self._contents.manifest.count if where is None else len(self._contents.matching(where))

    def __len__(self) -> int:
        return self.count()

    def verify(self) -> list[str]:
        """Reads every byte of the store and returns what is wrong with it; an empty list means that it is sound."""
        with self._access.reading():
            return list(self.missing) if self._recover else self._contents.damage()

    def stats(self) -> dict[str, Any]:
        """What the store is and what it costs; bytes in memory are those of the vectors that are not mapped."""
        with self._access.reading():
            manifest, segments = self._contents.manifest, self._contents.segments
            alive = sum(int(segment.alive.sum()) for segment in segments)
            vector_bytes = sum(file.size for entry in manifest.segments for file in entry.files)
            return {
                "path": str(self.path),
                "kind": manifest.kind,
                "metric": manifest.metric,
                "dimension": manifest.dimension,
                "model_dimension": manifest.model_dimension,
                "fingerprint": manifest.fingerprint,
                "prompts": manifest.prompts,
                "pooling": manifest.pooling,
                "documents": manifest.count,
                "deleted_rows": sum(entry.rows for entry in manifest.segments) - alive,
                "segments": len(manifest.segments),
                "generation": manifest.generation,
                "bytes_on_disk": vector_bytes + sum(file.stat().st_size for file in self.path.glob("store.db*")),
                "bytes_in_memory": sum(segment.in_memory for segment in segments),
                "writer": self._access.writes,
            }

    # -- inside --------------------------------------------------------------------------------------------------------

    def _queries(self, query: Any) -> tuple[Vectors, bool]:
        """Returns the vectors of the queries, (n, dimension) float32, and whether there is a single one."""
        texts = [query] if isinstance(query, str) else query
        if isinstance(texts, (list, tuple)) and texts and isinstance(texts[0], str):
            for text in texts:
                inputs.check_query(text)
            encoder = self._encoder("search for a text")
            return self._checked(encoder.encode_query(list(texts)), len(texts)), isinstance(query, str)
        vectors = inputs.floats(query)
        if vectors.size == 0 and len(vectors) == 0:
            return np.empty((0, self._contents.manifest.dimension or 0), dtype=np.float32), False
        single = vectors.ndim == 1
        if single:
            vectors = vectors[np.newaxis]
        return self._checked(vectors, len(vectors)), single

    def _hits(self, docids: Ids, scores: Vectors, with_vectors: bool) -> list[Hit]:
        rows = self._contents.database.rows(docids.tolist())
        vectors = self._vectors_or_none(docids, with_vectors)
        return [
            Hit(id=row.id, text=row.text, score=float(score), metadata=row.labels, vector=vector)
            for row, score, vector in zip(rows, scores, vectors, strict=True)
        ]

    def _vectors_or_none(self, docids: Sequence[int] | Ids, wanted: bool) -> Iterable[Vectors | None]:
        return self._contents.vectors(np.array(docids, dtype=np.int64)) if wanted else [None] * len(docids)

    def _encoder(self, purpose: str) -> Encoder:
        if self.model is None:
            raise InvalidInputError(
                f"to {purpose}, the store needs its model: FaissStore.open({str(self.path)!r}, model). Without one, "
                "give vectors."
            )
        return self.model

    def _encoded(self, texts: list[str], show_progress: bool) -> Any:
        options: dict[str, Any] = {"show_progress_bar": True} if show_progress else {}
        return self._encoder("encode texts").encode_document(texts, **options)

    def _checked(self, vectors: Any, rows: int) -> Vectors:
        return inputs.checked_vectors(vectors, rows, self._contents.manifest)
