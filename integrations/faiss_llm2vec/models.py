"""What a store remembers of its model, the check that it is opened with the same one, and opening it by its name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from faiss_llm2vec.manifest import Manifest, is_name
from st_llm2vec.encoders import lasting_name, open_encoder, open_unasked
from st_llm2vec.errors import InvalidInputError, ModelNotFoundError, StoreMismatchError
from st_llm2vec.types import Encoder

# What embeds documents, in sentence-transformers' words, LangChain's and LlamaIndex's.
_EMBED = ("encode_document", "embed_documents", "get_text_embedding")
# Where wrappers keep the model whose vectors they hand on as they are: LangChain's cache, LlamaIndex's bridge.
_PASSED_ON = ("underlying_embeddings", "_langchain_embedding")


class StoreModel:
    """The model of an open store: the one that was given, else the one that the store names, opened when it is needed.

    Attributes:
        encoder: The model, None as long as none was given or needed.
        name, revision: What to record of it, None where it has no name.
    """

    encoder: Encoder | None = None
    name: str | None = None
    revision: str | None = None
    stated: str | None = None  # fingerprint, by the caller

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opening = threading.Lock()

    def give(self, model: Encoder | str | None, name: str | None, stated: str | None) -> None:
        """Take what the caller says: an encoder or its name, the name to record, and a fingerprint."""
        self.stated = fingerprint_of(None, stated)
        self.encoder = loaded_model(model)
        found = name or (model if isinstance(model, str) else name_of(self.encoder))
        self.name, self.revision = (None, None) if found is None else lasting_name(found)
        if not is_name(self.name):  # as a folder may be called, and a manifest may not hold
            self.name = self.revision = None

    def check(self, manifest: Manifest) -> None:
        """Raise StoreMismatchError unless the model, if there is one, is that of the manifest."""
        check_same(self._path, manifest, self.encoder, self.stated)

    def open(self, manifest: Manifest, purpose: str, **options: Any) -> Encoder:
        """The encoder, opened by the name in the manifest if none was given; nothing is downloaded.

        Args:
            purpose: What it is needed for, for the error.
            options: Arguments of `st_llm2vec.load`, where it is opened here.

        Raises:
            ModelNotFoundError: It is not on this machine.
            StoreMismatchError: What has this name here is another model than the store was made with.
            InvalidInputError: The store does not know its model.
        """
        with self._opening:
            if self.encoder is None:
                self.encoder = self._opened(manifest, purpose, options)
                self.name, self.revision = manifest.model, manifest.revision
            elif options:
                raise InvalidInputError(f"{', '.join(options)} must be left out: the store has its encoder already.")
        return self.encoder

    def _opened(self, manifest: Manifest, purpose: str, options: dict[str, Any]) -> Encoder:
        path = str(self._path)
        # Without a fingerprint nothing would tell whether it is the same model.
        if manifest.model is None or manifest.fingerprint is None:
            raise InvalidInputError(
                f"to {purpose}, the store needs its model, and does not know its name: FaissStore.open({path!r}, "
                "model). Without one, give vectors."
            )
        try:
            encoder = open_unasked(manifest.model, manifest.revision, **options)
        except ModelNotFoundError as error:
            name = manifest.model if manifest.revision is None else f"{manifest.model}@{manifest.revision}"
            raise ModelNotFoundError(
                f"{path} was made with the model {name!r}, which a store does not download by itself. To open it all "
                f"the same, name it: FaissStore.open({path!r}, {name!r}), or -m {name} on the command line. ({error})"
            ) from error
        check_same(self._path, manifest, encoder, self.stated)
        return encoder


def name_of(model: Any, seen: tuple[Any, ...] = ()) -> str | None:
    """The name of a model, or of the one inside a wrapper, as it was given; None where it has none."""
    inside = [] if model is None else list(_models_inside(model, (*seen, model)).values())
    return (name_of(inside[0], (*seen, model)) if len(inside) == 1 else None) or _full_name(model)


def loaded_model(model: Encoder | str | None) -> Encoder | None:
    if isinstance(model, str):
        return open_encoder(model)
    if model is not None and not isinstance(model, Encoder):
        raise InvalidInputError(
            "model must be an encoder with encode_query and encode_document, such as st_llm2vec.load(name) or a "
            f"SentenceTransformer, or its name, got a {type(model).__name__}."
        )
    return model


def dimension_of(model: Encoder | None) -> int | None:
    ask: Callable[[], Any] | None = getattr(model, "get_embedding_dimension", None)
    dimension = None if ask is None else ask()
    return None if dimension is None else int(dimension)


def fingerprint_of(model: Any, stated: str | None = None) -> str | None:
    """What tells the vectors of this model from another's.

    What the caller states; else the model's own fingerprint; else that of the model inside, for a cache or another
    wrapper; else its class and name. A prompt that the wrapper puts before each document counts, too.
    """
    if stated is not None and not (isinstance(stated, str) and stated):
        raise InvalidInputError(f"fingerprint must be a text that names the model, got fingerprint={stated!r}.")
    return stated if stated is not None or model is None else _fingerprint(model, ())[0]


def _fingerprint(model: Any, seen: tuple[Any, ...]) -> tuple[str, bool]:
    """The fingerprint, and whether it says more than names do."""
    own = getattr(model, "fingerprint", None)
    own = own() if callable(own) else own
    known, sure = (None, False) if own is None else (str(own), True)
    kind, name = type(model).__name__, _name(model)
    inside = {} if sure else _models_inside(model, (*seen, model))
    if inside:
        parts = [_fingerprint(part, (*seen, model)) for part in inside.values()]
        sure = any(part_sure for _, part_sure in parts)
        passed_on = len(inside) == 1 and next(iter(inside)) in _PASSED_ON
        wrapped = ", ".join(text for text, _ in parts)
        other_name = " " in wrapped and not wrapped.endswith(f" {name}")
        if sure or passed_on or name is None or other_name:
            known = wrapped if passed_on else f"{kind}({wrapped})"
    if known is None:
        known = kind if name is None else f"{kind} {name}"
    return known + _prompt_added(model), sure


def _name(model: Any) -> str | None:
    name = _full_name(model)
    return None if name is None else Path(name).name  # a model folder that was moved is still the same model


def _full_name(model: Any) -> str | None:
    # A SentenceTransformer keeps the name in the transformers model inside it.
    for owner in (model, getattr(model, "transformers_model", None)):
        for attribute in ("model_name", "model", "model_id", "model_name_or_path", "name_or_path"):
            if isinstance(name := getattr(owner, attribute, None), str) and name:
                return name
    return None


def _models_inside(model: Any, seen: tuple[Any, ...]) -> dict[str, Any]:
    """The attributes that embed texts themselves, by name; pydantic keeps some of them apart."""
    attributes = {**getattr(model, "__dict__", {}), **(getattr(model, "__pydantic_private__", None) or {})}
    return {
        name: value
        for name, value in sorted(attributes.items())
        if any(callable(getattr(type(value), method, None)) for method in _EMBED)
        and not any(value is other for other in seen)
    }


def _prompt_added(model: Any) -> str:
    options = getattr(model, "encode_kwargs", None)
    given = {key: options.get(key) for key in ("prompt", "prompt_name")} if isinstance(options, Mapping) else {}
    given["text_instruction"] = getattr(model, "text_instruction", None)
    return "".join(f" {key}={value!r}" for key, value in given.items() if isinstance(value, str))


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


def check_same(path: Path, manifest: Manifest, model: Encoder | None, stated: str | None = None) -> None:
    """Raises StoreMismatchError unless `model` is the one that the store was made with; None passes.

    Args:
        stated: fingerprint that counts in place of the model's own.
    """
    prompts = prompts_of(model)
    pairs = (
        ("fingerprint", manifest.fingerprint, fingerprint_of(model, stated)),
        ("dimension", manifest.model_dimension or manifest.dimension, dimension_of(model)),
        ("pooling", manifest.pooling, pooling_of(model)),
        ("prompts", _set_ones(manifest.prompts), _set_ones(prompts)),
    )
    for name, ours, theirs in pairs:
        if ours is not None and theirs is not None and ours != theirs:
            same = f" If both give the same vectors, say so: fingerprint={ours!r}." if name == "fingerprint" else ""
            made_with = "a model" if manifest.model is None else f"the model {manifest.model!r},"
            given = name_of(model)
            shown = "the model given" if given is None else f"the model given, {lasting_name(given)[0]!r},"
            raise StoreMismatchError(
                f"{path} was made with {made_with} of {name} {ours!r}; {shown} has {name} {theirs!r}. Open it with "
                "the model it was made with, and with the dtype, quantize and max_seq_length of then; or make a new "
                f"store for this one.{same}"
            )


def _set_ones(prompts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if prompts is None else {name: prompt for name, prompt in prompts.items() if prompt}
