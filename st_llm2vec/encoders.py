"""One door for every adapter: a name becomes the encoder that `load` gives, whatever options come with it."""

from __future__ import annotations

import inspect
from typing import Any

from .errors import InvalidInputError
from .types import Encoder

# Arguments of `SentenceTransformer` that change an attribute of the encoder only.
_ATTRIBUTES = ("default_prompt_name", "similarity_fn_name", "truncate_dim")
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
    for name in options.keys() - known - set(_ATTRIBUTES):
        if options[name] not in _NOT_NEEDED.get(name, _NOTHING):
            raise InvalidInputError(
                f"{name}={options[name]!r} cannot be given with the name of a model: it is an option of "
                f"SentenceTransformer which st_llm2vec.load does not have. Use {', '.join(sorted(known))}; or open "
                f"the model yourself and give it as {argument}=SentenceTransformer(...)."
            )
    encoder = load(model, **{name: value for name, value in options.items() if name in known})
    for name in _ATTRIBUTES:
        if options.get(name) is not None:
            setattr(encoder, name, options[name])
    return encoder
