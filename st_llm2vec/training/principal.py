"""Principal components: of a teacher's vectors, and of token vectors."""

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
