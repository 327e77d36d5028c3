"""Scores of a stage before, while and after it trains: Spearman correlation on scored pairs, or the loss on rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, SentenceEvaluator

from ..errors import InvalidInputError
from ..readers import Rows, read_rows
from ..recipes import DataSet, TrainingSettings
from .data import Source, read_source
from .streams import file_hash

STS_COLUMNS = ("sentence1", "sentence2", "score")
SHOWN = ("eval_loss", "eval_masked_accuracy")


@dataclass(frozen=True)
class Scoring:
    """What a model is scored on; nothing if there is neither an evaluator nor data.

    Args:
        evaluator: One of the host's.
        data: Rows like those that are trained on.
        sha256: Of the file that either was read from.
    """

    evaluator: SentenceEvaluator | None = None
    data: Source | None = None
    sha256: str | None = None

    def best(self) -> tuple[str, bool]:
        """Return the figure that says which checkpoint is the best, and whether more of it is better.

        It has the trainer's name; an evaluator knows the name once it has scored.
        """
        if self.evaluator is None:
            return "eval_loss", False
        return f"eval_{self.evaluator.primary_metric or 'score'}", self.evaluator.greater_is_better

    def score(self, trainer: SentenceTransformerTrainer, max_seq_length: int) -> dict[str, float]:
        """Score the trainer's model; texts of the evaluator may be as long as those that the encoder takes."""
        if self.evaluator is None:
            found = trainer.evaluate() if self.data else {}
            if trainer.accelerator.num_processes > 1:  # marked as prepared, it would train without shared gradients
                trainer.accelerator.free_memory()
                trainer.model._is_accelerate_prepared = False  # type: ignore[assignment]
            return {name: float(value) for name, value in found.items() if name in SHOWN}
        model = trainer.model
        in_training, model.max_seq_length = model.max_seq_length, max_seq_length
        values = self.evaluator(model)
        model.max_seq_length = in_training
        values = values if isinstance(values, dict) else {"score": values}
        return {f"eval_{name}": float(value) for name, value in values.items()}


def read_scoring(settings: TrainingSettings, *, pairs: bool, least: int = 2) -> Scoring:
    """Read `eval_file`: an evaluator if it has scored pairs, else rows for the loss on them.

    Raises:
        As `read_source`; also InvalidInputError where a score is no number.
    """
    if settings["eval_file"] is None:
        return Scoring()
    file = Path(settings["eval_file"])
    rows, sha256 = read_rows(file), file_hash(file)
    if set(STS_COLUMNS) <= set(rows.columns):
        return Scoring(evaluator=_sts(rows), sha256=sha256)
    first = next(iter((settings.data or {}).values()))
    data = read_source("eval_file", DataSet(file, first.columns), pairs=pairs, seed=settings["seed"], least=least)
    return Scoring(data=data, sha256=sha256)


def _sts(rows: Rows) -> EmbeddingSimilarityEvaluator:
    first, second, scores = STS_COLUMNS
    try:
        golden = [float(row[scores]) for row in rows.values]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{rows.path}: a {scores!r} is missing or no number ({error}).") from error
    return EmbeddingSimilarityEvaluator(
        rows.texts(first), rows.texts(second), golden, similarity_fn_names=["cosine"], name="sts", write_csv=False
    )
