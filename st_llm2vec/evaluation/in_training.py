"""Tasks as the evaluator of a `SentenceTransformerTrainer`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from .tasks import find


class TaskEvaluator(SentenceEvaluator):
    """Score tasks while a model trains; their files are read once.

    Args:
        tasks: Names of `TASKS`, or folders of `data`.
        data: The folder of the tasks.
        split: "dev": settings are chosen on what is watched.

    Example:
        SentenceTransformerTrainer(..., evaluator=TaskEvaluator(["stsb"], "data"))
    """

    def __init__(self, tasks: Sequence[str], data: str | Path, *, split: str = "dev") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tasks = [(task, task.kind.read(task.source)) for task in find(data, tasks, split=split)]
        self.primary_metric = self._metric(self.tasks[0][0])

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """The figure of each task, such as `{"stsb_spearman": 0.7}`."""
        found = {
            self._metric(task): task.kind.statistic(task.kind.measure(model, examples)) for task, examples in self.tasks
        }
        self.store_metrics_in_model_card_data(model, found, epoch, steps)
        return found

    @staticmethod
    def _metric(task: Any) -> str:
        return f"{task.name}_{task.kind.metric.lower()}"
