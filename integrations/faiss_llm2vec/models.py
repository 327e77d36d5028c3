"""What a store remembers of its model, and the check that it is opened with the same one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from faiss_llm2vec.database import Manifest
from st_llm2vec.encoders import open_encoder
from st_llm2vec.errors import InvalidInputError, StoreMismatchError
from st_llm2vec.types import Encoder


def loaded_model(model: Encoder | str | None) -> Encoder | None:
    if isinstance(model, str):
        return open_encoder(model)
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


def pooling_of(model: Encoder | None) -> str | None:
    """The model's own `pooling_mode`, or that of the module in it which has one, as stock sentence-transformers do."""
    modules = model if isinstance(model, Iterable) else ()
    for owner in (model, *modules):
        if isinstance(mode := getattr(owner, "pooling_mode", None), str):
            return mode
    return None


def check_same(path: Path, manifest: Manifest, model: Encoder | None) -> None:
    """Raises StoreMismatchError unless `model` is the one that the store was made with; None passes."""
    prompts = prompts_of(model)
    pairs = (
        ("fingerprint", manifest.fingerprint, fingerprint_of(model)),
        ("dimension", manifest.model_dimension or manifest.dimension, dimension_of(model)),
        ("pooling", manifest.pooling, pooling_of(model)),
        ("prompts", _set_ones(manifest.prompts), _set_ones(prompts)),
    )
    for name, ours, theirs in pairs:
        if ours is not None and theirs is not None and ours != theirs:
            raise StoreMismatchError(
                f"{path} was made with a model of {name} {ours!r}; the model given has {name} {theirs!r}. Open it with "
                "the model it was made with, or make a new store for this one."
            )


def _set_ones(prompts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if prompts is None else {name: prompt for name, prompt in prompts.items() if prompt}
