"""FaissStore: add, change, delete, filter and search documents in one folder that survives crashes.

    store.db              texts, metadata and the manifest (SQLite); database.py says why a change is all or nothing
    segments/*.faiss      vectors, in stock FAISS files that never change once written
    lock                  held by the one writer; the system frees it when the process ends, however it ends

A store starts as a reader of what it opened, and becomes the writer at its first change. The folder can be copied or
moved whenever nothing writes to it. It needs a local file system: SQLite's write-ahead log needs one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, overload

import numpy as np

from faiss_llm2vec import inputs, lock
from faiss_llm2vec.database import Database, Manifest, Row
from faiss_llm2vec.filters import Ids
from faiss_llm2vec.inputs import Document
from faiss_llm2vec.kinds import INDEX_FROM, KINDS, METRICS
from faiss_llm2vec.segments import Entry, Segment, Vectors, damage, sync_folder
from st_llm2vec.errors import (
    InvalidInputError,
    StoreCorruptedError,
    StoreError,
    StoreExistsError,
    StoreMismatchError,
)
from st_llm2vec.types import Encoder

# Each change writes a segment; from this many small ones on, the next change merges them into its own.
_MOST_SMALL_SEGMENTS = 16


@dataclass(frozen=True)
class Record:
    """A document as it was stored."""

    id: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Hit:
    """A document found by a search.

    `score`, higher is better: cosine similarity in [-1, 1] (metric "cosine"), inner product ("dot"), or the negative
    Euclidean distance ("l2", 0 is identical).
    """

    id: str
    text: str
    score: float
    metadata: dict[str, Any]


class FaissStore:
    """Documents and their vectors in a folder. Make one with `create` or `open`; use it in a `with` block.

    One store object may be shared by threads. Writing is for one store object at a time, on the whole machine.
    """

    def __init__(self, path: Path, model: Encoder | None, *, mmap: bool, recover: bool) -> None:
        self.path = path
        self.model = model
        self.missing: tuple[str, ...] = ()
        """What `open(recover=True)` could not read; empty for a sound store."""
        self._mmap = mmap
        self._recover = recover
        self._mutex = threading.RLock()
        self._lock: IO[bytes] | None = None
        self._closed = False
        self._database, self._manifest, self._segments = self._read()

    # -- opening and closing -------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | Path, model: Encoder | str | None, *, kind: str = "flat", metric: str = "cosine"
    ) -> FaissStore:
        """Makes a store in a folder that does not exist yet, or is empty, and opens it.

        Args:
            model: encoder of texts, the name of one for `st_llm2vec.load`, or None for a store of bare vectors.
            kind: a row of `faiss_llm2vec.kinds.KINDS`: "flat" and small stores are exact, the others trade recall for
                speed or memory.
            metric: "cosine" (vectors are normalised), "dot" or "l2"; see `Hit` for the scores.

        Raises:
            StoreExistsError: There is something at `path`; it was left as it is.
        """
        path = Path(path)
        for name, value, table in (("kind", kind, KINDS), ("metric", metric, METRICS)):
            if value not in table:
                raise InvalidInputError(f"{name}={value!r} is unknown. Choose one of {', '.join(table)}.")
        exists = StoreExistsError(
            f"{path} exists already and was left as it is. Open it with FaissStore.open({str(path)!r}, model), or "
            "choose another path."
        )
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise exists
        model = inputs.loaded_model(model)
        manifest = Manifest(
            kind=kind,
            metric=metric,
            dimension=inputs.dimension_of(model),
            fingerprint=inputs.fingerprint_of(model),
            prompts=inputs.prompts_of(model),
        )
        # Built under another name and then renamed: at no moment is there half a store at `path`.
        draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        try:
            (draft / "segments").mkdir(parents=True)
            Database.create(draft / "store.db", manifest)
            sync_folder(draft)
            if path.exists():
                path.rmdir()  # empty, as seen above; rmdir refuses if it no longer is
            os.rename(draft, path)
            sync_folder(path.parent)
        except OSError as error:
            if path.exists():
                raise exists from error
            raise StoreError(f"cannot make a store in {path.parent}: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return cls.open(path, model)

    @classmethod
    def open(
        cls, path: str | Path, model: Encoder | str | None = None, *, recover: bool = False, mmap: bool = False
    ) -> FaissStore:
        """Opens a store as it was after the last change that was acknowledged.

        Opening compares the checksum of the manifest, the set of documents, SQLite's structure and the sha256 of each
        segment. The content of a document is compared when it is read, and by `verify`.

        Args:
            model: the encoder the store was made with, its name, or None to search by vector only.
            recover: serve what is sound of a damaged store, read-only, and list the rest in `missing`. The folder is
                left as it is. Documents whose vectors are lost can still be read by `get`, and encoded again.
            mmap: map the vectors instead of reading them, and compare only the sizes of the files: opens at once.

        Raises:
            StoreNotFoundError: There is no store.
            StoreCorruptedError: A file is damaged or missing; the message names it.
            StoreMismatchError: The store was made with another model, or has another dimension.
        """
        store = cls(Path(path), inputs.loaded_model(model), mmap=mmap, recover=recover)
        try:
            store._check_model()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Frees the files and the writer's lock. Everything acknowledged is on the disk already."""
        with self._mutex:
            if not self._closed:
                self._closed = True
                self._segments = []
                self._database.close()
                if self._lock is not None:
                    self._lock.close()

    def __enter__(self) -> FaissStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- changing ------------------------------------------------------------------------------------------------------

    def add(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        vectors: Any = None,
        show_progress: bool = False,
    ) -> list[str]:
        """Adds documents, all or none; they are on the disk when this returns.

        Args:
            ids: one new id per text; random ones by default.
            metadata: one flat dict per text: str, bool, None, numbers, and lists of those.
            vectors: float (len(texts), dimension), instead of encoding the texts.
            show_progress: have the model show a progress bar.

        Returns:
            The ids, in the order of the texts.

        Raises:
            InvalidInputError: An id exists already or twice, or an argument makes no sense. Nothing was added.
            StoreLockedError: Another writer has this store open.
        """
        return self._put(texts, ids, metadata, vectors, show_progress, replacing=False)

    def upsert(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        vectors: Any = None,
        show_progress: bool = False,
    ) -> list[str]:
        """Like `add`, but replaces the documents whose id exists: text, metadata and vector."""
        return self._put(texts, ids, metadata, vectors, show_progress, replacing=True)

    def index(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        skip_unchanged: bool = True,
        show_progress: bool = False,
    ) -> dict[str, int]:
        """Makes the store hold exactly these documents, in one change, encoding only texts that are new or changed.

        Args:
            skip_unchanged: False encodes every text again.

        Returns:
            How many documents were "added", "updated", "unchanged" and "deleted". A document whose metadata alone
            changed is "updated", without being encoded.
        """
        documents = inputs.documents(texts, ids, metadata)
        if not documents:
            raise InvalidInputError("index() got no texts, which would delete everything. Type store.delete(where={}).")
        with self._mutex:
            self._begin_writing()
            old = {row.id: row for row in self._database.everything()}
            given = {document.id for document in documents}
            encode, relabel, unchanged = [], [], 0
            for document in documents:
                row = old.get(document.id)
                if row is None or row.text != document.text or not skip_unchanged:
                    encode.append(document)
                elif row.metadata != document.metadata:
                    relabel.append(Row.of(row.docid, row.id, row.text, document.metadata))
                else:
                    unchanged += 1
            vanished = [row.docid for row in old.values() if row.id not in given]
            replaced = [old[document.id].docid for document in encode if document.id in old]
            if encode or relabel or vanished:
                texts_to_encode = [document.text for document in encode]
                vectors = self._checked(self._encoded(texts_to_encode, show_progress), len(encode)) if encode else None
                self._commit([*vanished, *replaced], encode, vectors, relabel=relabel)
        return {
            "added": len(encode) - len(replaced),
            "updated": len(replaced) + len(relabel),
            "unchanged": unchanged,
            "deleted": len(vanished),
        }

    def delete(self, ids: Sequence[str] | None = None, where: Mapping[str, Any] | None = None) -> int:
        """Deletes the documents with these ids, or that match the filter, or both if both are given.

        Ids that do not exist are passed over; `where={}` matches all documents.

        Returns:
            How many documents were deleted.
        """
        if ids is None and where is None:
            raise InvalidInputError("delete() needs ids= or where=; delete(where={}) deletes every document.")
        with self._mutex:
            self._begin_writing()
            docids = self._selected(ids, where)
            if docids:
                self._commit(docids, [], None)
        return len(docids)

    def compact(self) -> None:
        """Merges all segments into one without the vectors of deleted documents, and builds the kind's index over it.

        Takes the time of writing all vectors again and, meanwhile, their size in memory. Does nothing where there is
        nothing to gain.
        """
        with self._mutex:
            self._begin_writing()
            if len(self._segments) > 1 or any(not segment.alive.all() for segment in self._segments):
                self._commit([], [], None, merge=self._segments)
                self._database.vacuum()

    # -- reading -------------------------------------------------------------------------------------------------------

    def get(self, ids: Sequence[str] | None = None, where: Mapping[str, Any] | None = None) -> list[Record]:
        """The documents with these ids, in their order, or all that match a filter, oldest first, or both if both.

        Ids that do not exist are passed over.
        """
        if ids is None and where is None:
            raise InvalidInputError("get() needs ids= or where=; get(where={}) returns every document.")
        with self._mutex:
            self._check_open()
            rows = self._database.rows(self._selected(ids, where))
            return [Record(id=row.id, text=row.text, metadata=json.loads(row.metadata)) for row in rows]

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
    ) -> Any:
        """The best documents for a query, best first; fewer than `k` where fewer match.

        Args:
            query: a text or a vector (dimension,), or a batch of them: a list of texts or an array (n, dimension).
            where: only documents that match this filter (filters.py) are returned.
            score_threshold: only hits with at least this score are returned.
            mmr: from 1.0 (relevance only) to 0.0 (diversity only): pick `k` of the `fetch_k` best by maximal marginal
                relevance over cosine similarities. Hits then come in the order they were picked.
            fetch_k: candidates for `mmr`, max(20, 4 k) by default.

        Returns:
            A list of hits for a single query, a list of such lists for a batch.
        """
        inputs.check_positive("k", k)
        if mmr is not None and not (isinstance(mmr, (int, float)) and 0 <= mmr <= 1):
            raise InvalidInputError(f"mmr={mmr!r}: give a number from 0.0 (diversity) to 1.0 (relevance).")
        if fetch_k is not None:
            inputs.check_positive("fetch_k", fetch_k)
        wanted = k if mmr is None else max(k, fetch_k or max(20, 4 * k))
        queries, single = self._queries(query)
        with self._mutex:
            self._check_open()
            among = None if where is None else self._database.matching(where)
            scores, found = self._nearest(queries, wanted, among)
            results = []
            lowest = -np.inf if score_threshold is None else score_threshold
            for vector, row_scores, row_found in zip(queries, scores, found, strict=True):
                keep = np.flatnonzero((row_found >= 0) & (row_scores >= lowest))
                if mmr is not None:
                    keep = keep[_diverse(vector, self._vectors(row_found[keep]), k, mmr)]
                results.append(self._hits(row_found[keep], row_scores[keep]))
        return results[0] if single else results

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many documents there are, or match a filter."""
        with self._mutex:
            self._check_open()
            return self._manifest.count if where is None else len(self._database.matching(where))

    def __len__(self) -> int:
        return self.count()

    def verify(self) -> list[str]:
        """Reads every byte of the store and returns what is wrong with it; an empty list means that it is sound."""
        with self._mutex:
            self._check_open()
            if self._recover:
                return list(self.missing)
            problems = self._database.damage(self._manifest)
            for entry in self._manifest.segments:
                problems += damage(self.path / "segments", entry)
            homeless = self._without_vector(self._segments, self._database.matching({}))
            if len(homeless):
                problems.append(f"{self.path / 'segments'}: no vector for documents {homeless[:5].tolist()} ...")
            if sum(int(segment.alive.sum()) for segment in self._segments) != self._manifest.count:
                problems.append(f"{self.path / 'segments'}: a document has two vectors.")
            return problems

    def stats(self) -> dict[str, Any]:
        """What the store is and what it costs."""
        with self._mutex:
            self._check_open()
            manifest = self._manifest
            rows = sum(entry.rows for entry in manifest.segments)
            vector_bytes = sum(file.size for entry in manifest.segments for file in entry.files)
            return {
                "path": str(self.path),
                "kind": manifest.kind,
                "metric": manifest.metric,
                "dimension": manifest.dimension,
                "fingerprint": manifest.fingerprint,
                "prompts": manifest.prompts,
                "documents": manifest.count,
                "deleted_rows": rows - sum(int(segment.alive.sum()) for segment in self._segments),
                "segments": len(manifest.segments),
                "generation": manifest.generation,
                "bytes_on_disk": vector_bytes + sum(file.stat().st_size for file in self.path.glob("store.db*")),
                "writer": self._lock is not None,
            }

    # -- inside: reading -----------------------------------------------------------------------------------------------

    def _read(self) -> tuple[Database, Manifest, list[Segment]]:
        """Opens the database and the segments of its manifest, as of one moment."""
        database = Database.open(self.path / "store.db")
        try:
            manifest = database.manifest()
            if self._recover:
                return self._salvaged(database, manifest)
            try:
                return database, manifest, self._open_segments(database, manifest)
            except StoreCorruptedError:
                database.thaw()
                if database.manifest().generation == manifest.generation:
                    raise
            # A writer merged segments, and removed their files, between our reading the manifest and opening them.
        except BaseException:
            database.close()
            raise
        database.close()
        return self._read()

    def _open_segments(self, database: Database, manifest: Manifest) -> list[Segment]:
        if not self._mmap:
            database.check_pages(thorough=False)
        live = database.live(manifest)
        folder = self.path / "segments"
        segments = [
            Segment.open(folder, entry, manifest.kind, mmap=self._mmap, check=not self._mmap)
            for entry in manifest.segments
        ]
        homeless = self._without_vector(segments, live)
        if len(homeless):
            raise StoreCorruptedError(f"{folder}: no vector for documents {homeless[:5].tolist()} ...")
        for segment in segments:
            segment.alive &= np.isin(segment.ids, live, assume_unique=True)
        return segments

    def _salvaged(self, database: Database, manifest: Manifest) -> tuple[Database, Manifest, list[Segment]]:
        """What is sound of a damaged store: rows copied to memory, segments that are whole."""
        folder = self.path / "segments"
        rows = list(database.salvage())
        live = np.array([row.docid for row in rows], dtype=np.int64)
        missing = []
        if manifest.count > len(rows):
            missing.append(f"{database.path}: {manifest.count - len(rows)} of {manifest.count} documents are damaged.")
        segments = []
        for entry in manifest.segments:
            try:
                segments.append(Segment.open(folder, entry, manifest.kind, mmap=self._mmap, check=True))
            except StoreCorruptedError as error:  # noqa: PERF203  (a store has few segments)
                missing.append(str(error))
        homeless = set(self._without_vector(segments, np.sort(live)).tolist())
        if homeless:
            ids = [row.id for row in rows if row.docid in homeless]
            missing.append(f"no vectors for {len(ids)} documents: {', '.join(map(repr, ids))}")
        for segment in segments:
            segment.alive &= np.isin(segment.ids, live, assume_unique=True)
        self.missing = tuple(missing)
        manifest = replace(manifest, count=len(rows))
        copy = Database.in_memory(database.path, manifest, rows)
        database.close()
        return copy, manifest, segments

    @staticmethod
    def _without_vector(segments: Iterable[Segment], live: Ids) -> Ids:
        for segment in segments:
            live = np.setdiff1d(live, segment.ids, assume_unique=True)
        return live

    def _queries(self, query: Any) -> tuple[Vectors, bool]:
        """Returns the vectors of the queries, (n, dimension) float32, and whether there is a single one."""
        texts = [query] if isinstance(query, str) else query
        if isinstance(texts, (list, tuple)) and texts and isinstance(texts[0], str):
            for text in texts:
                if not isinstance(text, str) or not text.strip():
                    raise InvalidInputError(f"query {text!r} has no text to search for.")
            encoder = self._encoder("search for a text")
            return self._checked(encoder.encode_query(list(texts)), len(texts)), isinstance(query, str)
        vectors = inputs.floats(query)
        if vectors.size == 0 and len(vectors) == 0:
            return np.empty((0, self._manifest.dimension or 0), dtype=np.float32), False
        single = vectors.ndim == 1
        if single:
            vectors = vectors[np.newaxis]
        return self._checked(vectors, len(vectors)), single

    def _nearest(self, queries: Vectors, k: int, among: Ids | None) -> tuple[Vectors, Ids]:
        """Scores and ids over all segments, best first, each (queries, <= k); absent hits have id -1."""
        parts = [segment.search(queries, k, among) for segment in self._segments]
        if not parts:
            return np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        distances = np.concatenate([part[0] for part in parts], axis=1)
        found = np.concatenate([part[1] for part in parts], axis=1)
        scores = -np.sqrt(np.maximum(distances, 0)) if self._manifest.metric == "l2" else distances
        if self._manifest.metric == "cosine":
            scores = np.clip(scores, -1, 1)
        scores = np.where(found < 0, -np.inf, scores)
        order = np.lexsort((found, -scores), axis=1)[:, :k]  # equal scores: the older document first
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)

    def _hits(self, docids: Ids, scores: Vectors) -> list[Hit]:
        rows = self._database.rows(docids.tolist())
        return [
            Hit(id=row.id, text=row.text, score=float(score), metadata=json.loads(row.metadata))
            for row, score in zip(rows, scores, strict=True)
        ]

    def _vectors(self, docids: Ids) -> Vectors:
        """(len(docids), dimension) float32, in their order."""
        vectors = np.empty((len(docids), self._manifest.dimension or 0), dtype=np.float32)
        order = np.argsort(docids)
        for segment in self._segments:
            here = np.isin(docids[order], segment.ids)
            vectors[order[here]] = segment.vectors[segment.rows_of(docids[order])]
        return vectors

    def _selected(self, ids: Sequence[str] | None, where: Mapping[str, Any] | None) -> list[int]:
        among = None if where is None else self._database.matching(where)
        if ids is None:
            return [] if among is None else [int(docid) for docid in among]
        known = self._database.docids(inputs.checked_ids(ids))
        docids = [known[id] for id in dict.fromkeys(ids) if id in known]
        if among is None:
            return docids
        matched = set(among.tolist())
        return [docid for docid in docids if docid in matched]

    # -- inside: changing ----------------------------------------------------------------------------------------------

    def _put(
        self,
        texts: Sequence[str],
        ids: Sequence[str] | None,
        metadata: Sequence[Mapping[str, Any]] | None,
        vectors: Any,
        show_progress: bool,
        *,
        replacing: bool,
    ) -> list[str]:
        documents = inputs.documents(texts, ids, metadata)
        if not documents:
            return []
        # Before encoding, which may take hours: the lock, and ids that exist.
        with self._mutex:
            self._begin_writing()
            self._replaced(documents, replacing)
        if vectors is None:
            vectors = self._encoded([document.text for document in documents], show_progress)
        with self._mutex:
            self._begin_writing()
            checked = self._checked(vectors, len(documents))
            self._commit(self._replaced(documents, replacing), documents, checked)
        return [document.id for document in documents]

    def _replaced(self, documents: list[Document], replacing: bool) -> list[int]:
        known = self._database.docids([document.id for document in documents])
        if known and not replacing:
            raise InvalidInputError(
                f"ids {inputs.few(known)} exist already; nothing was added. Replace documents with store.upsert(...)."
            )
        return list(known.values())

    def _begin_writing(self) -> None:
        """Makes this store object the writer, on the newest state."""
        self._check_open()
        if self._recover:
            raise StoreError(
                f"{self.path} was opened with recover=True, which only reads. Write what store.get(where={{}}) returns "
                "to a new store, or restore the files named in store.missing and open it again."
            )
        if self._lock is None:
            held = lock.acquire(self.path / "lock")
            try:
                self._database.thaw()
                self._sweep()
            except BaseException:
                held.close()
                raise
            self._lock = held
        if self._database.manifest().generation != self._manifest.generation:
            # Another writer came and went since we opened, or an interrupt hit us between COMMIT and what follows it.
            self._manifest = self._database.manifest()
            self._segments = self._open_segments(self._database, self._manifest)
            self._check_model()

    def _sweep(self) -> None:
        """Removes the files of changes that never came to their COMMIT."""
        named = {file.name for entry in self._database.manifest().segments for file in entry.files}
        for path in (self.path / "segments").iterdir():
            if path.name not in named:
                path.unlink()

    def _commit(
        self,
        remove: list[int],
        documents: list[Document],
        vectors: Vectors | None,
        *,
        relabel: Sequence[Row] = (),
        merge: Sequence[Segment] = (),
    ) -> None:
        """Makes a change durable, then visible here.

        Args:
            remove: ids of documents to delete.
            documents, vectors: documents to insert, and their vectors (len(documents), dimension).
            relabel: documents to replace under their id, keeping their vectors.
            merge: segments to replace by a new one.
        """
        manifest, folder = self._manifest, self.path / "segments"
        removed = np.sort(np.array(remove, dtype=np.int64))
        small = [segment for segment in self._segments if segment.entry.rows < INDEX_FROM]
        if documents and len(small) >= _MOST_SMALL_SEGMENTS:
            merge = small
        new = np.arange(manifest.next_id, manifest.next_id + len(documents), dtype=np.int64)
        parts = []
        kept, dropped = [], []
        for segment in self._segments:
            stays = segment.alive.copy()
            stays[segment.rows_of(removed)] = False
            if stays.any() and not any(segment is other for other in merge):
                kept.append((segment, stays))
                continue
            dropped.append(segment.entry)
            if stays.any():
                parts.append((segment.ids[stays], segment.vectors[stays]))
        if vectors is not None:
            parts.append((new, vectors))
        entry: Entry | None = None
        if parts:
            ids, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            try:
                entry = Segment.write(
                    folder, manifest.next_segment, ids, rows, kind=manifest.kind, metric=manifest.metric
                )
            except OSError as error:
                raise StoreError(f"cannot write vectors to {folder}: {error}. Nothing was changed.") from error
        committed = self._database.commit(
            replace(
                manifest,
                dimension=manifest.dimension if vectors is None else vectors.shape[1],
                next_id=manifest.next_id + len(documents),
                next_segment=manifest.next_segment + (entry is not None),
                segments=[segment.entry for segment, _ in kept] + ([entry] if entry else []),
            ),
            remove=[*remove, *(row.docid for row in relabel)],
            insert=[
                *relabel,
                *(Row.of(docid, d.id, d.text, d.metadata) for docid, d in zip(new.tolist(), documents, strict=True)),
            ],
        )
        # Durable from here on.
        opened = Segment.open(folder, entry, manifest.kind, mmap=self._mmap, check=False) if entry else None
        for segment, stays in kept:
            segment.alive = stays
        self._segments = [segment for segment, _ in kept] + ([opened] if opened else [])
        self._manifest = committed
        for file in (file for entry in dropped for file in entry.files):
            with contextlib.suppress(OSError):  # Windows keeps files that a reader maps; the next writer sweeps them
                (folder / file.name).unlink(missing_ok=True)

    # -- inside: models and vectors ------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path} was closed. Open it again with FaissStore.open({str(self.path)!r}, model).")

    def _check_model(self) -> None:
        """Raises StoreMismatchError unless the model is the one that the store was made with."""
        if self.model is None:
            return
        pairs = (
            ("fingerprint", self._manifest.fingerprint, inputs.fingerprint_of(self.model)),
            ("dimension", self._manifest.dimension, inputs.dimension_of(self.model)),
        )
        for name, ours, theirs in pairs:
            if ours is not None and theirs is not None and ours != theirs:
                raise StoreMismatchError(
                    f"{self.path} was made with a model of {name} {ours!r}; the model given has {name} {theirs!r}. "
                    "Open it with the model it was made with, or make a new store for this one."
                )

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
        return inputs.checked_vectors(vectors, rows, self._manifest.dimension, self._manifest.metric)


def _diverse(query: Vectors, vectors: Vectors, k: int, relevance: float) -> list[int]:
    """Maximal marginal relevance: positions of up to `k` of `vectors` (n, dimension), in the order of picking."""
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    likeness = units @ (query / max(float(np.linalg.norm(query)), 1e-30))  # (n,)
    nearest = np.full(len(units), -np.inf)  # similarity to the most similar one picked so far
    picked: list[int] = []
    while len(picked) < min(k, len(units)):
        merit = likeness if not picked else relevance * likeness - (1 - relevance) * nearest
        best = int(np.argmax(np.where(np.isin(np.arange(len(units)), picked), -np.inf, merit)))
        picked.append(best)
        nearest = np.maximum(nearest, units @ units[best])
    return picked
