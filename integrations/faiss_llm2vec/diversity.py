"""Maximal marginal relevance: hits that are near the query and far from each other."""

from __future__ import annotations

import numpy as np

from faiss_llm2vec.kinds import Vectors


def diverse(query: Vectors, vectors: Vectors, k: int, relevance: float) -> list[int]:
    """Positions of up to `k` of `vectors` (n, dimension), in the order of picking.

    Args:
        query: (dimension,).
        relevance: 1.0 picks by similarity to the query only, 0.0 by difference from what was picked only.
    """
    if not len(vectors):
        return []  # those of a store without documents have no dimension yet
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
