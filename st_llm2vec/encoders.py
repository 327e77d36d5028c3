"""One door for every adapter: a name becomes the encoder that `load` gives, whatever options come with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .errors import InvalidInputError
from .types import Encoder

# Arguments of `SentenceTransformer` that change an attribute of the encoder only, and what each may be.
_ATTRIBUTES: dict[str, Callable[[Any], bool]] = {
    "default_prompt_name": lambda value: isinstance(value, str),
    "similarity_fn_name": lambda value: str(value) in ("cosine", "dot", "euclidean", "manhattan"),
    "truncate_dim": lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
}
# Arguments of `SentenceTransformer` that `load` does without, and the values that ask for nothing else.
# `trust_remote_code` is a permission: it is not needed, as no code of a checkpoint is ever run.
_NOT_NEEDED: dict[str, tuple[Any, ...]] = {"backend": ("torch", None), "trust_remote_code": (True, False, None)}
_NOTHING: tuple[Any, ...] = (None, {})


def open_encoder(model: str | Encoder, options: dict[str, Any] | None = None, *, argument: str = "model") -> Encoder:
    """Return the encoder of a name, or the encoder that was given.

    Args:
        model: A name for `st_llm2vec.load`, or an encoder of queries and documents.
        options: Arguments of `load` or of `SentenceTransformer`, by name; for a name only.
        argument: What the caller calls `model`, for the error.

    Raises:
        InvalidInputError: An option that `load` cannot follow, or options for an encoder that is there already.

    Example:
        open_encoder("llm2vec-tiny", {"device": "cpu"}).encode_query(["how do I compress a file?"])
    """
    options = dict(options or {})
    if not isinstance(model, str):
        if not isinstance(model, Encoder):
            raise InvalidInputError(
                f"{argument} is a {type(model).__name__}. Give the name of a model, or an encoder with encode_query "
                "and encode_document such as a SentenceTransformer."
            )
        if options:
            raise InvalidInputError(f"{', '.join(options)} cannot be given with an encoder: they go with a name.")
        return model
    from .loading import load  # brings torch, which an encoder that was given may not need

    known = inspect.signature(load).parameters.keys() - {"name"}
    attributes = {name: options[name] for name in _ATTRIBUTES if options.get(name) is not None}
    for name, value in attributes.items():
        if not _ATTRIBUTES[name](value):
            raise InvalidInputError(f"{name}={value!r} cannot be used, as in SentenceTransformer.")
    for name in sorted(options.keys() - known - _ATTRIBUTES.keys()):
        if options[name] not in _NOT_NEEDED.get(name, _NOTHING):
            raise InvalidInputError(
                f"{name}={options[name]!r} cannot be given with the name of a model: st_llm2vec.load does not have it. "
                f"Use {', '.join(sorted(known))}; or open the model yourself and give it as "
                f"{argument}=SentenceTransformer(...)."
            )
    encoder = load(model, **{name: value for name, value in options.items() if name in known})
    if (prompt := attributes.get("default_prompt_name")) is not None and prompt not in encoder.prompts:
        raise InvalidInputError(f"default_prompt_name={prompt!r} must be one of {sorted(encoder.prompts)}.")
    for name, value in attributes.items():
        setattr(encoder, name, value)
    return encoder
