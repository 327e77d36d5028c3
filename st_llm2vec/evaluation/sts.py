"""Semantic textual similarity: Spearman's rank correlation of cosine similarity with human scores."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import ConstantInputWarning, spearmanr
from sentence_transformers.util import pairwise_cos_sim

from .files import Source, number, text
from .kind import Kind, vectors


class Pairs(NamedTuple):
    """Pairs of texts with what is known of each: a score, or whether they mean the same."""

    first: list[str]
    second: list[str]
    known: Any  # (pairs,)


def read(source: Source) -> Pairs:
    """Columns sentence1, sentence2, score."""
    rows = source.rows("sentence1", "sentence2", "score")
    return Pairs(
        [text(row, "sentence1") for row in rows],
        [text(row, "sentence2") for row in rows],
        np.array([number(row, "score") for row in rows]),
    )


def similarities(model: Any, pairs: Pairs) -> Any:
    """Columns: the cosine similarity of a pair, and what is known of it."""
    first, second = vectors(model.encode, pairs.first), vectors(model.encode, pairs.second)
    return np.stack([pairwise_cos_sim(first, second).numpy(), pairs.known], axis=1)


def spearman(items: Any) -> float:
    """Spearman's rank correlation of the two columns; nan where one of them is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(spearmanr(items[:, 0], items[:, 1]).statistic)


KIND = Kind(
    name="sts",
    metric="Spearman",
    columns=("sentence1", "sentence2", "score"),
    layout="test.*: sentence1, sentence2, score",
    read=read,
    measure=similarities,
    statistic=spearman,
)
