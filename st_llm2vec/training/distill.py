"""Distillation: a teacher's vectors, computed once, are what the student's come near (EmbedDistill, arXiv 2301.12005).

Any sentence-transformers model teaches. A student of another width reaches the teacher's space through a projection
that is learned beside it and dropped afterwards; one of the same width learns the teacher's vectors themselves.
`teacher_pca` brings any teacher to that width, and leaves out the mean that all of its vectors share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from numpy.lib.format import open_memmap
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss, MultipleNegativesRankingLoss
from torch import Tensor

from ..errors import InvalidInputError
from ..model import LLM2Vec
from ..recipes import TrainingSettings
from ..vetting import read_json
from .data import Source
from .principal import principal
from .records import write_json
from .similarity import cosine

BLOCK = 512  # rows that an interruption costs at most
FOLDER = "teacher"


def with_teacher(
    sources: Mapping[str, Source],
    evaluation: Source | None,
    settings: TrainingSettings,
    checkpoints: Path,
    log: Callable[[str], None],
) -> tuple[dict[str, Source], Source | None]:
    """Add the teacher's vector of every text, float32 of shape (rows, columns, dimensions).

    They are kept in `checkpoints/teacher`; what an interrupted run has computed is not computed again.

    Raises:
        InvalidInputError: Contrast without pairs, or more principal components than the teacher has dimensions.
    """
    if settings["contrast_weight"] and all(len(source.columns) < 2 for source in sources.values()):
        raise InvalidInputError(
            f"contrast_weight={settings['contrast_weight']} needs pairs, and no data set has two columns. Leave "
            "it out, or give columns for an anchor and a positive."
        )
    taught = {name: replace(each, vectors=_vectors(each, settings, checkpoints, log)) for name, each in sources.items()}
    last = replace(evaluation, vectors=_vectors(evaluation, settings, checkpoints, log)) if evaluation else None
    if (components := settings["teacher_pca"]) is None:
        return taught, last
    units = [_unit(each.vectors) for each in taught.values()]
    _check_components(components, units[0].shape[-1])  # vectors may be of an earlier run
    mean, axes = principal(units, components)

    def reduced(source: Source) -> Source:
        return replace(source, vectors=(_unit(source.vectors) - mean) @ axes)

    return {name: reduced(each) for name, each in taught.items()}, reduced(last) if last else None


def _unit(vectors: np.ndarray | None) -> np.ndarray:
    assert vectors is not None
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-12))


def _vectors(source: Source, settings: TrainingSettings, checkpoints: Path, log: Callable[[str], None]) -> np.ndarray:
    texts = list(source.columns.values())
    told = {name: settings[name] for name in ("teacher", "teacher_dtype") if settings[name] is not None}
    key = hashlib.sha256(json.dumps([told, texts], ensure_ascii=False).encode()).hexdigest()
    file = checkpoints / FOLDER / f"{key[:16]}.npy"
    progress = file.with_suffix(".json")
    done, n = int(read_json(progress).get("rows", 0)), len(source.rows)
    if done < n:
        log(f"Vectors of {n - done:,} rows from {settings['teacher']} ...")
        teacher, width = _teacher(settings)
        shape = (n, len(texts), width)
        file.parent.mkdir(parents=True, exist_ok=True)
        vectors = open_memmap(file, "r+" if done else "w+", np.float32, None if done else shape)
        for start in range(done, n, BLOCK):
            for i, column in enumerate(texts):
                vectors[start : start + BLOCK, i] = _encoder(teacher, i, len(texts))(
                    column[start : start + BLOCK], batch_size=settings["batch_size"], show_progress_bar=False
                )
            vectors.flush()
            write_json(progress, {**told, "rows": min(start + BLOCK, n)})
    found: np.ndarray = np.load(file, mmap_mode="r")
    return found


def _teacher(settings: TrainingSettings) -> tuple[SentenceTransformer, int]:
    """The teacher and its dimensions."""
    dtype = settings["teacher_dtype"]
    teacher = SentenceTransformer(
        settings["teacher"],
        device="cpu" if settings["cpu"] else None,
        model_kwargs={} if dtype is None else {"dtype": getattr(torch, dtype)},
    )
    if (width := teacher.get_embedding_dimension()) is None:
        raise InvalidInputError(f"teacher must have vectors of a known dimension, got {settings['teacher']!r}.")
    _check_components(settings["teacher_pca"], width)
    return teacher, width


def _check_components(components: int | None, width: int) -> None:
    if components is not None and components > width:
        raise InvalidInputError(f"teacher_pca must be at most {width}, the teacher's dimensions, got {components}.")


def _encoder(teacher: SentenceTransformer, column: int, columns: int) -> Callable[..., Any]:
    """Anchors are queries and the others documents; texts alone are neither."""
    if columns == 1:
        return teacher.encode
    return teacher.encode_document if column else teacher.encode_query


def taught(source: Source) -> Dataset:
    """The texts with the teacher's vectors as their label."""
    assert source.vectors is not None
    return Dataset.from_dict({**source.columns, "label": list(np.asarray(source.vectors))})


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
