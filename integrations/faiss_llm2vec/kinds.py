"""The index kinds of a store, one row each.

Every kind keeps the float32 vectors on disk (segments.py), so a kind is only a faster way to find candidates: they are
rescored with the float vectors, and the scores of a hit are exact in every kind. What a kind trades away is recall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss as _faiss

faiss: Any = _faiss  # its type stubs know half of its names and arguments; segments.py takes it from here

# How FAISS compares, by metric; cosine is the inner product of the normalised vectors that a store keeps.
METRICS = {"cosine": faiss.METRIC_INNER_PRODUCT, "dot": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}

# A segment below this size is scanned exactly in every kind: an index would cost more than it saves.
INDEX_FROM = 4096


@dataclass(frozen=True)
class Kind:
    """How one kind indexes the rows of a segment."""

    factory: str | None
    """FAISS factory string, `{nlist}` filled in per segment; None scans the float vectors."""

    oversample: int = 1
    """Candidates fetched per hit that is wanted, then rescored with the float vectors."""

    parameters: Callable[[Any, float, Any], Any] = lambda selector, spread, index: faiss.SearchParameters(sel=selector)
    """`(selector, spread, index)` -> search parameters. `spread` is rows / matching rows, >= 1: a graph or inverted
    list has to be searched that much wider to meet as many matching rows."""


KINDS: dict[str, Kind] = {
    # name            factory                                    RAM per vector (d floats are on disk in each)
    "flat": Kind(None),  #                                       4 d bytes; exact
    "fp16": Kind("SQfp16", oversample=2),  #                     2 d
    "sq8": Kind("SQ8", oversample=4),  #                         d
    "hnsw": Kind(  #                                             d + 260
        "HNSW32_SQ8",
        oversample=4,
        parameters=lambda selector, spread, index: faiss.SearchParametersHNSW(sel=selector, efSearch=int(128 * spread)),
    ),
    "ivf": Kind(  #                                              d + 8
        "IVF{nlist},SQ8",
        oversample=4,
        parameters=lambda selector, spread, index: faiss.SearchParametersIVF(
            sel=selector, nprobe=min(index.nlist, int(spread * max(16, index.nlist // 16)))
        ),
    ),
}


def build(factory: str, flat: Any) -> Any:
    """Returns the index of a kind over the vectors of `flat`, a FAISS flat index; its ids are the row numbers."""
    rows, dimension = flat.ntotal, flat.d
    vectors = faiss.rev_swig_ptr(flat.get_xb(), rows * dimension).reshape(rows, dimension)
    # FAISS asks for 39 training vectors per inverted list and warns below that.
    nlist = max(1, min(int(4 * rows**0.5), rows // 39))
    index = faiss.index_factory(dimension, factory.format(nlist=nlist), flat.metric_type)
    index.train(vectors)
    index.add(vectors)
    return index
