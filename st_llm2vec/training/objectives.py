"""The training objectives as rows of one table: how each makes its data set, its loss and its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn

from ..errors import InvalidInputError
from ..model import LLM2Vec
from ..recipes import TrainingSettings
from .chunks import chunk_texts
from .data import Source, texts, tuples
from .distill import distillation, require_teachable, taught, with_teacher
from .guided import grad_cached, guided, require_fitting
from .mntp import MaskedAccuracy, MNTPDataCollator, MNTPLoss
from .simcse import attention_dropout, simcse_pairs
from .similarity import cosine
from .streams import SHUFFLED, endless

Log = Callable[[str], None]
Sources = tuple[dict[str, Source], Source | None]
Prepare = Callable[[dict[str, Source], Source | None, TrainingSettings, Path, Log, int | None], Sources]


@dataclass(frozen=True)
class Objective:
    """How one objective differs from the others.

    Args:
        dataset: What is trained on, of what was read.
        loss: The loss of a model, for the sources that it trains on.
        pairs: Whether a row of the data is several texts, all columns if none are named.
        least: Columns of such a row, at least.
        loss_learns: Whether the loss has weights of its own, which a checkpoint keeps beside the model.
        require: Raises where the sources and settings do not go together.
        prepare: Adds to the sources and evaluation data what takes long, kept beside checkpoints; None adds nothing.
        collator: Makes batches; None takes the host's.
        evaluator: What is told besides the loss on evaluation data.
        around: Holds while the model trains.
        batch_sampler: The host's name of how rows become batches.
        never_after: Stages that undo what this one starts from.
    """

    dataset: Callable[[LLM2Vec, TrainingSettings, Source], Dataset | IterableDataset]
    loss: Callable[[LLM2Vec, TrainingSettings, Mapping[str, Source]], nn.Module]
    pairs: bool = False
    least: int = 2
    loss_learns: Callable[[TrainingSettings], bool] = lambda settings: False
    require: Callable[[dict[str, Source], TrainingSettings], None] = lambda sources, settings: None
    prepare: Prepare | None = None
    collator: Callable[[LLM2Vec, TrainingSettings], Any] = lambda model, settings: None
    evaluator: Callable[[Any], SentenceEvaluator | None] = lambda loss: None
    around: Callable[[LLM2Vec, TrainingSettings], AbstractContextManager[None]] = lambda model, settings: nullcontext()
    batch_sampler: BatchSamplers | str = BatchSamplers.NO_DUPLICATES  # a duplicate would be its own negative
    never_after: tuple[str, ...] = ()


def _contrastive(model: LLM2Vec, settings: TrainingSettings, sources: Mapping[str, Source]) -> nn.Module:
    shared = {
        "scale": settings["scale"],
        "similarity_fct": cosine,
        "gather_across_devices": PartialState().num_processes > 1,
        "directions": ("query_to_doc", "doc_to_query") if settings["symmetric"] else ("query_to_doc",),
    }
    loss: nn.Module
    if settings["guide"] is not None:
        loss = guided(model, settings)
    elif grad_cached(settings):
        loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=settings["mini_batch_size"], **shared)
    else:
        loss = MultipleNegativesRankingLoss(model, **shared)
    if dims := settings["matryoshka_dims"]:
        whole = model.get_embedding_dimension()
        if dims[0] > whole:
            raise InvalidInputError(f"matryoshka_dims must be at most the encoder's {whole} dimensions, got {dims[0]}.")
        loss = MatryoshkaLoss(model, loss, sorted({*dims, whole}, reverse=True))
    return loss


def _chunks(model: LLM2Vec, settings: TrainingSettings, source: Source) -> Dataset | IterableDataset:
    across = settings["cross_documents"] is not False
    chunks = chunk_texts(texts(source), model.tokenizer, model.max_seq_length, cross_documents=across)
    if isinstance(chunks, IterableDataset):  # the trainer shuffles the others
        return endless(chunks.shuffle(seed=settings["seed"], buffer_size=SHUFFLED))
    return chunks


OBJECTIVES: dict[str, Objective] = {
    "mntp": Objective(
        dataset=_chunks,
        loss=lambda model, settings, sources: MNTPLoss(model, train_head=bool(settings["train_head"])),
        collator=lambda model, settings: MNTPDataCollator(
            model.preprocess,
            tokenizer=model.tokenizer,
            mlm_probability=settings["mask_probability"],
            all_mask=bool(settings["all_mask"]),
            mask_token=settings["mask_token"],
            seed=settings["seed"],
        ),
        evaluator=MaskedAccuracy,
        loss_learns=lambda settings: bool(settings["train_head"]),
        batch_sampler=BatchSamplers.BATCH_SAMPLER,
        never_after=("simcse", "supervised", "distill"),
    ),
    "simcse": Objective(
        dataset=lambda model, settings, source: simcse_pairs(texts(source)),
        loss=_contrastive,
        around=lambda model, settings: attention_dropout(model, settings["attention_dropout"]),
    ),
    "supervised": Objective(
        dataset=lambda model, settings, source: tuples(source),
        loss=_contrastive,
        pairs=True,
        require=require_fitting,
    ),
    "distill": Objective(
        dataset=lambda model, settings, source: taught(source),
        loss=distillation,
        pairs=True,
        least=1,
        loss_learns=lambda settings: True,  # the projection, where there is one
        require=require_teachable,
        prepare=with_teacher,
    ),
}
