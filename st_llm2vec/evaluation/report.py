"""Scores of models on tasks, with the ladder of baselines below them, as a table that a terminal or a page can show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from ..errors import InvalidInputError
from .baselines import static_model
from .intervals import DRAWS, Difference, Score, compare, score
from .tasks import Found, find

BM25, STATIC = "BM25", "static-embedding baseline"
HEADER = ("task", "model", "metric", "value", "95 % interval", "n")


@dataclass(frozen=True)
class Report:
    """Scores, task by task: the baselines, then the models in the order in which they were given."""

    scores: tuple[Score, ...]
    models: tuple[str, ...]

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def of(self, task: str, model: str) -> Score:
        """The score of one model on one task."""
        for each in self.scores:
            if (each.task, each.model) == (task, model):
                return each
        raise InvalidInputError(f"There is no score of {model!r} on {task!r}.")

    def differences(self) -> list[Difference]:
        """How far the first model is above every baseline and every other model, task by task."""
        return [
            compare(self.of(other.task, self.models[0]), other)
            for other in self.scores
            if other.model != self.models[0]
        ]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {
            "scores": [each.to_dict() for each in self.scores],
            "differences": [each.to_dict() for each in self.differences()],
        }

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and rows; the last column is the first model less the row's, in the paired bootstrap."""
        above = {(each.task, each.against): each for each in self.differences()}
        header = (*HEADER, f"{self.models[0]} is above it by")
        return header, [(*cells(each), _signed(above.get((each.task, each.model)))) for each in self.scores]

    def to_markdown(self) -> str:
        """The table in Markdown."""
        header, rows = self.table()
        lines = [header, tuple("---" for _ in header), *rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def cells(each: Score) -> tuple[str, ...]:
    """A score as a table has it."""
    return (each.task, each.model, each.metric, f"{each.value:.4f}", f"{each.low:.3f} to {each.high:.3f}", str(each.n))


def _signed(difference: Difference | None) -> str:
    if difference is None:
        return ""
    mark = "" if difference.excludes_zero else " (not significant)"
    return f"{difference.value:+.4f} ({difference.low:+.3f} to {difference.high:+.3f}){mark}"


def evaluate(
    models: SentenceTransformer | Mapping[str, Any],
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    *,
    split: str = "test",
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    baselines: bool = False,
    draws: int = DRAWS,
    on_score: Callable[[Score], None] = lambda score: None,
) -> Report:
    """Score models on tasks that lie in files.

    Args:
        models: An encoder, or several by name; the first is compared with all others.
        tasks: Names of `TASKS` or folders of `data`; none where `data` is one task.
        data: A folder of task folders, the folder of one task, or one file.
        split: "test" to report, "dev" to choose.
        kind: What a user's own files are; default: by their columns.
        columns: Where a user's own columns have other names: the kind's -> the files'.
        baselines: Also score BM25, where texts are ranked, and the mean of each model's own input embeddings, which no
            layer has touched: what the layers add is the difference.
        draws: Of the bootstrap.
        on_score: Called with each score as it is there.

    Raises:
        InvalidInputError: An unknown task, or files that are not there or of no known kind.

    Example:
        report = evaluate({"mine": model}, ["stsb"], "data", baselines=True)
        print(report.to_markdown())
    """
    if data is None:
        raise InvalidInputError("data must be the folder or file of the tasks.")
    named = {"model": models} if not isinstance(models, Mapping) else dict(models)
    if not named:
        raise InvalidInputError("models must name at least one encoder.")
    found = find(data, tasks, split=split, kind=kind, columns=columns)
    examples = [task.kind.read(task.source) for task in found]  # all of them, before the first is scored
    static = _static(named) if baselines else {}
    scores: list[Score] = []
    for task, given in zip(found, examples, strict=True):
        for name, items in _items(task, given, named, static, baselines):
            scores.append(score(name, task.name, task.kind.metric, items, task.kind.statistic, draws))
            on_score(scores[-1])
    return Report(tuple(scores), tuple(named))


def _items(
    task: Found, examples: Any, models: Mapping[str, Any], static: Mapping[str, Any], baselines: bool
) -> Iterator[tuple[str, Any]]:
    if baselines and task.kind.bm25:
        yield BM25, task.kind.bm25(examples)
    rivals = {**(static if task.kind.static else {}), **models}
    for name, model in rivals.items():
        training = getattr(model, "training", False)
        try:
            if training:
                model.eval()
            yield name, task.kind.measure(model, examples)
        finally:
            if training:
                model.train()


def _static(models: Mapping[str, Any]) -> dict[str, SentenceTransformer]:
    """A baseline for each model, but one for all that have the same embeddings (stages of one decoder have)."""
    made: dict[str, SentenceTransformer] = {}
    seen: list[Any] = []
    for name, model in models.items():
        try:
            baseline = static_model(model)
        except (InvalidInputError, TypeError):  # a StaticEmbedding is one itself; others have no tokens to embed
            continue
        embeddings: Any = baseline[0].embeddings
        weight = embeddings.weight
        if not any(weight.shape == other.shape and torch.equal(weight, other.to(weight)) for other in seen):
            seen.append(weight)
            made[STATIC if len(models) == 1 else f"{STATIC} of {name}"] = baseline
    return made
