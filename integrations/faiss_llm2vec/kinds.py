"""The index kinds of a store: a table of names, FAISS factory strings, and which kind to take.

Every kind keeps the float32 vectors on disk (segments.py), so a kind is only a faster or smaller way to find
candidates: they are rescored with the float vectors, and the score of a hit is exact in every kind. What a kind trades
away is recall.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import faiss as _faiss
import numpy as np
import numpy.typing as npt

from st_llm2vec.errors import InvalidInputError

faiss: Any = _faiss  # its type stubs know half of its names and arguments; segments.py takes it from here

Vectors = npt.NDArray[np.float32]

# How FAISS compares, by metric; cosine is the inner product of the normalised vectors that a store keeps.
METRICS = {"cosine": faiss.METRIC_INNER_PRODUCT, "dot": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}

# A segment below this size is scanned exactly in every kind: an index would cost more than it saves.
INDEX_FROM = 4096

# FAISS asks for 39 training vectors per inverted list and warns below that.
_ROWS_PER_LIST = 39
# And k-means gains nothing from more than this many, nor from more rounds.
_SAMPLE_PER_LIST = 64
_LEAST_SAMPLE = 65_536
_ROUNDS = 10

# Scanning this many bytes takes some 20 ms on one core.
_QUICKLY_SCANNED = 200e6


@dataclass(frozen=True)
class Kind:
    """How one kind indexes the rows of a segment."""

    factory: str | None
    """FAISS factory string, `{nlist}` filled in per segment; None scans the float vectors."""

    bytes: Callable[[int], float]
    """Dimension -> bytes of memory per vector."""

    oversample: int = 4
    """Candidates fetched per hit that is wanted, then rescored with the float vectors."""

    quantize: bool = False
    """The codes are those of sentence-transformers' `quantize_embeddings`, calibrated on the segment."""


KINDS: dict[str, Kind] = {
    "flat": Kind(None, lambda d: 4 * d, oversample=1),
    "fp16": Kind("SQfp16", lambda d: 2 * d, oversample=2),
    "sq8": Kind("SQ8", lambda d: d),
    "int8": Kind("SQ8", lambda d: d, quantize=True),
    "hnsw": Kind("HNSW32_SQ8", lambda d: d + 272),
    "ivf": Kind("IVF{nlist},SQ8", lambda d: d + 8),
    "rabitq": Kind("IVF{nlist},RaBitQ", lambda d: d / 8 + 16, oversample=16),
    "binary": Kind("BFlat", lambda d: d / 8, oversample=16, quantize=True),
}

# What may be searched among listed rows only; the rest of FAISS would let a hit violate its filter.
_FILTERED = (
    faiss.IndexFlat,
    faiss.IndexScalarQuantizer,
    faiss.IndexPQ,
    faiss.IndexRaBitQ,
    faiss.IndexHNSW,
    faiss.IndexIVF,
    faiss.IndexBinaryFlat,
    faiss.IndexBinaryHNSW,
)


def kind_of(name: str, dimension: int | None = None) -> Kind:
    """The kind of a name in `KINDS`, or of a FAISS factory string such as "IVF4096,PQ32" or "HNSW64".

    Raises:
        InvalidInputError: It is neither, FAISS cannot build it for this dimension, or cannot filter it.
    """
    if name in KINDS:
        return KINDS[name]
    # 960 is a multiple of most numbers of sub-vectors; the first segment meets the real dimension.
    try:
        index = _empty(name, dimension or 960, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InvalidInputError(
            f"kind must be one of {', '.join(KINDS)} or a factory string of FAISS, got {name!r} ({reason:.200})."
        ) from None
    inner = _inner(index)
    if not isinstance(inner, _FILTERED):
        raise InvalidInputError(
            f"kind={name!r} is a FAISS {type(inner).__name__}, which cannot be filtered here. Without IDMap and RFlat "
            f"(a store keeps ids and rescores by itself), there are Flat, SQ, PQ, RaBitQ, HNSW, IVF and OPQ or PCA "
            "before them."
        )
    return Kind(name, lambda d: float(inner.code_size if hasattr(inner, "code_size") else d), oversample=16)


def recommend_kind(count: int, dimension: int, memory_budget: float = math.inf) -> str:
    """Return the kind for `count` vectors of `dimension` whose index may take `memory_budget` bytes of memory.

    The first that fits: "flat" as long as scanning all vectors is quick, then "hnsw" (fastest), "ivf" and "rabitq".

    Raises:
        InvalidInputError: Not even the smallest fits; the message says what it needs.

    Example:
        >>> recommend_kind(10_000, 256), recommend_kind(1_000_000, 1024)
        ('flat', 'hnsw')
    """
    count, dimension = int(count), int(dimension)  # numpy's 32 bits would overflow
    if 4 * dimension * count <= min(memory_budget, _QUICKLY_SCANNED):
        return "flat"
    for name in ("hnsw", "ivf", "rabitq"):
        if KINDS[name].bytes(dimension) * count <= memory_budget:
            return name
    needed = math.ceil(KINDS["rabitq"].bytes(dimension) * count)
    raise InvalidInputError(
        f"{count} vectors of dimension {dimension} need {needed} bytes of memory in the smallest kind, 'rabitq'; "
        f"memory_budget is {memory_budget:.0f}. Cut the vectors with truncate_dim=, or use several stores."
    )


def build(kind: Kind, vectors: Vectors, metric: str) -> Any:
    """Returns the index of a kind over `vectors` (rows, dimension); its ids are the row numbers.

    None if a scan is better: the kind is flat, or there are too few rows to train it.
    """
    rows, dimension = vectors.shape
    if kind.factory is None or rows < INDEX_FROM:
        return None
    nlist = max(1, min(int(4 * rows**0.5), rows // _ROWS_PER_LIST))
    index = _empty(kind.factory.format(nlist=nlist), dimension, METRICS[metric])
    if isinstance(inner := _inner(index), faiss.IndexIVF):
        inner.cp.niter = _ROUNDS
    _without_polysemous_codes(index)
    lists = getattr(_inner(index), "nlist", 0)
    if rows < _ROWS_PER_LIST * lists:
        return None
    if isinstance(index, faiss.IndexBinary):
        codes = _quantized(vectors, "ubinary")
        index.train(codes)
        index.add(codes)
    elif kind.quantize:
        ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
        index.train(ranges)  # which keeps them in the index file
        faiss.copy_array_to_vector(_quantized(vectors, "uint8", ranges).ravel(), index.codes)
        index.ntotal = rows
    else:
        most = max(_LEAST_SAMPLE, _SAMPLE_PER_LIST * lists)
        index.train(vectors if rows <= most else vectors[np.random.default_rng(0).choice(rows, most, replace=False)])
        index.add(vectors)
    return index


def nearest(index: Any, queries: Vectors, k: int, selector: Any, effort: float) -> npt.NDArray[np.int64]:
    """Row numbers (queries, k) of the nearest rows that `selector` admits, by the index alone; -1 where none is found.

    Args:
        effort: how much wider than usual a graph or the inverted lists are searched.
    """
    inputs: Any = np.packbits(queries > 0, axis=1) if isinstance(index, faiss.IndexBinary) else queries
    found: npt.NDArray[np.int64] = index.search(inputs, k, params=_parameters(index, selector, effort))[1]
    return found


def _parameters(index: Any, selector: Any, effort: float) -> Any:
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(_inner(index), selector, effort))
    if isinstance(index, (faiss.IndexHNSW, faiss.IndexBinaryHNSW)):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=max(16, int(128 * effort)))
    if isinstance(index, faiss.IndexIVF):
        nprobe = int(effort * max(16, index.nlist // 16))
        return faiss.SearchParametersIVF(sel=selector, nprobe=max(1, min(index.nlist, nprobe)))
    return faiss.SearchParameters(sel=selector)


def _empty(factory: str, dimension: int, metric: int) -> Any:
    """An index of a factory string; those that start with B are over sign bits, a multiple of 8 of them."""
    if factory.startswith("B"):
        return faiss.index_binary_factory(-(-dimension // 8) * 8, factory)
    return faiss.index_factory(dimension, factory, metric)


def _without_polysemous_codes(index: Any) -> None:
    """Keeps product quantizers from reordering their codes for a search by Hamming distance, which is never asked for.

    A factory string asks for it unless it ends in "np"; it takes many times as long as all of the rest of training.
    """
    if hasattr(index, "do_polysemous_training"):
        index.do_polysemous_training = False
    for name in ("index", "storage", "quantizer"):  # behind OPQ, of a graph, of inverted lists
        if isinstance(part := getattr(index, name, None), faiss.Index):
            _without_polysemous_codes(faiss.downcast_index(part))


def _inner(index: Any) -> Any:
    """The index behind OPQ, PCA and the like."""
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def _quantized(
    vectors: Vectors, precision: Literal["uint8", "ubinary"], ranges: Vectors | None = None
) -> npt.NDArray[np.uint8]:
    from sentence_transformers import quantize_embeddings  # brings torch, which the other kinds do without

    codes: npt.NDArray[np.uint8] = np.asarray(quantize_embeddings(vectors, precision=precision, ranges=ranges))
    return codes
