"""Vectors in immutable files, one segment per change, and how a segment is searched.

A segment is a stock FAISS file, `IDMap,Flat`: float32 vectors and their int64 ids, ascending. `faiss.read_index` opens
it without this package. A segment of at least `INDEX_FROM` rows of a store whose kind is not flat has a second file
beside it, `*.index.faiss`: an index over the same rows. Files are written once, flushed to the disk, and never changed;
what was deleted since is known from the database and kept here as `alive`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from faiss_llm2vec.files import difference, read_index, read_vectors, remove
from faiss_llm2vec.files import write as _write
from faiss_llm2vec.filters import Ids
from faiss_llm2vec.kinds import INDEX_FROM, KINDS, METRICS, Kind, Vectors, build, faiss, kind_of, nearest
from faiss_llm2vec.manifest import Entry, Manifest
from st_llm2vec.atomic import sync_folder
from st_llm2vec.errors import StoreCorruptedError

# Up to this share of a segment, matching rows are scanned exactly in every kind: of 100,000 x 256 vectors that is
# 10,000 dot products, half a millisecond, and an approximate index loses recall just there.
_EXACT_SHARE = 0.1


# An index that is searched; what else FAISS might read from a file is none of a store's.
_SEARCHED = (
    faiss.IndexFlat,
    faiss.IndexScalarQuantizer,
    faiss.IndexPQ,
    faiss.IndexRaBitQ,
    faiss.IndexHNSW,
    faiss.IndexIVF,
    faiss.IndexPreTransform,
    faiss.IndexBinaryFlat,
    faiss.IndexBinaryHNSW,
)
_MOST_BYTES = 1 << 30  # of float vectors that are merged into one segment: they are in memory while its index is built
_CHECKED_ROWS = 4096  # vectors looked at in one go
_UNIT = 1e-3  # how far squares of unit vectors may be from 1; float32 leaves 1e-6


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

        Its files have names that no other segment ever has, here or in a store that takes the place of this one.

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
        name = f"{number:08d}-{uuid.uuid4().hex}"
        paths = [folder / f"{name}.faiss", folder / f"{name}.index.faiss"]
        try:
            entry = Entry(
                rows=len(ids),
                vectors=_write(owner, paths[0]),
                index=None if index is None else _write(index, paths[1]),
            )
            sync_folder(folder)
        except BaseException:
            remove(paths)
            raise
        return entry

    @classmethod
    def open(cls, folder: Path, entry: Entry, manifest: Manifest, *, mmap: bool, check: bool) -> Segment:
        """Opens a segment.

        Args:
            mmap: map the files instead of reading them into memory.
            check: compare the sha256 of the files and look at each vector; shapes and sizes are always compared.

        Raises:
            StoreCorruptedError: A file is missing or is not the one that was written.
        """
        for file in entry.files:
            if problem := difference(folder / file.name, file, content=check):
                raise StoreCorruptedError(problem)
        # With an index in front, float vectors are only touched to rescore: mapping them keeps the RAM an index saves.
        mapped = {entry.vectors: mmap or entry.index is not None}
        path = folder / entry.vectors.name
        owner = read_vectors(
            path,
            rows=entry.rows,
            dimension=manifest.dimension or 0,
            metric=manifest.metric,
            mmap=mapped[entry.vectors],
        )
        index = None
        if entry.index is not None:
            index = read_index(folder / entry.index.name, mmap=mmap)
            mapped[entry.index] = mmap
            _check_index(folder / entry.index.name, index, entry.rows, manifest)
        ids: Ids = faiss.vector_to_array(owner.id_map)
        if len(ids) != entry.rows or np.any(ids[1:] <= ids[:-1]) or ids[0] < 0 or ids[-1] >= manifest.next_id:
            raise StoreCorruptedError(f"{path}: its ids are not those that were written.")
        flat = faiss.downcast_index(owner.index)
        in_memory = ids.nbytes + sum(file.size for file, is_mapped in mapped.items() if not is_mapped)
        # The kind is not built to be known: it may be a stranger's, and building can take all memory.
        kind = KINDS.get(manifest.kind) or Kind(manifest.kind, float, oversample=16)
        segment = cls(entry, ids, flat, index, kind, in_memory, _owner=owner)
        if check and (problem := segment.bad_vectors(path, manifest.metric)):
            raise StoreCorruptedError(problem)
        return segment

    def bad_vectors(self, path: Path, metric: str) -> str | None:
        """Says which vectors are none that a store keeps: not finite, or not of unit length where that is needed."""
        for start in range(0, len(self.ids), _CHECKED_ROWS):
            part = self.vectors[start : start + _CHECKED_ROWS]
            squares = np.einsum("ij,ij->i", part, part)
            bad = ~np.isfinite(squares) if metric != "cosine" else ~(np.abs(squares - 1) <= _UNIT)
            if bad.any():
                what = "not of unit length" if metric == "cosine" else "not finite"
                return f"{path}: the vector of row {start + int(np.argmax(bad))} is {what}."
        return None

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
        if candidates.size and candidates.max() >= len(self.ids):
            raise StoreCorruptedError(f"the index {self.entry.index} gives rows that its segment does not have.")
        if np.any(np.count_nonzero(candidates >= 0, axis=1) < k):
            return self._scan(queries, k, rows)  # the index could not reach k matching rows
        distances = np.full(candidates.shape, _worst(self.flat), dtype=np.float32)
        for query, near, out in zip(queries, candidates, distances, strict=True):
            real = near >= 0
            chosen = self.vectors[near[real]]  # (candidates, dimension)
            out[real] = chosen @ query if _is_similarity(self.flat) else np.sum((chosen - query) ** 2, axis=1)
        order = np.argsort(-distances if _is_similarity(self.flat) else distances, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances, order, axis=1), np.take_along_axis(candidates, order, axis=1)


def mergeable(segments: list[Segment]) -> list[Segment]:
    """The first segments to merge into one, or to write again without what was deleted; none if all is well."""
    group: list[Segment] = []
    size = 0
    for segment in segments:
        added = int(segment.alive.sum()) * segment.flat.d * 4
        if group and size + added > _MOST_BYTES:
            if len(group) > 1 or not group[0].alive.all():
                break
            group, size = [], 0
        group.append(segment)
        size += added
    return group if len(group) > 1 or any(not segment.alive.all() for segment in group) else []


def damage(folder: Path, segment: Segment, metric: str) -> list[str]:
    """Reads every byte of a segment and returns what is wrong with it."""
    problems = [difference(folder / file.name, file, content=True) for file in segment.entry.files]
    problems.append(segment.bad_vectors(folder / segment.entry.vectors.name, metric))
    return [problem for problem in problems if problem]


def _check_index(path: Path, index: Any, rows: int, manifest: Manifest) -> None:
    """Raises StoreCorruptedError unless an index is over this many vectors of the store's dimension and metric."""
    dimension = manifest.dimension or 0
    binary = isinstance(index, faiss.IndexBinary)
    if isinstance(index, faiss.IndexPreTransform):
        inner = faiss.downcast_index(index.index)
        right = isinstance(inner, _SEARCHED) and inner.ntotal == rows
    else:
        right = isinstance(index, _SEARCHED)
    right = right and index.ntotal == rows and index.is_trained
    right = right and index.d == (-(-dimension // 8) * 8 if binary else dimension)
    if not (right and (binary or index.metric_type == METRICS[manifest.metric])):
        raise StoreCorruptedError(
            f"{path} is no index over {rows} vectors of dimension {dimension} for metric {manifest.metric!r}, as the "
            "manifest says. FaissStore.open(path, recover=True) serves the store without it."
        )


def _is_similarity(index: Any) -> bool:
    return bool(index.metric_type == faiss.METRIC_INNER_PRODUCT)


def _worst(index: Any) -> float:
    return -np.inf if _is_similarity(index) else np.inf
