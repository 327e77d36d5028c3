"""Token vectors to start the language model from: what occurs near what, counted and factorised.

A decoder of this size sees too few tokens to learn from scratch what its rarer tokens mean; counting reads the whole
corpus in a minute. Positive pointwise mutual information of tokens up to ten apart, the context's frequency to the
power 0.75, and the left singular vectors of that matrix (Levy, Goldberg and Dagan 2015, doi 10.1162/tacl_a_00134).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix
from settings import SEED

WINDOW = 10


def cooccurrences(documents: Iterable[list[int]], size: int) -> csr_matrix:
    """(size, size) symmetric counts of token pairs, each weighted by one over their distance."""
    gap = [-1] * WINDOW  # between documents
    ids = np.array([token for document in documents for token in [*document, *gap]], dtype=np.int32)
    counts = csr_matrix((size, size))
    for distance in range(1, WINDOW + 1):
        left, right = ids[:-distance], ids[distance:]
        for start in range(0, len(left), 4_000_000):
            a, b = left[start : start + 4_000_000], right[start : start + 4_000_000]
            inside = (a >= 0) & (b >= 0)
            weights = np.full(int(inside.sum()), 1 / distance)
            counts = counts + coo_matrix((weights, (a[inside], b[inside])), shape=(size, size)).tocsr()
    return counts + counts.T


def positive_pmi(counts: csr_matrix) -> csr_matrix:
    """max(0, log(p(a, b) / p(a) p(b))), the context's probability smoothed."""
    totals = np.asarray(counts.sum(axis=1)).ravel()
    smoothed = totals**0.75 / (totals**0.75).sum()
    pairs = counts.tocoo()
    information = np.log(pairs.data / (totals[pairs.row] * smoothed[pairs.col]))
    kept = information > 0
    return csr_matrix((information[kept].astype(np.float32), (pairs.row[kept], pairs.col[kept])), shape=counts.shape)


def token_vectors(documents: Iterable[list[int]], size: int, dimension: int) -> torch.Tensor:
    """(size, dimension) float32 of root mean square 1; a token that never occurs has the zero vector."""
    matrix = positive_pmi(cooccurrences(documents, size))
    basis = np.random.default_rng(SEED).standard_normal((size, dimension + 64), dtype=np.float32)
    basis, _ = np.linalg.qr(matrix @ basis)
    for _ in range(3):
        basis, _ = np.linalg.qr(matrix @ (matrix.T @ basis))
    left, _, _ = np.linalg.svd((matrix.T @ basis).T, full_matrices=False)
    vectors = torch.from_numpy(basis @ left)[:, :dimension]
    return vectors / vectors.square().mean().sqrt()
