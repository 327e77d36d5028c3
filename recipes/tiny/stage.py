"""What the stages after pre-training share: the command line, the trainer's settings, resuming, saving."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.util import cos_sim
from settings import SEED, adamw
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

import st_llm2vec
from st_llm2vec.evaluation import TaskEvaluator


def options(doc: str | None) -> argparse.Namespace:
    """`--data` and `--out`, which every stage takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets, <name>/<split>.jsonl.xz")
    parser.add_argument("--out", type=Path, required=True, help="folder of all stages, for example build/tiny")
    return parser.parse_args()


def start(out: Path, before: str, **settings: Any) -> st_llm2vec.LLM2Vec:
    """The encoder that the stage before left."""
    set_seed(SEED)
    return st_llm2vec.load(str(out / before), **settings)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine similarity in float32: autocast would round it to 1/256, which the loss then multiplies by its scale."""
    with torch.autocast(a.device.type, enabled=False):
        return cos_sim(a.float(), b.float())


def train(
    model: st_llm2vec.LLM2Vec,
    loss: Any,
    dataset: Dataset | DatasetDict,
    out: Path,
    data: Path,
    *,
    eval_dataset: Dataset | None = None,
    collator: Any = None,
    learning_rate: float,
    weight_decay: float = 0.0,
    **settings: Any,
) -> None:
    """Trains, resuming from the newest checkpoint in `out`, and saves the encoder there."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out / "checkpoints"),
        per_device_eval_batch_size=64,
        lr_scheduler_type="cosine",
        eval_strategy="steps",
        eval_steps=settings.pop("eval_steps", 200),
        save_steps=200,
        save_total_limit=1,
        logging_steps=50,
        report_to=[],
        seed=SEED,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        **settings,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        evaluator=TaskEvaluator(["stsb"], data),
        loss=loss,
        data_collator=collator,
        optimizers=(adamw(loss, learning_rate, weight_decay=weight_decay), None),
    )
    checkpoint = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    model.save_pretrained(str(out))
