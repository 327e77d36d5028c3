"""The training objectives as rows of one table: how each makes its data set, its loss and its batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import cos_sim
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..model import LLM2Vec
from ..recipes import TrainingSettings
from .data import Source, texts, tuples
from .mntp import MNTPDataCollator, MNTPLoss, chunk_texts
from .simcse import attention_dropout, simcse_pairs


@dataclass(frozen=True)
class Objective:
    """How one objective differs from the others.

    Args:
        dataset: What is trained on, of what was read.
        loss: The loss of a model.
        pairs: Whether a row of the data is several texts.
        collator: Makes batches; None takes the host's.
        around: Holds while the model trains.
        batch_sampler: The host's name of how rows become batches.
        never_after: Stages that undo what this one starts from.
    """

    dataset: Callable[[LLM2Vec, Source], Dataset]
    loss: Callable[[LLM2Vec, TrainingSettings], nn.Module]
    pairs: bool = False
    collator: Callable[[LLM2Vec, TrainingSettings], Any] = lambda model, settings: None
    around: Callable[[LLM2Vec, TrainingSettings], AbstractContextManager[None]] = lambda model, settings: nullcontext()
    batch_sampler: BatchSamplers = BatchSamplers.NO_DUPLICATES  # a duplicate would be its own negative
    never_after: tuple[str, ...] = ()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity in float32: bfloat16 would round it to 1/256, which the loss then multiplies by its scale."""
    with torch.autocast(a.device.type, enabled=False):
        similarity: Tensor = cos_sim(a.float(), b.float())
    return similarity


def _contrastive(model: LLM2Vec, settings: TrainingSettings) -> nn.Module:
    shared = {
        "scale": settings["scale"],
        "similarity_fct": cosine,
        "gather_across_devices": PartialState().num_processes > 1,
        "directions": ("query_to_doc", "doc_to_query") if settings["symmetric"] else ("query_to_doc",),
    }
    size = settings["mini_batch_size"]
    loss: nn.Module = (
        MultipleNegativesRankingLoss(model, **shared)
        if size is None or size >= settings["batch_size"]
        else CachedMultipleNegativesRankingLoss(model, mini_batch_size=size, **shared)
    )
    if dims := settings["matryoshka_dims"]:
        whole = model.get_embedding_dimension()
        if dims[0] > whole:
            raise InvalidInputError(f"matryoshka_dims must be at most the encoder's {whole} dimensions, got {dims[0]}.")
        loss = MatryoshkaLoss(model, loss, sorted({*dims, whole}, reverse=True))
    return loss


OBJECTIVES: dict[str, Objective] = {
    "mntp": Objective(
        dataset=lambda model, source: chunk_texts(texts(source), model.tokenizer, model.max_seq_length),
        loss=lambda model, settings: MNTPLoss(model, train_head=bool(settings["train_head"])),
        collator=lambda model, settings: MNTPDataCollator(
            model.preprocess,
            tokenizer=model.tokenizer,
            mlm_probability=settings["mask_probability"],
            all_mask=bool(settings["all_mask"]),
            mask_token=settings["mask_token"],
            seed=settings["seed"],
        ),
        batch_sampler=BatchSamplers.BATCH_SAMPLER,
        never_after=("simcse", "supervised"),
    ),
    "simcse": Objective(
        dataset=lambda model, source: simcse_pairs(texts(source)),
        loss=_contrastive,
        around=lambda model, settings: attention_dropout(model, settings["attention_dropout"]),
    ),
    "supervised": Objective(dataset=lambda model, source: tuples(source), loss=_contrastive, pairs=True),
}
