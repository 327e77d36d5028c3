"""The teacher of a distillation: what it is asked for, once each, and its vectors, kept on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from numpy.lib.format import open_memmap
from sentence_transformers import SentenceTransformer

from ..errors import InvalidInputError, LLM2VecError, ModelNotFoundError
from ..model import LLM2Vec, sampled_weights
from ..recipes import TrainingSettings
from ..vetting import read_json
from .data import Source
from .progress import Clock
from .records import write_json

BLOCK = 512  # texts that an interruption costs at most
EVERY = 10 * BLOCK  # texts are told of
QUERY, DOCUMENT, TEXT = "encode_query", "encode_document", "encode"

Asked = tuple[str, str]  # the method of the teacher, and the text


def asked_of(sources: Iterable[Source]) -> list[Asked]:
    """Return what the teacher is asked for, each once."""
    return list(dict.fromkeys(each for source in sources for column in columns_of(source) for each in column))


def columns_of(source: Source) -> list[list[Asked]]:
    """Return what is asked by column: anchors are queries and the others documents; texts alone are neither."""
    methods = (QUERY, *[DOCUMENT] * (len(source.columns) - 1)) if len(source.columns) > 1 else (TEXT,)
    return [
        [(method, text) for text in column] for method, column in zip(methods, source.columns.values(), strict=True)
    ]


def open_encoder(field: str, name: str, dtype: str | None = None, *, cpu: bool) -> SentenceTransformer:
    """Open the model of sentence-transformers that a field of the settings names.

    Raises:
        ModelNotFoundError: There is none.
    """
    try:
        return SentenceTransformer(
            name,
            device="cpu" if cpu else None,
            model_kwargs={} if dtype is None else {"dtype": getattr(torch, dtype)},
        )
    except LLM2VecError:
        raise
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{field} must be a model of sentence-transformers, got {name!r}: {error}") from error


def fingerprint_of(model: SentenceTransformer) -> str:
    """Identifies weights and settings of a model, whatever its name stands for by now."""
    if isinstance(model, LLM2Vec):
        return model.fingerprint
    settings = [repr(model), model.prompts, model.default_prompt_name, model.max_seq_length]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for weight in sampled_weights(model):
        digest.update(weight)
    return digest.hexdigest()[:16]


class Teacher:
    """A teacher whose vectors are kept in a folder, each computed once.

    Args:
        settings: teacher, teacher_dtype, teacher_pca, batch_size and cpu count.
        folder: Of the vectors.
        log: Takes one line of text for each thing to know.
    """

    def __init__(self, settings: TrainingSettings, folder: Path, log: Callable[[str], None]) -> None:
        self.settings, self.folder, self.log = settings, folder, log
        told = {name: settings[name] for name in ("teacher", "teacher_dtype")}
        self.told = {name: value for name, value in told.items() if value is not None}

    @cached_property
    def model(self) -> SentenceTransformer:
        """The teacher itself."""
        name, dtype, components = (self.settings[each] for each in ("teacher", "teacher_dtype", "teacher_pca"))
        model = open_encoder("teacher", name, dtype, cpu=bool(self.settings["cpu"]))
        if (width := model.get_embedding_dimension()) is None:
            raise InvalidInputError(f"teacher must have vectors of a known dimension, got {name!r}.")
        if components is not None and components > width:
            raise InvalidInputError(f"teacher_pca must be at most {width}, the teacher's dimensions, got {components}.")
        return model

    @cached_property
    def fingerprint(self) -> str:
        """Of the teacher itself."""
        return fingerprint_of(self.model)

    def vectors(self, asked: list[Asked]) -> np.ndarray:
        """Return the vectors of what is asked for, (texts, dimensions) in float32, mapped from the disk."""
        key = hashlib.sha256(json.dumps([self.told, asked]).encode()).hexdigest()
        file = self.folder / f"{key[:16]}.npy"
        progress = file.with_suffix(".json")
        state = read_json(progress)
        if PartialState().is_main_process:  # the first one, which the others wait for
            known = state.get("fingerprint", self.fingerprint)
            if known != self.fingerprint:
                raise InvalidInputError(
                    f"The teacher {self.settings['teacher']!r} has changed since {self.folder} was begun. Give the one "
                    "that it was begun with, or another output."
                )
            self._compute(asked, file, progress, int(state.get("texts", 0)))
        found: np.ndarray = np.load(file, mmap_mode="r")
        return found

    def _compute(self, asked: list[Asked], file: Path, progress: Path, done: int) -> None:
        """Write what is missing of the vectors, from the first text that is not done."""
        shape = (len(asked), self.model.get_embedding_dimension() or 0)  # which `model` has seen
        if done and not _holds(file, shape):
            self.log(f"{file} is damaged or gone: its vectors are computed again.")
            progress.unlink()  # before a new file has the right size, and zeros in it
            done = 0
        if done >= len(asked):
            return
        self.log(f"Vectors of {len(asked) - done:,} texts from {self.settings['teacher']} ...")
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = open_memmap(file, "r+" if done else "w+", np.float32, None if done else shape)
        clock = Clock(len(asked), done)
        for start in range(done, len(asked), BLOCK):
            block = asked[start : start + BLOCK]
            for method in (QUERY, DOCUMENT, TEXT):
                if rows := [i for i, (asks, _) in enumerate(block) if asks == method]:
                    kept[[start + i for i in rows]] = self._encode(method, [block[i][1] for i in rows])
            kept.flush()
            write_json(progress, {**self.told, "fingerprint": self.fingerprint, "texts": start + len(block)})
            if start // EVERY < (start + len(block)) // EVERY:
                self.log(f"{start + len(block):,} of {len(asked):,} texts, {clock.left(start + len(block))} left")

    def _encode(self, method: str, texts: list[str]) -> np.ndarray:
        how = {"batch_size": self.settings["batch_size"], "show_progress_bar": False}
        vectors = np.asarray(getattr(self.model, method)(texts, **how), np.float32)
        if odd := [text for text, vector in zip(texts, vectors, strict=True) if not np.isfinite(vector).all()]:
            narrow = self.settings["teacher_dtype"] not in (None, "float32")
            raise InvalidInputError(
                f"The teacher {self.settings['teacher']!r} makes a vector that is not finite of {odd[0]!r:.80}. "
                + ("Try teacher_dtype='float32'." if narrow else "Its weights are damaged.")
            )
        return vectors


def _holds(file: Path, shape: tuple[int, int]) -> bool:
    """Whether a file is there whole."""
    try:
        return bool(np.load(file, mmap_mode="r").shape == shape)
    except (OSError, ValueError, EOFError):
        return False
