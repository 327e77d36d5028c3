"""Principal components: of a teacher's vectors, and of token vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BLOCK = 8192  # rows in float64 at once


def principal(vectors: Sequence[np.ndarray], components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (d,) and the strongest principal axes (d, components) of all rows, in float32.

    Args:
        vectors: Arrays (..., d), of which all rows count alike.
        components: At most d. Each axis points where its largest entry is positive, so that the same rows in another
            order give the same axes.
    """
    flat = [each.reshape(-1, each.shape[-1]) for each in vectors]
    mean = sum(each.sum(0, dtype=np.float64) for each in flat) / sum(map(len, flat))
    scatter = np.zeros((len(mean), len(mean)))
    for each in flat:
        for start in range(0, len(each), BLOCK):
            centred = each[start : start + BLOCK] - mean
            scatter += centred.T @ centred
    axes = np.linalg.eigh(scatter)[1][:, ::-1][:, :components]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return mean.astype(np.float32), axes.astype(np.float32)
