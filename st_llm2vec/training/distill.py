"""Distillation: a teacher's vectors, computed once, are what the student's come near (EmbedDistill, arXiv 2301.12005).

Any sentence-transformers model teaches. A student of the same width learns the teacher's vectors themselves; a wider
one learns them turned to where its own are (Procrustes), which keeps every distance; a narrower one reaches them
through a projection that is learned beside it and dropped afterwards. `teacher_pca` brings a teacher to any width below
its own, and leaves out the mean that all of its vectors share.
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
from .arguments import prompts_of
from .data import Source
from .principal import principal, procrustes
from .similarity import cosine
from .teacher import Asked, Teacher, asked_of, columns_of

FOLDER = "teacher"
ROWS = 4  # for each dimension of the narrower space, which tell how the two lie


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
    student: int | None = None,
) -> tuple[dict[str, Source], Source | None]:
    """Add the teacher's vectors of all texts, each computed once, however often it is there.

    They are kept in `checkpoints/teacher`; what an interrupted run has computed is not computed again.

    Args:
        student: Its dimensions, where a run begins and the alignment is to be looked at.

    Raises:
        InvalidInputError: An alignment that the widths do not allow, more principal components than the teacher has
            dimensions, a teacher that is not the one that the kept vectors are of, or a vector that is not finite.
        ModelNotFoundError: The teacher cannot be loaded.
    """
    asked = asked_of(sources.values())
    teacher = Teacher(settings, checkpoints / FOLDER, log)
    if student is not None:
        _alignment(settings, settings["teacher_pca"] or teacher.model.get_embedding_dimension() or 0, student)
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


def distillation(model: LLM2Vec, settings: TrainingSettings, sources: Mapping[str, Source]) -> DistillLoss:
    """Return the loss of a student that has not learned yet, its space and the teacher's brought together."""
    teacher = next(iter(sources.values())).vectors
    assert teacher is not None
    alignment = _alignment(settings, teacher.shape[-1], model.get_embedding_dimension() or 0)
    if alignment == "none":
        return DistillLoss(model, settings)
    return DistillLoss(model, settings, _turn(model, sources, settings), learned=alignment == "projection")


def _alignment(settings: TrainingSettings, teacher: int, student: int) -> str:
    """How the two spaces are brought together: as it is said, else as the widths have it."""
    if (given := settings["alignment"]) is None:
        return "none" if teacher == student else "rotation" if teacher < student else "projection"
    if (given == "none" and teacher != student) or (given == "rotation" and teacher > student):
        allowed = "as many dimensions as the student" if given == "none" else "no more dimensions than the student"
        raise InvalidInputError(
            f"alignment={given!r} needs a teacher of {allowed}, {student}, got {teacher}. "
            + (f"Give teacher_pca={student}, or " if teacher > student else "Give ")
            + f"alignment={'projection' if teacher > student else 'rotation'!r}."
        )
    return str(given)


def _turn(model: LLM2Vec, sources: Mapping[str, Source], settings: TrainingSettings) -> Tensor:
    """What turns the teacher's vectors towards those that the student has of some of the texts now."""
    own, theirs = [], []
    width = model.get_embedding_dimension() or 0
    how = {"batch_size": settings["batch_size"], "show_progress_bar": False}
    for name, source in sources.items():
        assert source.vectors is not None
        assert source.index is not None
        rows = -(-ROWS * min(source.vectors.shape[-1], width) // len(sources))
        chosen = np.random.default_rng(settings["seed"]).permutation(len(source.index))[:rows]
        prompts = prompts_of(settings, name, len(source.columns))
        for column, place, prompt in zip(source.columns.values(), source.index[chosen].T, prompts, strict=True):
            own.append(np.asarray(model.encode([column[row] for row in chosen], prompt=prompt, **how)))
            theirs.append(source.vectors[place])
    model.train()
    return torch.from_numpy(procrustes(_unit(np.concatenate(theirs)), _unit(np.concatenate(own)))).to(model.device)


class DistillLoss(EmbedDistillLoss):
    """Distance to the teacher's vectors, in float32, and for pairs contrast with the rest of the batch, if asked.

    Args:
        model: The student.
        settings: distance, contrast_weight and scale count.
        turn: From the teacher's space to the student's, (teacher's dimensions, student's dimensions); None where it is
            one space.
        learned: Bring the student's vectors to the teacher's instead, through a projection that starts as the turn.

    Inputs: text columns; labels of shape (n, columns, teacher's dimensions).
    """

    turn: Tensor | None

    def __init__(
        self, model: LLM2Vec, settings: TrainingSettings, turn: Tensor | None = None, *, learned: bool = False
    ) -> None:
        with torch.random.fork_rng():
            super().__init__(
                model,
                distance_metric=settings["distance"],
                projection_dim=len(turn) if learned and turn is not None else None,
            )
        if self.projection is not None and turn is not None:
            with torch.no_grad():
                self.projection.weight.copy_(turn)
                self.projection.bias.zero_()
            turn = None
        self.register_buffer("turn", turn)
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
        if self.turn is not None:
            labels = labels.to(self.turn) @ self.turn
        loss: Tensor = self.compute_loss_from_embeddings(vectors, [labels[:, i] for i in range(len(vectors))])
        if self.contrast is not None and len(vectors) > 1:
            loss = loss + self.weight * self.contrast.compute_loss_from_embeddings(vectors, None)
        return loss
