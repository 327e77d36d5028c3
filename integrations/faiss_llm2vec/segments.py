"""Vectors in immutable files, one segment per change, and how a segment is searched.

A segment is a stock FAISS file, `IDMap,Flat`: float32 vectors and their int64 ids, ascending. `faiss.read_index` opens
it without this package. A segment of at least `INDEX_FROM` rows of a store whose kind is not flat has a second file
beside it, `*.index.faiss`: an index over the same rows. Files are written once, flushed to the disk, and never changed;
what was deleted since is known from the database and kept here as `alive`.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from faiss_llm2vec.filters import Ids
from faiss_llm2vec.kinds import INDEX_FROM, METRICS, Kind, Vectors, build, faiss, kind_of, nearest
from st_llm2vec.errors import StoreCorruptedError

# Up to this share of a segment, matching rows are scanned exactly in every kind: of 100,000 x 256 vectors that is
# 10,000 dot products, half a millisecond, and an approximate index loses recall just there.
_EXACT_SHARE = 0.1


@dataclass(frozen=True)
class File:
    """What the manifest says about one file."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """What the manifest says about one segment."""

    rows: int
    vectors: File
    index: File | None = None

    @property
    def files(self) -> list[File]:
        return [self.vectors] if self.index is None else [self.vectors, self.index]


@dataclass
class Segment:
    """An open segment.

    Attributes:
        entry: its line in the manifest.
        ids: (rows,) int64, ascending.
        flat: FAISS flat index over the vectors; its ids are the row numbers.
        index: index of the store's kind over the same rows, or None to scan `flat`.
        in_memory: bytes that were read rather than mapped.
        alive: (rows,) bool, False where the document was deleted or replaced.
    """

    entry: Entry
    ids: Ids
    flat: Any
    index: Any
    kind: Kind
    in_memory: int
    alive: npt.NDArray[np.bool_] = field(init=False)
    _owner: Any = None  # the faiss.IndexIDMap that owns the memory of `flat`

    def __post_init__(self) -> None:
        self.alive = np.ones(len(self.ids), dtype=bool)

    @property
    def vectors(self) -> Vectors:
        """(rows, dimension) float32, a view of the file or of FAISS's memory."""
        rows, dimension = self.flat.ntotal, self.flat.d
        view: Vectors = faiss.rev_swig_ptr(self.flat.get_xb(), rows * dimension).reshape(rows, dimension)
        return view

    @classmethod
    def write(cls, folder: Path, number: int, ids: Ids, vectors: Vectors, *, kind: str, metric: str) -> Entry:
        """Writes segment `number` and returns its entry once every byte of it is on the disk.

        Args:
            ids: (rows,) int64, any order, no duplicates.
            vectors: (rows, dimension) float32, finite; unit length if the metric is cosine.

        Raises:
            OSError: The disk is full or cannot be written; nothing is left behind.
        """
        if np.any(ids[1:] < ids[:-1]):
            order = np.argsort(ids)
            ids, vectors = ids[order], vectors[order]
        flat = faiss.IndexFlat(vectors.shape[1], METRICS[metric])
        owner = faiss.IndexIDMap(flat)
        owner.add_with_ids(vectors, ids)
        index = build(kind_of(kind, vectors.shape[1]), vectors, metric)
        paths = [folder / f"{number:08d}.faiss", folder / f"{number:08d}.index.faiss"]
        try:
            entry = Entry(
                rows=len(ids),
                vectors=_write(owner, paths[0]),
                index=None if index is None else _write(index, paths[1]),
            )
            sync_folder(folder)
        except BaseException:
            for path in paths:
                path.unlink(missing_ok=True)
            raise
        return entry

    @classmethod
    def open(cls, folder: Path, entry: Entry, kind: str, *, mmap: bool, check: bool) -> Segment:
        """Opens a segment.

        Args:
            mmap: map the files instead of reading them into memory.
            check: compare the sha256 of the files; their sizes are always compared.

        Raises:
            StoreCorruptedError: A file is missing or is not the one that was written.
        """
        for file in entry.files:
            if problem := _difference(folder, file, content=check):
                raise StoreCorruptedError(problem)
        # With an index in front, float vectors are only touched to rescore: mapping them keeps the RAM an index saves.
        mapped = {entry.vectors: mmap or entry.index is not None}
        owner = _read(folder / entry.vectors.name, mmap=mapped[entry.vectors])
        index = None
        if entry.index is not None:
            index = _read(folder / entry.index.name, mmap=mmap)
            mapped[entry.index] = mmap
        ids: Ids = faiss.vector_to_array(owner.id_map)
        if len(ids) != entry.rows or np.any(ids[1:] <= ids[:-1]):
            raise StoreCorruptedError(f"{folder / entry.vectors.name}: its ids are not those that were written.")
        flat = faiss.downcast_index(owner.index)
        in_memory = ids.nbytes + sum(file.size for file, is_mapped in mapped.items() if not is_mapped)
        return cls(entry, ids, flat, index, kind_of(kind, flat.d), in_memory, _owner=owner)

    def rows_of(self, ids: Ids) -> Ids:
        """Row numbers of those of `ids` (ascending, of documents that exist) that are in this segment."""
        if len(self.ids) == 0 or len(ids) == 0:
            return np.empty(0, dtype=np.int64)
        rows = np.searchsorted(self.ids, ids)
        rows = np.minimum(rows, len(self.ids) - 1)
        found: Ids = rows[self.ids[rows] == ids].astype(np.int64, copy=False)
        return found

    def search(self, queries: Vectors, k: int, among: Ids | None, effort: float) -> tuple[Vectors, Ids]:
        """Returns FAISS distances and document ids, best first, each (queries, <= k); absent hits have id -1.

        Args:
            queries: (queries, dimension) float32.
            among: ids (ascending) that may be returned, or None for all.
            effort: how much wider than usual an index is searched.
        """
        rows = np.flatnonzero(self.alive) if among is None else self.rows_of(among)
        k = min(k, len(rows))
        if k == 0:
            return np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        if self.index is None or len(rows) <= max(INDEX_FROM, _EXACT_SHARE * len(self.ids)):
            distances, found = self._scan(queries, k, rows)
        else:
            distances, found = self._search_index(queries, k, rows, effort)
        return distances, np.where(found >= 0, self.ids[found], -1)

    def _scan(self, queries: Vectors, k: int, rows: Ids) -> tuple[Vectors, Ids]:
        """Exact search among `rows`."""
        # FAISS visits the listed rows only, so a filter costs what the matches cost, not what the segment costs.
        selector = None if len(rows) == len(self.ids) else faiss.IDSelectorArray(rows)
        distances, found = self.flat.search(queries, k, params=faiss.SearchParameters(sel=selector))
        return distances, found

    def _search_index(self, queries: Vectors, k: int, rows: Ids, effort: float) -> tuple[Vectors, Ids]:
        """Candidates among `rows` from the index, rescored with the float vectors."""
        selector = None
        if len(rows) < len(self.ids):
            member = np.zeros(len(self.ids), dtype=bool)
            member[rows] = True
            selector = faiss.IDSelectorBitmap(np.packbits(member, bitorder="little"))
        wanted = min(int(k * self.kind.oversample * max(1.0, effort)), len(rows))
        # The fewer rows match, the wider a graph or inverted lists have to be searched to meet as many of them.
        candidates = nearest(self.index, queries, wanted, selector, effort * len(self.ids) / len(rows))
        if np.any(np.count_nonzero(candidates >= 0, axis=1) < k):
            return self._scan(queries, k, rows)  # the index could not reach k matching rows
        distances = np.full(candidates.shape, _worst(self.flat), dtype=np.float32)
        for query, near, out in zip(queries, candidates, distances, strict=True):
            real = near >= 0
            chosen = self.vectors[near[real]]  # (candidates, dimension)
            out[real] = chosen @ query if _is_similarity(self.flat) else np.sum((chosen - query) ** 2, axis=1)
        order = np.argsort(-distances if _is_similarity(self.flat) else distances, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances, order, axis=1), np.take_along_axis(candidates, order, axis=1)


def damage(folder: Path, entry: Entry) -> list[str]:
    """Reads every byte of a segment and returns what is wrong with it."""
    return [problem for file in entry.files if (problem := _difference(folder, file, content=True))]


def sync_folder(folder: Path) -> None:
    """Flushes a folder's list of names to the disk, where the system lets one (Windows does not, and needs it not)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(index: Any, path: Path) -> File:
    """Writes a FAISS index, flushed to the disk, and returns its size and checksum."""
    digest = hashlib.sha256()
    with open(path, "wb") as stream:

        def write(block: bytes) -> int:
            digest.update(block)
            return stream.write(block)

        writer = faiss.PyCallbackIOWriter(write, 1 << 20)
        (faiss.write_index_binary if isinstance(index, faiss.IndexBinary) else faiss.write_index)(index, writer)
        stream.flush()
        os.fsync(stream.fileno())
        size = stream.tell()
    return File(path.name, size, digest.hexdigest())


def _read(path: Path, *, mmap: bool) -> Any:
    try:
        # IO_FLAG_MMAP_IFC maps flat vectors as well; plain IO_FLAG_MMAP maps inverted lists only.
        flags = faiss.IO_FLAG_MMAP_IFC if mmap else 0
        with open(path, "rb") as stream:
            binary = stream.read(4)[:2] == b"IB"
        return faiss.read_index_binary(str(path), flags) if binary else faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise StoreCorruptedError(f"{path}: FAISS cannot read it ({error}).") from error


def _difference(folder: Path, file: File, *, content: bool) -> str | None:
    """Says how a file differs from the one that was written; None if it does not."""
    path = folder / file.name
    try:
        size = path.stat().st_size
        if size != file.size:
            return f"{path} has {size} bytes; {file.size} were written."
        if not content:
            return None
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        return f"{path} is missing or cannot be read ({error})."
    return None if digest.hexdigest() == file.sha256 else f"{path} is not what was written (its sha256 differs)."


def _is_similarity(index: Any) -> bool:
    return bool(index.metric_type == faiss.METRIC_INNER_PRODUCT)


def _worst(index: Any) -> float:
    return -np.inf if _is_similarity(index) else np.inf
