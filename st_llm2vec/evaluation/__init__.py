"""Evaluation from plain files, offline: how good an encoder is, how sure that is, and what it must beat.

report.py               scores of models on tasks, with baselines
tasks.py                public sets by name, a user's own files by their columns
sts.py, retrieval.py, reranking.py, classification.py, clustering.py, pair_classification.py      kinds of tasks
words.py                linear probes on the vectors of words
kind.py                 what a kind of task is
files.py                the files of a task
intervals.py            bootstrap intervals, and the paired bootstrap between two models
baselines.py, bm25.py   BM25, the static-embedding baseline, PromptEOL
on_mteb.py              our encoders in mteb, and the paper's instructions (instructions.json)
in_training.py          tasks as the evaluator of a trainer
diagnosis.py            `doctor`, which examines an encoder
"""

from __future__ import annotations

import contextlib
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from .baselines import prompt_eol, static_model
    from .in_training import TaskEvaluator
    from .intervals import Difference, Score, average, compare
    from .report import Report, evaluate
    from .tasks import KINDS, TASKS

_WHERE = {
    "KINDS": "tasks",
    "TASKS": "tasks",
    "Difference": "intervals",
    "Report": "report",
    "Score": "intervals",
    "TaskEvaluator": "in_training",
    "average": "intervals",
    "compare": "intervals",
    "evaluate": "report",
    "prompt_eol": "baselines",
    "static_model": "baselines",
}

__all__ = [
    "KINDS",
    "TASKS",
    "Difference",
    "Report",
    "Score",
    "TaskEvaluator",
    "average",
    "compare",
    "evaluate",
    "prompt_eol",
    "static_model",
]


def name_in_mteb(module: ModuleType) -> None:
    """Let `mteb.get_model` open our names, where this is an mteb with the registry that we know; for the plugin."""
    with contextlib.suppress(MissingExtraError):
        from .on_mteb import register

        register()


def __getattr__(name: str) -> Any:
    if name in _WHERE:  # the kinds of tasks bring scikit-learn, which `doctor` does without
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
