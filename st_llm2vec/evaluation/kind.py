"""A kind of task: what it reads, how a model is measured on it, and the figure that gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .files import Source
from .intervals import Statistic


@dataclass(frozen=True)
class Kind:
    """One row for each way of scoring an encoder.

    Attributes:
        name: What `--kind` calls it.
        metric: The name of its figure.
        columns: Those of its file; a file with these is of this kind.
        layout: Its files in a few words, for `eval --help` and the documents.
        read: From the files of a task to its examples.
        measure: From a model and the examples to items, float (n, columns), one row for everything scored.
        statistic: From items to the figure.
        bm25: `measure` for BM25, where texts are ranked by a query.
        static: Whether the static-embedding baseline can be measured.
    """

    name: str
    metric: str
    columns: tuple[str, ...]
    layout: str
    read: Callable[[Source], Any]
    measure: Callable[[Any, Any], Any]
    statistic: Statistic
    bm25: Callable[[Any], Any] | None = None
    static: bool = True


def vectors(encode: Callable[..., Any], texts: list[str], **options: Any) -> Any:
    """Vectors of texts, on the CPU as the host's evaluators take them: (n, dimension)."""
    return encode(texts, show_progress_bar=False, convert_to_tensor=True, **options).float().cpu()


def run(evaluator: Any, model: Any) -> None:
    """Run an evaluator of the host without leaving its figures, under no name, in the model's card."""
    evaluator.store_metrics_in_model_card_data = lambda *_: None
    evaluator(model)
