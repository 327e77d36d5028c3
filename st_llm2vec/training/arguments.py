"""The settings of a stage as arguments of the host's trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers

from ..recipes import TrainingSettings
from .scoring import Scoring

SAVE_STEPS = 200


def arguments(
    settings: TrainingSettings,
    prompts: Mapping[str, str],
    scoring: Scoring,
    *,
    batch_sampler: BatchSamplers | str,
    checkpoints: Path,
    learning_rates: Mapping[str, float],
) -> SentenceTransformerTrainingArguments:
    """Return the trainer's arguments for a stage.

    Args:
        prompts: By column.
        learning_rates: Those of some parameters, by patterns of their names in the loss.
    """
    evaluates = scoring != Scoring()
    batch = settings["batch_size"]
    given: dict[str, Any] = {
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "gradient_accumulation_steps": settings["gradient_accumulation"] or 1,
        "learning_rate": settings["learning_rate"],
        "weight_decay": settings["weight_decay"] or 0.0,
        "learning_rate_mapping": dict(learning_rates),
        "lr_scheduler_type": settings["scheduler"],
        "eval_strategy": "steps" if evaluates else "no",
        "save_total_limit": 2,
        "seed": settings["seed"],
        "bf16": bool(settings["bf16"]),
        "use_cpu": bool(settings["cpu"]) or not torch.accelerator.is_available(),
        "batch_sampler": batch_sampler,
        "prompts": dict(prompts) or None,
        "report_to": [],
        "disable_tqdm": True,
        **_steps(settings),
    }
    if settings["keep_best"]:
        given["save_steps"] = given["eval_steps"]
    return SentenceTransformerTrainingArguments(output_dir=str(checkpoints), **given)


def _steps(settings: TrainingSettings) -> dict[str, Any]:
    """How long a stage trains, and how often it is logged, saved and scored."""
    steps, warmup = settings["max_steps"], settings["warmup_steps"] or 0
    every = {name: settings[name] or SAVE_STEPS for name in ("eval_steps", "save_steps")}
    if steps is None:
        logging = settings["logging_steps"] or 0.05  # of all steps, which only the trainer knows
        return {"num_train_epochs": settings.epochs, "warmup_steps": warmup, "logging_steps": logging, **every}
    logging = settings["logging_steps"] or max(1, min(50, steps // 20))
    every = {name: min(value, steps) for name, value in every.items()}
    return {"max_steps": steps, "warmup_steps": warmup, "logging_steps": logging, **every}


def prompts_of(settings: TrainingSettings, name: str, columns: int) -> list[str]:
    """Return the prompt of each column of a data set: that of queries first, those of documents after it."""
    data = (settings.data or {})[name]
    query = settings["query_prompt"] if data.query_prompt is None else data.query_prompt
    document = settings["document_prompt"] if data.document_prompt is None else data.document_prompt
    return [query or "", *[document or ""] * (columns - 1)]


def column_of(name: str, column: str) -> str:
    """Return what a column is called while it trains, so that the trainer finds the prompt of this data set."""
    return f"{name}: {column}"
