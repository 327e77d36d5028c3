"""How sure a score is: bootstrap intervals, and the paired bootstrap between two models.

A task leaves one row of figures for every pair, query, text or sentence that it scored; a draw takes as many of these
rows with replacement and computes the score of those. The draws depend on the number of rows alone, so two models on
one task see the same draws, and the differences of their draws are the paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InvalidInputError

DRAWS, SEED, LEVEL = 1000, 0, 95.0
Statistic = Callable[[Any], float]


@dataclass(frozen=True)
class Score:
    """One figure of one model on one task.

    Attributes:
        value: In [-1, 1] for correlations, [0, 1] for all others.
        low, high: The 95 % bootstrap interval.
        n: How many pairs, queries, texts or sentences it is of.
        draws: The value in every draw of the bootstrap, float64 (draws,).
    """

    model: str
    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    draws: Any = field(repr=False, compare=False)

    def to_dict(self, *, draws: bool = False) -> dict[str, Any]:
        """The score as JSON has it; with its draws it can be compared later."""
        names = ("model", "task", "metric", "value", "low", "high", "n")
        found = {name: getattr(self, name) for name in names}
        if draws:
            found["draws"] = [round(each, 6) if np.isfinite(each) else None for each in self.draws.tolist()]
        return found

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Score:
        """The score that `to_dict(draws=True)` wrote."""
        return cls(**{**found, "draws": np.array(found["draws"], dtype=np.float64)})


@dataclass(frozen=True)
class Difference:
    """How far `model` is above `against` on one task, in the paired bootstrap; `excludes_zero` is the verdict."""

    model: str
    against: str
    task: str
    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the 95 % interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON has it."""
        return {**self.__dict__, "excludes_zero": self.excludes_zero}


def bootstrap(items: Any, statistic: Statistic, *, draws: int = DRAWS, seed: int = SEED) -> Any:
    """Compute a statistic on resampled rows.

    Args:
        items: (n, columns), one row for everything that was scored.
        statistic: From such rows to a figure; nan where it has none.
        draws: How often.
        seed: Of the draws; equal seeds and n give equal draws.

    Returns:
        float64 (draws,).
    """
    random = np.random.default_rng(seed)
    return np.array([statistic(items[random.integers(len(items), size=len(items))]) for _ in range(draws)])


def interval(draws: Any) -> tuple[float, float]:
    """The percentile interval of the draws; draws without a figure are left out."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def score(model: str, task: str, metric: str, items: Any, statistic: Statistic, draws: int = DRAWS) -> Score:
    """Make a score, with its interval, of what a model left on a task.

    Raises:
        InvalidInputError: The statistic is no number on these items, so neither is the score.
    """
    value = float(statistic(items))
    if not np.isfinite(value):
        raise InvalidInputError(
            f"{model} has no {metric} on {task}: all {len(items)} similarities or all scores are the same, or not "
            "finite."
        )
    found = bootstrap(items, statistic, draws=draws)
    return Score(model, task, metric, value, *interval(found), len(items), found)


def compare(score: Score, against: Score) -> Difference:
    """Compare two models on one task with the paired bootstrap.

    Raises:
        InvalidInputError: The scores are of different tasks, items or numbers of draws.
    """
    if (score.task, score.metric, score.n, len(score.draws)) != (
        against.task,
        against.metric,
        against.n,
        len(against.draws),
    ):
        raise InvalidInputError(
            f"Only scores of the same items can be compared, got {score.metric} of {score.task} over {score.n} and "
            f"{against.metric} of {against.task} over {against.n}."
        )
    low, high = interval(score.draws - against.draws)
    return Difference(score.model, against.model, score.task, score.value - against.value, low, high)


def average(scores: Sequence[Score], *, seed: int = SEED) -> Score:
    """Average scores of one task over runs (seeds of a training): each draw takes runs with replacement, too.

    The interval so covers both what was drawn for the test set and what was drawn for the trainings. Runs are paired by
    their order when two averages are compared.
    """
    first = scores[0]
    draws = np.stack([each.draws for each in scores])  # (runs, draws)
    chosen = np.random.default_rng(seed).integers(len(scores), size=draws.shape)
    mixed = np.take_along_axis(draws, chosen, axis=0).mean(0)
    value = float(np.mean([each.value for each in scores]))
    return Score(first.model, first.task, first.metric, value, *interval(mixed), first.n, mixed)
