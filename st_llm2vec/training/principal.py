"""Principal components of vectors, and the rotation between two spaces of the same texts."""

from __future__ import annotations

import numpy as np

BLOCK = 8192  # rows in float64 at once


def principal(vectors: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (d,) and the strongest principal axes (d, components) of vectors (n, d), in float32.

    Args:
        vectors: All rows count alike.
        components: At most d. Each axis points where its largest entry is positive, so that the same rows in another
            order give the same axes.
    """
    mean = vectors.mean(0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(vectors), BLOCK):
        centred = vectors[start : start + BLOCK] - mean
        scatter += centred.T @ centred
    axes = np.linalg.eigh(scatter)[1][:, ::-1][:, :components]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return mean.astype(np.float32), axes.astype(np.float32)


def procrustes(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The rotation that brings vectors nearest to those of another space, in row, means aside (Procrustes).

    Args:
        vectors: (rows, dimensions).
        others: (rows, other dimensions).

    Returns:
        (dimensions, other dimensions) in float32. Its rows are orthonormal, so that all distances stay; the columns are
        where there are fewer of them.
    """
    centred, towards = (each.astype(np.float64) - each.mean(0, dtype=np.float64) for each in (vectors, others))
    left, _, right = np.linalg.svd(centred.T @ towards, full_matrices=False)
    return np.asarray(left @ right, np.float32)
