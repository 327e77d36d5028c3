"""What callers may hand to a store: checked, completed and brought into one shape, or refused with a reason."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from faiss_llm2vec import filters
from faiss_llm2vec.segments import Vectors
from st_llm2vec.errors import InvalidInputError, StoreMismatchError
from st_llm2vec.types import Encoder

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # json.dumps would make one per document


@dataclass(frozen=True)
class Document:
    """A document on its way in."""

    id: str
    text: str
    metadata: str  # JSON


def documents(
    texts: Sequence[str], ids: Sequence[str] | None, metadata: Sequence[Mapping[str, Any]] | None
) -> list[Document]:
    """Checks what the caller gave, and pairs it up."""
    texts = _strings("texts", texts)
    ids = [uuid.uuid4().hex for _ in texts] if ids is None else checked_ids(ids)
    if isinstance(metadata, Mapping):
        raise InvalidInputError("metadata is one dict; give a list with one dict per text.")
    labels = [{} for _ in texts] if metadata is None else list(metadata)
    if not len(texts) == len(ids) == len(labels):
        raise InvalidInputError(
            f"{len(texts)} texts, {len(ids)} ids, {len(labels)} metadata: give one of each per text."
        )
    if len(set(ids)) < len(ids):
        twice = [id for id, times in Counter(ids).items() if times > 1]
        raise InvalidInputError(f"ids {few(twice)} are given more than once.")
    return [Document(id, text, _json(id, label)) for id, text, label in zip(ids, texts, labels, strict=True)]


def _json(id: str, metadata: Any) -> str:
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(f"metadata of {id!r} is {metadata!r}; give a dict.")
    try:
        filters.field_rows(metadata)
    except InvalidInputError as error:
        raise InvalidInputError(f"metadata of {id!r}: {error}") from None
    return _ENCODER.encode(dict(metadata))


def _strings(name: str, values: Any) -> list[str]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InvalidInputError(f"{name} is {values!r:.80}; give a list of strings.")
    strings = list(values)
    for position, value in enumerate(strings):
        if not isinstance(value, str):
            raise InvalidInputError(f"{name}[{position}] is {value!r:.80} ({type(value).__name__}), not a string.")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise InvalidInputError(f"{name}[{position}] has a lone surrogate, which is no text: {value!r:.80}.")
    return strings


def checked_ids(ids: Any) -> list[str]:
    checked = _strings("ids", ids)
    if "" in checked:
        raise InvalidInputError(f"ids[{checked.index('')}] is the empty string; leave ids out to get random ones.")
    return checked


def floats(vectors: Any) -> Vectors:
    with contextlib.suppress(TypeError, ValueError):
        array: Vectors = np.asarray(vectors, dtype=np.float32)
        if array.ndim:
            return array
    raise InvalidInputError(f"{vectors!r:.80} is neither text nor an array of floats (n, dimension).")


def checked_vectors(values: Any, rows: int, dimension: int | None, metric: str) -> Vectors:
    """Returns `values` as float32 (rows, dimension), unit length under cosine.

    Raises:
        StoreMismatchError: Their dimension is another than that of the store, unless that is None.
        InvalidInputError: They have another shape, NaN, infinite or huge values, or are zero under cosine.
    """
    vectors = floats(values)
    if vectors.ndim != 2 or len(vectors) != rows or vectors.shape[1] == 0:
        raise InvalidInputError(f"vectors of shape {vectors.shape} for {rows} texts: give ({rows}, dimension).")
    if dimension not in (None, vectors.shape[1]):
        raise StoreMismatchError(
            f"vectors of dimension {vectors.shape[1]} given, and the store has dimension {dimension}. Encode with the "
            "model that it was made with, or make a new store."
        )
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    # Above 1e37 an inner product or squared distance leaves the range of float32.
    bad = ~np.isfinite(squares) | (squares > 1e37)
    if bad.any():
        raise InvalidInputError(f"vectors {few(np.flatnonzero(bad))} have NaN, infinite or huge values.")
    if metric == "cosine":
        zero = squares < 1e-60  # float32 cannot hold their direction
        if zero.any():
            raise InvalidInputError(f"vectors {few(np.flatnonzero(zero))} are zero: they have no cosine.")
        vectors = vectors / np.sqrt(squares).astype(np.float32)[:, np.newaxis]
    return np.ascontiguousarray(vectors)


def check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InvalidInputError(f"{name}={value!r}: give a whole number of at least 1.")


def few(values: Iterable[Any]) -> str:
    values = list(values)
    shown = ", ".join(repr(value if isinstance(value, str) else int(value)) for value in values[:5])
    return shown if len(values) <= 5 else f"{shown} and {len(values) - 5} more"


def loaded_model(model: Encoder | str | None) -> Encoder | None:
    if isinstance(model, str):
        from st_llm2vec import load  # brings torch, which a store does not need for itself

        return load(model)
    if model is not None and not isinstance(model, Encoder):
        raise InvalidInputError(
            f"model is a {type(model).__name__}, which has no encode_query and encode_document. Give an encoder such "
            "as st_llm2vec.load(name) or a SentenceTransformer, or its name."
        )
    return model


def dimension_of(model: Encoder | None) -> int | None:
    ask: Callable[[], Any] | None = getattr(model, "get_embedding_dimension", None)
    dimension = None if ask is None else ask()
    return None if dimension is None else int(dimension)


def fingerprint_of(model: Encoder | None) -> str | None:
    """What tells this model from another: its own fingerprint, else its class and name."""
    if model is None:
        return None
    fingerprint = getattr(model, "fingerprint", None)
    if callable(fingerprint):
        fingerprint = fingerprint()
    if fingerprint is not None:
        return str(fingerprint)
    # A SentenceTransformer keeps the name in the transformers model inside it.
    for owner in (model, getattr(model, "transformers_model", None)):
        for attribute in ("model_name", "model_name_or_path", "name_or_path"):
            if isinstance(name := getattr(owner, attribute, None), str) and name:
                # The last part only: a model folder that was moved is still the same model.
                return f"{type(model).__name__} {Path(name).name}"
    return type(model).__name__


def prompts_of(model: Encoder | None) -> dict[str, Any] | None:
    prompts = getattr(model, "prompts", None)
    return dict(prompts) if isinstance(prompts, Mapping) else None
