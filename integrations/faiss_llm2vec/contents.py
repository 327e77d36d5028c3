"""What a store object sees: rows, manifest and segments of one moment, and how a change replaces them.

The database is frozen at that moment, for readers and writers alike. A change begins on the newest state (`begin`),
is published on the disk (`commit`), and is then what this object sees (`settle`), as `refresh` does without a change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from faiss_llm2vec import files, inputs, inspection
from faiss_llm2vec.change import Change
from faiss_llm2vec.database import Database
from faiss_llm2vec.filters import Ids
from faiss_llm2vec.kinds import INDEX_FROM, Vectors
from faiss_llm2vec.manifest import Entry, File, Manifest
from faiss_llm2vec.records import Documents
from faiss_llm2vec.segments import Segment, damage
from st_llm2vec.errors import StoreCorruptedError, StoreError

# Each change writes a segment; from this many small ones on, the next change merges them into its own.
_MOST_SMALL_SEGMENTS = 16
# How often a store is opened again because a writer merged its segments meanwhile.
_ATTEMPTS = 20
# A reader that sees an old state copies it rather than have the write-ahead log grow beyond this for its sake.
_LONG_LOG = 1 << 26


class Contents:
    """Rows, manifest and segments that belong together."""

    def __init__(self, path: Path, *, mmap: bool, recover: bool) -> None:
        """Opens the last durable state.

        Raises:
            StoreNotFoundError: There is no store.
            StoreCorruptedError: A file is damaged or missing, and `recover` is off.
        """
        self.path = path
        self.folder = path / "segments"
        self.missing: tuple[str, ...] = ()
        self.stale = False
        """Whether this is not known to be what the database is frozen at: in a change, or in a forked process."""
        self._mmap = mmap
        self._in_place: Callable[[], bool] = lambda: True
        self._new: list[File] = []  # what the change under way has written
        self.segments: list[Segment] = []
        self.database, self.manifest, self.segments = self._salvaged() if recover else self._read()

    def close(self) -> None:
        self.segments = []
        self.database.close()

    # -- opening -------------------------------------------------------------------------------------------------------

    def _read(self) -> tuple[Database, Manifest, list[Segment]]:
        """Opens the database and the segments of its manifest, as of one moment."""
        for _ in range(_ATTEMPTS):
            database = Database.open(self.path / "store.db")
            try:
                manifest = database.manifest()
                try:
                    return database, manifest, self._opened(database, manifest)
                except StoreCorruptedError:
                    if database.private or (database.freeze() == manifest and database.in_place()):
                        raise
                # A writer merged segments, and removed their files, between our reading the manifest and opening them.
            except BaseException:
                database.close()
                raise
            database.close()
        raise StoreError(f"{self.path} changes faster than it can be opened. Try again later.")

    def settle(self) -> None:
        """Goes on to the newest state of the database, and freezes it there."""
        self.stale = True
        if self.database.closed:
            self.database, self.manifest, self.segments = self._read()
        elif not self.database.private:
            for attempt in range(_ATTEMPTS):
                manifest = self.database.freeze()
                try:
                    self._go_on_to(manifest)
                    break
                except StoreCorruptedError:
                    if attempt == _ATTEMPTS - 1 or self.database.freeze() == manifest:
                        raise
        self.stale, self._in_place = False, lambda: True
        # Of a change that failed. One that was interrupted may have come to pass; by now the manifest says so.
        named = {file for entry in self.manifest.segments for file in entry.files}
        files.remove(self.folder / file.name for file in self._new if file not in named)
        self._new = []

    def refresh(self) -> None:
        """Goes on to what is at the path now, be it another store."""
        if self.database.private or not self.database.in_place():
            opened = self._read()
            self.database.close()
            self.database, self.manifest, self.segments = opened
        self.database.empty_log()
        self.settle()

    def let_go(self) -> None:
        """Goes on seeing the same, from a copy, if the write-ahead log has become long for its sake."""
        if self.database.log_size() > _LONG_LOG and not self.database.private:
            self.database.keep_a_copy()

    def forked(self) -> None:
        """In a process just forked: leaves the parent's connection, whose locks belong to the parent."""
        if not self.database.private:
            self.stale = True
            self.database.close()

    def _go_on_to(self, manifest: Manifest) -> None:
        if manifest != self.manifest:
            self.segments = self._opened(self.database, manifest)
            self.manifest = manifest

    def _opened(self, database: Database, manifest: Manifest) -> list[Segment]:
        if not self._mmap or database.small:
            database.check_pages(thorough=False)
        live = database.live(manifest)
        if manifest.segments:
            files.folder(self.folder)
        open_already = {segment.entry: segment for segment in self.segments}
        segments = [
            open_already.get(entry) or Segment.open(self.folder, entry, manifest, mmap=self._mmap, check=not self._mmap)
            for entry in manifest.segments
        ]
        homeless = _without_vector(segments, live)
        if len(homeless):
            raise StoreCorruptedError(f"{self.folder}: no vector for documents {homeless[:5].tolist()} ...")
        for segment in segments:
            segment.alive = np.isin(segment.ids, live, assume_unique=True)
        return segments

    def _salvaged(self) -> tuple[Database, Manifest, list[Segment]]:
        """What is sound of a damaged store: rows copied to memory, segments that are whole."""
        database = Database.open(self.path / "store.db")
        try:
            manifest = database.manifest()
            rows = list(inspection.salvage(database))
            files.folder(self.folder)
        finally:
            database.close()
        live = np.array([row.docid for row in rows], dtype=np.int64)
        missing = []
        if manifest.count > len(rows):
            missing.append(f"{database.path}: {manifest.count - len(rows)} of {manifest.count} documents are damaged.")
        segments = []
        for entry in manifest.segments:
            # Without its index, a segment is scanned: slower, and nothing is lost.
            for part in (entry, replace(entry, index=None)) if entry.index else (entry,):
                try:
                    segments.append(Segment.open(self.folder, part, manifest, mmap=self._mmap, check=True))
                    break
                except StoreCorruptedError as error:
                    if str(error) not in missing:
                        missing.append(str(error))
        homeless = set(_without_vector(segments, np.sort(live)).tolist())
        if homeless:
            ids = [row.id for row in rows if row.docid in homeless]
            missing.append(f"no vectors for {len(ids)} documents: {', '.join(map(repr, ids))}")
        for segment in segments:
            segment.alive &= np.isin(segment.ids, live, assume_unique=True)
        self.missing = tuple(missing)
        manifest = replace(manifest, count=len(rows))
        return Database.in_memory(database.path, manifest, rows), manifest, segments

    def damage(self) -> list[str]:
        """Reads every byte and returns what is wrong with it."""
        problems = inspection.damage(self.database, self.manifest)
        for segment in self.segments:
            problems += damage(self.folder, segment, self.manifest.metric)
        homeless = _without_vector(self.segments, self.database.matching({}))
        if len(homeless):
            problems.append(f"{self.folder}: no vector for documents {homeless[:5].tolist()} ...")
        if len(self.docids()) != self.manifest.count:
            problems.append(f"{self.folder}: a document has two vectors.")
        return problems

    # -- reading -------------------------------------------------------------------------------------------------------

    def docids(self) -> Ids:
        """Ids of all documents that have a vector, ascending."""
        alive = [segment.ids[segment.alive] for segment in self.segments]
        return np.sort(np.concatenate(alive)) if alive else np.empty(0, dtype=np.int64)

    def matching(self, where: Mapping[str, Any]) -> Ids:
        """Ids of the documents that match a filter, ascending."""
        # A salvaged store has documents without a vector; else, the ids in memory save reading those of the database.
        return self.database.matching(where, None if self.missing else self.docids)

    def selected(self, ids: Sequence[str] | None, where: Mapping[str, Any] | None) -> list[int]:
        """The docids of `ids` that match `where`, in their order; of all that match if there are no `ids`."""
        among = None if where is None else self.matching(where)
        if ids is None:
            return [] if among is None else [int(docid) for docid in among]
        known = self.database.docids(inputs.checked_ids(ids))
        docids = [known[id] for id in dict.fromkeys(ids) if id in known]
        if among is None:
            return docids
        matched = set(among.tolist())
        return [docid for docid in docids if docid in matched]

    def nearest(self, queries: Vectors, k: int, among: Ids | None, effort: float) -> tuple[Vectors, Ids]:
        """Scores and ids over all segments, best first, each (queries, <= k); absent hits have id -1."""
        parts = [segment.search(queries, k, among, effort) for segment in self.segments]
        if not parts:
            return np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        distances = np.concatenate([part[0] for part in parts], axis=1)
        found = np.concatenate([part[1] for part in parts], axis=1)
        scores = -np.sqrt(np.maximum(distances, 0)) if self.manifest.metric == "l2" else distances
        if self.manifest.metric == "cosine":
            scores = np.clip(scores, -1, 1)
        scores = np.where(found < 0, -np.inf, scores)
        order = np.lexsort((found, -scores), axis=1)[:, :k]  # equal scores: the older document first
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)

    def vectors(self, docids: Ids) -> Vectors:
        """(len(docids), dimension) float32, in their order."""
        vectors = np.empty((len(docids), self.manifest.dimension or 0), dtype=np.float32)
        order = np.argsort(docids)
        for segment in self.segments:
            here = np.isin(docids[order], segment.ids)
            vectors[order[here]] = segment.vectors[segment.rows_of(docids[order])]
        return vectors

    # -- changing ------------------------------------------------------------------------------------------------------

    def begin(self, in_place: Callable[[], bool], *, sweep: bool) -> None:
        """Begins a change, on the newest state; `settle` ends it, with or without a `commit`.

        Args:
            in_place: whether the writer's lock is still the one at the path.
            sweep: remove the files of changes that never came to their COMMIT.
        """
        if self.database.private:
            self.refresh()  # perhaps it can be written by now
        if self.database.private:
            raise StoreError(f"{self.path} cannot be written; it can be read and searched.")
        self._in_place = in_place
        self.stale = True
        manifest = self.database.begin()
        # Now no other writer is at work, not even one that shares the lock after a fork.
        leftovers = files.leftovers(self.path, manifest) if sweep else []
        self.check_in_place()
        if files.folder(self.folder) is None:
            self.folder.mkdir()
        files.remove(leftovers)
        self._go_on_to(manifest)

    def check_in_place(self) -> None:
        """Raises StoreError unless the folder is still the one that was opened, by the inodes of its files."""
        if not (self.database.in_place() and self._in_place()):
            raise StoreError(
                f"{self.path} was replaced or removed since this store object opened it. Nothing was changed; open the "
                f"store that is there now: FaissStore.open({str(self.path)!r}, model)."
            )

    def commit(self, change: Change) -> None:
        """Makes a change durable, then visible here.

        Raises:
            StoreError: The disk is full or cannot be written; nothing was changed.
        """
        manifest, vectors = self.manifest, change.vectors
        if manifest.model is None:
            manifest = replace(manifest, model=change.model[0], revision=change.model[1])
        new = np.arange(manifest.next_id, manifest.next_id + len(change.documents), dtype=np.int64)
        kept, dropped, parts = self._sorted_out(change)
        if vectors is not None:
            parts.append((new, vectors))
        added: list[Segment] = []

        def finished() -> Manifest:
            added.extend(writing.result())
            self.check_in_place()
            return replace(
                manifest,
                dimension=manifest.dimension if vectors is None else vectors.shape[1],
                model_dimension=change.model_dimension or manifest.model_dimension,
                next_id=manifest.next_id + len(change.documents),
                next_segment=manifest.next_segment + len(added),
                segments=[*(segment.entry for segment, _ in kept), *(segment.entry for segment in added)],
            )

        documents = change.documents
        if change.relabel:
            documents = Documents.of([*change.relabel.values(), *documents])
        with ThreadPoolExecutor(1) as thread:  # the disk takes the vectors while SQLite takes the texts
            writing = thread.submit(self._written, parts)
            committed = self.database.commit(
                finished,
                remove=[*change.remove, *change.relabel],
                docids=[*change.relabel, *new.tolist()],
                insert=documents,
            )
        for segment, stays in kept:  # durable from here on
            segment.alive = stays
        self.segments = [*(segment for segment, _ in kept), *added]
        self.manifest = committed
        files.remove(self.folder / file.name for entry in dropped for file in entry.files)

    def _written(self, parts: list[tuple[Ids, Vectors]]) -> list[Segment]:
        """The new segment, on the disk and open, if there is anything to put into one."""
        if not parts:
            return []
        manifest = self.manifest
        ids, rows = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        try:
            entry = Segment.write(
                self.folder, manifest.next_segment, ids, rows, kind=manifest.kind, metric=manifest.metric
            )
        except OSError as error:
            raise StoreError(f"cannot write vectors to {self.folder}: {error}. Nothing was changed.") from error
        self._new = entry.files
        written = replace(manifest, dimension=rows.shape[1], next_id=int(ids.max()) + 1)
        return [Segment.open(self.folder, entry, written, mmap=self._mmap, check=False)]

    def _sorted_out(self, change: Change) -> tuple[list[Any], list[Entry], list[tuple[Ids, Vectors]]]:
        """Which segments stay, with what is then alive in each; which go; and what of those goes into the new one."""
        removed = np.sort(np.array(change.remove, dtype=np.int64))
        merge = change.merge
        small = [segment for segment in self.segments if segment.entry.rows < INDEX_FROM]
        if change.documents and len(small) >= _MOST_SMALL_SEGMENTS:
            merge = small
        kept, dropped, parts = [], [], []
        for segment in self.segments:
            stays = segment.alive.copy()
            stays[segment.rows_of(removed)] = False
            if stays.any() and not any(segment is other for other in merge):
                kept.append((segment, stays))
                continue
            dropped.append(segment.entry)
            if stays.any():
                parts.append((segment.ids[stays], segment.vectors[stays]))
        return kept, dropped, parts


def _without_vector(segments: Iterable[Segment], live: Ids) -> Ids:
    for segment in segments:
        live = np.setdiff1d(live, segment.ids, assume_unique=True)
    return live
