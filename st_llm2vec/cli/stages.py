"""The three training stages as rows of one table, and the run they share.

A run leaves `OUTPUT/checkpoints/checkpoint-N` (adapter + optimizer, to resume from) and, at its end, the merged encoder
in OUTPUT. torch comes with this module; train.py imports it inside the command.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import InvalidInputError
from ..model import LLM2Vec
from ..readers import TEXT_COLUMN, Rows, read_rows
from ..training import (
    MNTPDataCollator,
    MNTPLoss,
    add_lora,
    attention_dropout,
    chunk_texts,
    merge_lora,
    mntp,
    simcse,
    simcse_pairs,
    supervised,
)
from ..vetting import read_json
from .options import note, open_model

SETTINGS_FILE = "train.json"
STS_COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True)
class Settings:
    """What `st-llm2vec train` was asked for; None takes the stage's preset."""

    stage: str
    model: str
    columns: tuple[str, ...]
    full: bool
    lora_r: int
    max_steps: int | None
    batch_size: int | None
    mini_batch_size: int | None
    learning_rate: float | None
    max_seq_length: int | None
    save_steps: int | None
    query_prompt: str | None
    document_prompt: str | None
    dtype: str | None
    bf16: bool
    cpu: bool
    seed: int

    def must_stay(self) -> dict[str, Any]:
        """What a resumed run cannot change: the saved weights' shape and meaning, what is drawn, in which order."""
        fixed = ("stage", "model", "full", "lora_r", "batch_size", "max_seq_length", "dtype", "seed")
        return {key: value for key, value in asdict(self).items() if key in fixed}


@dataclass(frozen=True)
class Stage:
    """How one stage differs from the others.

    dataset(model, rows, columns) gives the rows to train on, loss(model, mini_batch_size) the loss.
    """

    preset: Mapping[str, Any]
    dataset: Callable[[LLM2Vec, Rows, tuple[str, ...]], Dataset]
    loss: Callable[[LLM2Vec, int | None], nn.Module]
    collator: Callable[[LLM2Vec, int], Any] = lambda model, seed: None
    dropout: Callable[[LLM2Vec], AbstractContextManager[None]] = lambda model: nullcontext()
    batch_sampler: BatchSamplers = BatchSamplers.NO_DUPLICATES  # a duplicate would be its own negative


def _chunks(model: LLM2Vec, rows: Rows, columns: tuple[str, ...]) -> Dataset:
    return chunk_texts(_single(rows, columns), model.tokenizer, model.max_seq_length)


def _same_twice(model: LLM2Vec, rows: Rows, columns: tuple[str, ...]) -> Dataset:
    return simcse_pairs(_single(rows, columns))


def _tuples(model: LLM2Vec, rows: Rows, columns: tuple[str, ...]) -> Dataset:
    names = columns or tuple(rows.columns)
    if len(names) < 2:
        raise InvalidInputError(
            f"{rows.path} has the one column {names[0]!r}; supervised training takes an anchor, a positive "
            "and, if there are any, hard negatives: --columns question,answer."
        )
    return Dataset.from_dict({name: rows.texts(name) for name in names})


def _single(rows: Rows, columns: tuple[str, ...]) -> list[str]:
    if len(columns) > 1:
        raise InvalidInputError(f"--columns {','.join(columns)}: this stage trains on one column.")
    return rows.texts(columns[0] if columns else TEXT_COLUMN)


def _contrastive(scale: float) -> Callable[[LLM2Vec, int | None], nn.Module]:
    def loss(model: LLM2Vec, mini_batch_size: int | None) -> nn.Module:
        if mini_batch_size is None:
            made: nn.Module = MultipleNegativesRankingLoss(model, scale=scale)
        else:
            made = CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=mini_batch_size)
        return made

    return loss


STAGES: dict[str, Stage] = {
    "mntp": Stage(
        preset=mntp.PRESET,
        dataset=_chunks,
        loss=lambda model, mini_batch_size: MNTPLoss(model),
        collator=lambda model, seed: MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, seed=seed),
        batch_sampler=BatchSamplers.BATCH_SAMPLER,
    ),
    "simcse": Stage(
        preset=simcse.PRESET, dataset=_same_twice, loss=_contrastive(simcse.SCALE), dropout=attention_dropout
    ),
    "supervised": Stage(preset=supervised.PRESET, dataset=_tuples, loss=_contrastive(supervised.SCALE)),
}


def run(settings: Settings, texts: Path, eval_file: Path | None, output: Path, *, resume: bool) -> None:
    """Trains one stage and saves the merged encoder."""
    stage, checkpoints = STAGES[settings.stage], output / "checkpoints"
    last = _last_checkpoint(settings, output, checkpoints, resume)
    rows, eval_rows = read_rows(texts), read_rows(eval_file) if eval_file else None
    model = open_model(
        settings.model,
        dtype=settings.dtype or ("float32" if settings.full else None),
        device="cpu" if settings.cpu else None,
    )
    model.train()  # ordinary layers in one dtype, before an optimizer holds their weights
    model.prompts.update(_prompts(settings))
    own_length, model.max_seq_length = model.max_seq_length, settings.max_seq_length or model.max_seq_length
    dataset = stage.dataset(model, rows, settings.columns)
    evaluation = _evaluation(stage, model, settings, eval_rows) if eval_rows else {}
    if not settings.full:
        add_lora(model, settings.stage, r=settings.lora_r, seed=settings.seed)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=_arguments(stage, settings, dataset, checkpoints, evaluates=bool(evaluation)),
        train_dataset=dataset,
        loss=stage.loss(model, settings.mini_batch_size),
        data_collator=stage.collator(model, settings.seed),
        **evaluation,
    )
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2), encoding="utf-8")
    with stage.dropout(model):
        trainer.train(resume_from_checkpoint=last)
    if settings.full:
        model.provenance.setdefault("stages", []).append(settings.stage)
    else:
        merge_lora(model)
    model.max_seq_length = own_length
    model.save_pretrained(str(output))
    note(f"{output}: {settings.stage}, {trainer.state.global_step} steps on {len(dataset)} rows.")


def _last_checkpoint(settings: Settings, output: Path, checkpoints: Path, resume: bool) -> str | None:
    """The checkpoint to go on from; None to start."""
    if not resume:
        if output.exists() and (output.is_file() or any(output.iterdir())):
            raise FileExistsError(f"{output} exists already. Continue its run with --resume, or choose another folder.")
        return None
    started = checkpoints / SETTINGS_FILE
    before = read_json(started)
    for key, value in settings.must_stay().items():
        if before.get(key, value) != value:
            raise InvalidInputError(
                f"The run in {output} has {key}={before[key]!r}, not {value!r}. Resume it as it began."
            )
    last = last_checkpoint(checkpoints)
    note(f"Resuming from {last}." if last else f"{checkpoints} has no checkpoint yet; starting.")
    return last


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written to its end: the trainer's state is the last file of each."""
    found = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(found):
        if _is_json(path / TRAINER_STATE_NAME):
            return str(path)
        note(f"{path} was not written to its end and is left out.")
    return None


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _prompts(settings: Settings) -> dict[str, str]:
    prompts = {"query": settings.query_prompt, "document": settings.document_prompt}
    return {name: prompt for name, prompt in prompts.items() if prompt}


def _arguments(
    stage: Stage, settings: Settings, dataset: Dataset, checkpoints: Path, *, evaluates: bool
) -> SentenceTransformerTrainingArguments:
    preset = dict(stage.preset)
    steps = settings.max_steps or preset["max_steps"]
    every = {name: min(preset.get(name) or steps, steps) for name in ("eval_steps", "save_steps")}
    prompts = _prompts(settings)
    by_column = {
        name: prompts.get("query" if i == 0 else "document", "") for i, name in enumerate(dataset.column_names)
    }
    preset |= {
        "max_steps": steps,
        "warmup_steps": round(preset.get("warmup_steps", 0) * steps / preset["max_steps"]),
        "per_device_train_batch_size": settings.batch_size or preset["per_device_train_batch_size"],
        "per_device_eval_batch_size": settings.batch_size or preset["per_device_train_batch_size"],
        "learning_rate": settings.learning_rate or preset["learning_rate"],
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": every["eval_steps"],
        "save_steps": settings.save_steps or every["save_steps"],
        "save_total_limit": 2,
        "logging_steps": max(1, min(50, steps // 20)),
        "seed": settings.seed,
    }
    return SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        batch_sampler=stage.batch_sampler,
        prompts=by_column if prompts else None,
        bf16=settings.bf16,
        use_cpu=settings.cpu or not torch.accelerator.is_available(),
        report_to=[],
        **preset,
    )


def _evaluation(stage: Stage, model: LLM2Vec, settings: Settings, rows: Rows) -> dict[str, Any]:
    """The trainer's arguments for evaluation: Spearman correlation on scored pairs, else the loss on rows like those
    that are trained on."""
    if not set(STS_COLUMNS) <= set(rows.columns):
        return {"eval_dataset": stage.dataset(model, rows, settings.columns)}
    first, second, scores = STS_COLUMNS
    try:
        golden = [float(row[scores]) for row in rows.values]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{rows.path}: a {scores!r} is missing or no number ({error}).") from error
    evaluator = EmbeddingSimilarityEvaluator(
        rows.texts(first), rows.texts(second), golden, similarity_fn_names=["cosine"], name="sts", write_csv=False
    )
    return {"evaluator": evaluator}
