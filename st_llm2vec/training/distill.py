"""Distillation: a teacher's vectors, computed once, are what the student's come near (EmbedDistill, arXiv 2301.12005).

Any sentence-transformers model teaches. A student of another width reaches the teacher's space through a projection
that is learned beside it and dropped afterwards; one of the same width learns the teacher's vectors themselves.
`teacher_pca` brings any teacher to that width, and leaves out the mean that all of its vectors share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss, MultipleNegativesRankingLoss
from torch import Tensor

from .. import aliases
from ..errors import InvalidInputError
from ..model import LLM2Vec
from ..recipes import TrainingSettings
from .data import Source
from .principal import principal
from .similarity import cosine
from .teacher import Asked, Teacher, asked_of, columns_of

FOLDER = "teacher"


def require_teachable(sources: Mapping[str, Source], settings: TrainingSettings) -> None:
    """Raise where a teacher would work for nothing.

    Raises:
        InvalidInputError: Contrast without pairs, or more principal components than the texts tell.
        ModelNotFoundError: The teacher has a name of our kind that is not known.
    """
    aliases.find(settings["teacher"])
    if settings["contrast_weight"] and all(len(source.columns) < 2 for source in sources.values()):
        raise InvalidInputError(
            f"contrast_weight={settings['contrast_weight']} needs pairs, and no data set has two columns. Leave "
            "it out, or give columns for an anchor and a positive."
        )
    texts = len(asked_of(sources.values()))
    if (components := settings["teacher_pca"]) is not None and components >= texts:
        raise InvalidInputError(f"teacher_pca must be fewer than the {texts} different texts, got {components}.")


def with_teacher(
    sources: Mapping[str, Source],
    evaluation: Source | None,
    settings: TrainingSettings,
    checkpoints: Path,
    log: Callable[[str], None],
) -> tuple[dict[str, Source], Source | None]:
    """Add the teacher's vectors of all texts, each computed once, however often it is there.

    They are kept in `checkpoints/teacher`; what an interrupted run has computed is not computed again.

    Raises:
        InvalidInputError: More principal components than the teacher has dimensions, a teacher that is not the one that
            the kept vectors are of, or a vector that is not finite.
        ModelNotFoundError: The teacher cannot be loaded.
    """
    asked = asked_of(sources.values())
    teacher = Teacher(settings, checkpoints / FOLDER, log)
    kept, last = teacher.vectors(asked), None
    reduced = _reduction(kept, settings["teacher_pca"])
    if evaluation is not None:
        held_out = asked_of([evaluation])
        last = _taught(evaluation, held_out, reduced(teacher.vectors(held_out)))
    vectors = reduced(kept)
    return {name: _taught(source, asked, vectors) for name, source in sources.items()}, last


def _reduction(vectors: np.ndarray, components: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """What brings vectors to the principal components of these, all of unit length; without components, nothing."""
    if components is None:
        return lambda each: each
    mean, axes = principal(_unit(vectors), components)
    return lambda each: (_unit(each) - mean) @ axes


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12))


def _taught(source: Source, asked: list[Asked], vectors: np.ndarray) -> Source:
    place = {each: i for i, each in enumerate(asked)}
    index = [[place[each] for each in column] for column in columns_of(source)]
    return replace(source, vectors=vectors, index=np.array(index).T)


def taught(source: Source) -> Dataset:
    """The texts with the teacher's vectors as their label, (columns, dimensions)."""
    assert source.vectors is not None
    return Dataset.from_dict({**source.columns, "label": list(source.vectors[source.index])})


class DistillLoss(EmbedDistillLoss):
    """Distance to the teacher's vectors, in float32, and for pairs contrast with the rest of the batch, if asked.

    Args:
        model: The student.
        dimensions: Of the teacher's vectors.
        settings: distance, contrast_weight, scale and seed count.

    Inputs: text columns; labels of shape (n, columns, dimensions).
    """

    def __init__(self, model: LLM2Vec, dimensions: int, settings: TrainingSettings) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(settings["seed"])
            same = dimensions == model.get_embedding_dimension()
            super().__init__(model, distance_metric=settings["distance"], projection_dim=None if same else dimensions)
        self.weight = settings["contrast_weight"]
        contrast = MultipleNegativesRankingLoss(
            model,
            scale=settings["scale"],
            similarity_fct=cosine,
            gather_across_devices=PartialState().num_processes > 1,
        )
        self.contrast: Any = contrast if self.weight else None

    def forward(  # type: ignore[override]  # a tensor for all columns, which ours always is
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor
    ) -> Tensor:
        vectors = [self.model(features)["sentence_embedding"].float() for features in sentence_features]
        loss: Tensor = self.compute_loss_from_embeddings(vectors, [labels[:, i] for i in range(len(vectors))])
        if self.contrast is not None and len(vectors) > 1:
            loss = loss + self.weight * self.contrast.compute_loss_from_embeddings(vectors, None)
        return loss
