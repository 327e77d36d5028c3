"""One door for every adapter: a name becomes the encoder that `load` gives, whatever options come with it."""

from __future__ import annotations

import inspect
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import aliases
from .errors import InvalidInputError, ModelNotFoundError
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
                f"{argument} must be the name of a model, or an encoder with encode_query and encode_document such as "
                f"a SentenceTransformer, got a {type(model).__name__}."
            )
        if options:
            raise InvalidInputError(f"{', '.join(options)} must be left out with an encoder: they go with a name.")
        return model
    from .loading import load  # brings torch, which an encoder that was given may not need

    known = inspect.signature(load).parameters.keys() - {"name"}
    attributes = {name: options[name] for name in _ATTRIBUTES if options.get(name) is not None}
    for name, value in attributes.items():
        if not _ATTRIBUTES[name](value):
            raise InvalidInputError(f"{name} must be as in SentenceTransformer, got {value!r}.")
    for name in sorted(options.keys() - known - _ATTRIBUTES.keys()):
        if options[name] not in _NOT_NEEDED.get(name, _NOTHING):
            raise InvalidInputError(
                f"{name}={options[name]!r} cannot be given with the name of a model: st_llm2vec.load does not have it. "
                f"Use {', '.join(sorted(known))}; or open the model yourself and give it as "
                f"{argument}=SentenceTransformer(...)."
            )
    encoder = load(model, **{name: value for name, value in options.items() if name in known})
    if (prompt := attributes.get("default_prompt_name")) is not None and prompt not in encoder.prompts:
        raise InvalidInputError(f"default_prompt_name must be one of {sorted(encoder.prompts)}, got {prompt!r}.")
    for name, value in attributes.items():
        setattr(encoder, name, value)
    return encoder


class Pool:
    """Worker processes of an encoder, which start with the first documents and run until `close`, or their end.

    Args:
        encoder: A `SentenceTransformer`.
        devices: A device for each process. Default: all GPUs.
    """

    _one_at_a_time = threading.Lock()  # two calls into one pool would take each other's results

    def __init__(self, encoder: Any, devices: list[str] | None = None) -> None:
        self._encoder, self._devices = encoder, devices
        self._processes: Any = None
        self._stop: Callable[[], Any] | None = None

    def documents(self, texts: list[str], **options: Any) -> Any:
        """As `encode_document` of the encoder, in the processes; a pool is no model, so not of that name."""
        with self._one_at_a_time:
            if self._stop is None:
                self._processes = self._encoder.start_multi_process_pool(self._devices)
                self._stop = weakref.finalize(self, self._encoder.stop_multi_process_pool, self._processes)
            try:
                return self._encoder.encode_document(texts, pool=self._processes, **options)
            except BaseException:
                self.close()  # what is left in its queues would come out at the next call
                raise

    def close(self) -> None:
        """End the processes."""
        stop, self._stop, self._processes = self._stop, None, None
        if stop is not None:
            stop()


def lasting_name(name: str | os.PathLike[str], revision: str | None = None) -> tuple[str, str | None]:
    """Return a name, and a revision, that mean the same encoder from any working folder.

    The folder of an alias becomes the alias, a snapshot in the hub's cache its repository and commit, and any other
    folder or GGUF file that exists an absolute path.
    """
    name, place = str(name), Path(name)
    try:
        if aliases.find(name) or not place.exists():
            return name, revision
    except (OSError, ValueError):  # no name that a file can have
        return name, revision
    place = place.absolute()
    for alias, meaning in aliases.known().items():
        if place in ((Path(meaning.model),) if meaning.is_encoder else (aliases.kept_folder(alias, meaning),)):
            return alias, None
    owner, _, repository = place.parent.parent.name.removeprefix("models--").partition("--")
    if place.parent.name == "snapshots" and owner and repository:
        return f"{owner}/{repository}", place.name
    return str(place), None


def open_unasked(name: str, revision: str | None = None, **options: Any) -> Encoder:
    """Open an encoder by a name from a file, whoever wrote it: what is here already, and nothing else.

    An alias opens if it has been made, a hub id if it is in the hub's cache; nothing is downloaded or merged, and, as
    everywhere, no code of a checkpoint is run. Whether it is the encoder that was meant is for the caller to compare.

    Args:
        name: Alias, absolute path or hub id.
        revision: Branch, tag or commit of a hub id.
        options: Arguments of `load`.

    Raises:
        ModelNotFoundError: It is not here, or is no such name.
    """
    from .loading import load

    place, network = Path(name), name.startswith(("//", "\\\\"))  # opening a share would log in to its server
    alias = None if place.is_absolute() or network else aliases.find(name)
    if alias and not alias.is_encoder and not aliases.kept_folder(name, alias).is_dir():
        raise ModelNotFoundError(f"{name!r} stands for {alias}, and has not been made here yet.")
    if network or not (alias or aliases.HUB_ID.fullmatch(name) or (place.is_absolute() and place.exists())):
        raise ModelNotFoundError(f"{name!r} is no alias, no absolute path that exists and no hub id ('owner/name').")
    return load(name, revision=revision, local_files_only=True, **options)
