"""Short names of encoders: what each stands for, and the folder in which it is kept once it has been made.

The first use of a name downloads and merges what it stands for (`st_llm2vec.loading` does that) and keeps a portable
folder; later uses open the folder and touch no network. A local folder of the same name always wins; then come
`register_alias`, the user's file, installed packages and the table below.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from .atomic import DRAFTS, published
from .errors import CacheError, InvalidInputError, LLM2VecError, ModelNotFoundError
from .settings import EncoderSettings
from .vetting import read_json, require_below

PREFIX = "llm2vec-"
_FORMAT = 1  # of a kept folder; another number makes it anew
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", re.ASCII)  # perhaps with its revision
CONTENTS = "alias.json"


@dataclass(frozen=True)
class Alias:
    """What a short name stands for: arguments of `load`, and prompts."""

    model: str
    adapter: str | None = None
    base: str | None = None
    revision: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("model", "adapter", "base"):
            value = getattr(self, name)
            if value is None and name != "model":
                continue
            text = value if isinstance(value, str) else ""
            # An absolute path may come and go with its disk; that is said when it is used.
            if not (Path(text).is_absolute() or HUB_ID.fullmatch(text) or (text and os.path.isdir(text))):
                raise InvalidInputError(f"{name} must be a folder or a hub id ('owner/name'), got {value!r}.")
            if os.path.isdir(value):
                object.__setattr__(self, name, str(Path(value).absolute()))
        if not isinstance(self.revision, str | None):
            raise InvalidInputError(f"revision must be a branch, tag or commit, got {self.revision!r}.")
        EncoderSettings.of({"prompts": self.prompts})
        object.__setattr__(self, "prompts", dict(self.prompts or {}))
        if EncoderSettings.of(self.settings).prompts is not None:
            raise InvalidInputError("settings must be without 'prompts'. Give them as prompts=.")
        object.__setattr__(self, "settings", dict(self.settings))

    def __str__(self) -> str:
        return " + ".join(filter(None, (self.base, self.model, self.adapter)))

    @property
    def is_encoder(self) -> bool:
        """Whether `model` is an encoder's folder that is opened where it lies."""
        return self == Alias(self.model) and (Path(self.model) / "modules.json").is_file()

    @property
    def digest(self) -> str:
        """Changes with the definition, and with the files of local folders."""
        folders = [Path(p) for p in (self.model, self.adapter, self.base) if p and Path(p).is_dir()]
        stamps = [max((f.stat().st_mtime_ns for f in folder.iterdir()), default=0) for folder in folders]
        meaning = json.dumps([_FORMAT, asdict(self), stamps], default=str)
        return hashlib.sha256(meaning.encode()).hexdigest()[:12]


# The retrieval instruction of the model cards; documents have none.
_PROMPTS = {"query": "Given a web search query, retrieve relevant passages that answer the query: "}
# Published MNTP stages, on top of which an adapter of the same name goes. No revision is pinned: none was seen.
PUBLISHED = {
    "llm2vec-mistral": "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp",
    "llm2vec-llama-3": "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp",
    "llm2vec-llama-2": "McGill-NLP/LLM2Vec-Llama-2-7b-chat-hf-mntp",
    "llm2vec-sheared-llama": "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp",
}
# Billions of parameters: what the first use of such a name downloads, and then keeps once more, at two bytes each.
BILLIONS = {"llm2vec-mistral": 7.24, "llm2vec-llama-3": 8.03, "llm2vec-llama-2": 6.74, "llm2vec-sheared-llama": 1.35}
STAGES = {"": "-unsup-simcse", "-supervised": "-supervised", "-mntp": None}  # ending of the name: of the adapter

ALIASES: dict[str, Alias] = {
    "llm2vec-tiny": Alias(str(Path(__file__).parent / "tiny")),
    **{
        name + ending: Alias(mntp, adapter and mntp + adapter, prompts=_PROMPTS)
        for name, mntp in PUBLISHED.items()
        for ending, adapter in STAGES.items()
    },
}
# Entry points of installed packages: the name is the alias, the object an `Alias` or a function that returns one.
GROUP = "st_llm2vec.aliases"
PACKAGES = {"llm2vec-smollm2": "st-llm2vec-smollm2"}  # ours: what to install where such a name is not known
_registered: dict[str, Alias] = {}


def register_alias(
    name: str,
    model: str,
    *,
    adapter: str | None = None,
    base: str | None = None,
    revision: str | None = None,
    prompts: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Give an encoder a short name, for this process; a name that is known already gets the new meaning.

    Names for every process go into a file with the same arguments as keys (`config_file()` says where):
    `{"my-encoder": {"model": "owner/decoder", "adapter": "owner/adapter", "prompts": {"query": "..."}}}`.

    Args:
        name: Letters, digits, dots, dashes and underscores.
        model: Folder or hub id of a decoder, an LLM2Vec checkpoint or an encoder, as for `load`.
        adapter: Second adapter on top.
        base: What an adapter-only `model` belongs on.
        revision: Branch, tag or commit of `model`.
        prompts: By name; "query" and "document" are those of `encode_query` and `encode_document`.
        settings: Arguments of `load` by name: pooling_mode, template, max_seq_length, ...

    Raises:
        InvalidInputError: A name or argument that cannot be used.

    Example:
        >>> st_llm2vec.register_alias("my-encoder", "owner/decoder-mntp", adapter="owner/decoder-mntp-simcse")
        >>> st_llm2vec.unregister_alias("my-encoder")  # or SentenceTransformer("my-encoder")
    """
    _require_name(name)
    _registered[name] = Alias(
        model, adapter, base, revision, {} if prompts is None else prompts, {} if settings is None else settings
    )


def unregister_alias(name: str) -> None:
    """Take back what `register_alias` gave; a kept folder stays (`st-llm2vec models remove NAME` deletes it).

    Raises:
        InvalidInputError: The name was not registered in this process.

    Example:
        >>> st_llm2vec.register_alias("my-encoder", "owner/decoder")
        >>> st_llm2vec.unregister_alias("my-encoder")
    """
    if _registered.pop(name, None) is None:
        raise InvalidInputError(f"{name!r} is not registered. Registered: {sorted(_registered) or 'nothing'}.")


def config_file() -> Path:
    """The user's names: `$ST_LLM2VEC_HOME/aliases.json`, else `st_llm2vec/aliases.json` in ~/.config."""
    return _home("XDG_CONFIG_HOME", ".config") / "aliases.json"


def cache_folder() -> Path:
    """What was made for names: `$ST_LLM2VEC_HOME/models`, else `st_llm2vec/models` in ~/.cache."""
    return _home("XDG_CACHE_HOME", ".cache") / "models"


def _home(variable: str, default: str) -> Path:
    if home := os.environ.get("ST_LLM2VEC_HOME"):
        return Path(home).expanduser().absolute()
    return Path(os.environ.get(variable) or Path.home() / default) / "st_llm2vec"


def known() -> dict[str, Alias]:
    """Every name and what it stands for.

    Raises:
        InvalidInputError: The user's file cannot be understood.
    """
    return {name: alias for name in names() if (alias := _meaning(name)) is not None}


def names() -> list[str]:
    """Every name, sorted; no package is imported for it."""
    return sorted({*ALIASES, *_packaged(), *_from_file(config_file()), *_registered})


def _meaning(name: str) -> Alias | None:
    """What a name stands for: said in this process, in the user's file, by a package, or in our table."""
    for given in (_registered, _from_file(config_file())):
        if name in given:
            return given[name]
    if package := _packaged().get(name):
        return _of_package(package)
    return ALIASES.get(name)


def _where(name: str) -> str:
    package = next((package for start, package in PACKAGES.items() if name.startswith(start)), None)
    return f"It comes with a package of its own: pip install {package}. " if package else ""


def _packaged() -> dict[str, EntryPoint]:
    """Names of installed packages; none takes the place of one in our table."""
    points = entry_points(group=GROUP)
    return {point.name: point for point in points if _NAME.fullmatch(point.name) and point.name not in ALIASES}


def _of_package(point: EntryPoint) -> Alias:
    source = f"The package {point.dist.name if point.dist else point.module!r}, which gives the name {point.name!r},"
    try:
        found = point.load()
        alias = found() if callable(found) else found
    except LLM2VecError:
        raise
    except Exception as error:
        raise InvalidInputError(f"{source} cannot be used: {type(error).__name__}: {error}") from error
    if not isinstance(alias, Alias):
        raise InvalidInputError(f"{source} must give a st_llm2vec.aliases.Alias, got a {type(alias).__name__}.")
    return alias


def find(name: str) -> Alias | None:
    """What a name stands for; None if it is no alias, or a folder here.

    Raises:
        ModelNotFoundError: A name of our kind that is neither known nor a folder; nothing is asked of the network.
        InvalidInputError: The user's file cannot be understood.
    """
    if not name or "/" in name or os.sep in name or os.path.isdir(name):
        return None
    alias = _meaning(name)
    if alias is None and name.startswith(PREFIX):
        raise ModelNotFoundError(
            f"{name!r} is no folder here and no encoder that st_llm2vec knows. {_where(name)}Known: "
            f"{', '.join(names())}. "
            "Any decoder can be loaded by its folder or hub id: st_llm2vec.load('owner/name')."
        )
    return alias


def _from_file(path: Path) -> dict[str, Alias]:
    found = {}
    try:
        content = read_json(path)
        for name, arguments in content.items():
            _require_name(name)
            if unknown := sorted(set(arguments) - {f.name for f in fields(Alias)}):
                raise InvalidInputError(f"{name!r} must have some of {[f.name for f in fields(Alias)]}, got {unknown}.")
            found[name] = Alias(**arguments)
    except (OSError, ValueError, TypeError, AttributeError) as error:  # InvalidCheckpointError is a ValueError
        raise InvalidInputError(
            f'{path} cannot be used: {error} It holds names like {{"my-encoder": {{"model": "owner/name"}}}}.'
        ) from error
    return found


def _require_name(name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"name must be of letters, digits, dots, dashes and underscores, no dot first, got {name!r}."
        )


def folder_of(name: str, alias: Alias, make: Callable[[Path], None]) -> Path:
    """The folder of an alias; `make` writes it if it is not kept yet.

    Two processes that come at once make it once. It appears complete or not at all.

    Raises:
        CacheError: The cache cannot be written, is full, or what is kept there is damaged.
        LLM2VecError: What `make` raises.
    """
    if alias.is_encoder:
        return Path(alias.model)
    place = kept_folder(name, alias)
    if not place.is_dir():
        with lock(name):
            if not place.is_dir():
                _make(name, place, make)
    _require_complete(name, place)
    return place


def kept_folder(name: str, alias: Alias) -> Path:
    """Where an alias is kept once it has been made."""
    return cache_folder() / name / alias.digest


def _make(name: str, place: Path, make: Callable[[Path], None]) -> None:
    from safetensors import SafetensorError

    for left in place.parent.glob(DRAFTS):  # by a process that was killed: nobody else holds the lock
        shutil.rmtree(left)
    try:
        with published(place) as folder:
            make(folder)
            sizes = {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
            (folder / CONTENTS).write_text(json.dumps(sizes, indent=2), encoding="utf-8")
    except LLM2VecError:
        raise
    except (OSError, SafetensorError) as error:
        raise CacheError(
            f"{name!r} could not be written to {place.parent}: {error}. Nothing was left there. Free some space "
            "(st-llm2vec models --sizes says what is kept), or set ST_LLM2VEC_HOME to a folder with room for it."
        ) from error


def _require_complete(name: str, place: Path) -> None:
    try:
        sizes = read_json(place / CONTENTS)
        wrong = [f for f, size in sizes.items() if require_below(place / CONTENTS, f).stat().st_size != size]
        if not sizes:
            wrong = [CONTENTS]
    except (OSError, ValueError) as error:
        wrong = [str(error)]
    if wrong:
        raise CacheError(
            f"The kept {name!r} in {place} is damaged ({wrong[0]}). Delete it, and it is made again at the next use: "
            f"st-llm2vec models remove {name}"
        )


def lock(name: str) -> AbstractContextManager[Any]:
    """Taken when it is called, until the `with` ends: one process at a time makes or deletes what is kept of a name."""
    from filelock import FileLock

    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the folder, and never deleted: a lock that is removed while another waits for it locks nothing.
        return FileLock(folder.with_name(f".{name}.lock")).acquire()
    except OSError as error:
        raise CacheError(
            f"The cache {folder.parent} cannot be written ({error}). Set ST_LLM2VEC_HOME to a folder that can."
        ) from error
