"""Pair classification: do two texts mean the same? Average precision of cosine similarity."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from ..errors import InvalidInputError
from .files import Source, number, text
from .kind import Kind
from .sts import Pairs, similarities


def read(source: Source) -> Pairs:
    """Columns sentence1, sentence2, label (1 where they mean the same, else 0)."""
    rows = source.rows("sentence1", "sentence2", "label")
    labels = np.array([number(row, "label") for row in rows])
    if set(labels) != {0, 1}:
        raise InvalidInputError(
            f"{source.path}: label must be 1 (the same) or 0, and each there once; got {sorted(set(labels))[:5]}."
        )
    return Pairs([text(row, "sentence1") for row in rows], [text(row, "sentence2") for row in rows], labels)


def average_precision(items: Any) -> float:
    """Average precision of the similarities; nan where no pair means the same."""
    return float(average_precision_score(items[:, 1], items[:, 0])) if items[:, 1].any() else float("nan")


KIND = Kind(
    name="pair_classification",
    metric="AP",
    columns=("sentence1", "sentence2", "label"),
    layout="test.*: sentence1, sentence2, label (1 or 0)",
    read=read,
    measure=similarities,
    statistic=average_precision,
)
