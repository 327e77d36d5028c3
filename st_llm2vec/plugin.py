"""Makes `SentenceTransformer(...)` open our names and folders; touches nothing else, and can be taken back.

sentence-transformers has no plugin hook, and a short name fails inside `SentenceTransformer.__init__`, so that method
is wrapped, as is the method that looks up a class named in `modules.json` (for our own two classes only). Sparse,
cross and multi-vector encoders open our names as the folders that they stand for; late interaction reads the span.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from . import aliases

_HOST = "sentence_transformers"
_FAMILIES = ("SentenceTransformer", "SparseEncoder", "CrossEncoder", "MultiVectorEncoder")
_LOOKUP = "_load_module_class_from_ref"
_originals: dict[tuple[type, str], Any] = {}
_enabled = False


def enable_plugin() -> None:
    """Open our aliases and saved folders through plain `SentenceTransformer(...)`. `import st_llm2vec` calls it.

    Example:
        >>> st_llm2vec.enable_plugin()
        >>> SentenceTransformer("llm2vec-tiny").get_embedding_dimension()
        256
    """
    global _enabled  # noqa: PLW0603 - one switch for the process, as the class is one for the process
    _enabled = True
    if _HOST in sys.modules and hasattr(sys.modules[_HOST], "SentenceTransformer"):
        _patch(sys.modules[_HOST])
    if not getattr(enable_plugin, "waiting", False):
        enable_plugin.waiting = True  # type: ignore[attr-defined]
        wrapt.register_post_import_hook(_patch, _HOST)  # our own import stays light
        wrapt.register_post_import_hook(f"{__package__}.evaluation:name_in_mteb", "mteb")


def disable_plugin() -> None:
    """Give sentence-transformers' classes their own methods back.

    Example:
        >>> st_llm2vec.disable_plugin()
        >>> st_llm2vec.enable_plugin()
    """
    global _enabled  # noqa: PLW0603 - one switch for the process, as the class is one for the process
    _enabled = False
    for (host, name), method in _originals.items():
        setattr(host, name, method)
    _originals.clear()


def _patch(module: ModuleType) -> None:
    if not _enabled or _originals:
        return
    for host in [getattr(module, name) for name in _FAMILIES if hasattr(module, name)]:
        _replace(host, "__init__", _init_of(host, host.__init__))
    base = next(c for c in module.SentenceTransformer.__mro__ if _LOOKUP in vars(c))
    _replace(base, _LOOKUP, _lookup_of(getattr(base, _LOOKUP)))


def _replace(host: type, name: str, method: Any) -> None:
    _originals[host, name] = vars(host)[name]
    setattr(host, name, method)


def _init_of(host: type, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(  # noqa: N807 - becomes the method of that name
        self: Any, model_name_or_path: str | None = None, *args: Any, **kwargs: Any
    ) -> None:
        name = os.fspath(model_name_or_path) if isinstance(model_name_or_path, os.PathLike) else model_name_or_path
        folder = None
        if isinstance(name, str) and aliases.find(name):
            from .hub import Hub
            from .loading import alias_folder

            hub = {key: kwargs[key] for key in ("cache_folder", "token", "local_files_only") if key in kwargs}
            folder = alias_folder(name, kwargs.get("revision"), Hub(**hub))
        dense = type(self) is host and host.__name__ == "SentenceTransformer"
        if dense and isinstance(name, str) and (folder or _is_ours(name)):
            from .model import LLM2Vec

            self.__class__ = LLM2Vec
            LLM2Vec.__init__(self, folder or name, *args, **kwargs)
        else:
            original(self, folder or model_name_or_path, *args, **kwargs)

    return __init__


def _lookup_of(original: Callable[..., type]) -> Callable[..., type]:
    @functools.wraps(original)
    def lookup(self: Any, class_ref: str, *args: Any, **kwargs: Any) -> type:
        late_interaction = getattr(self, "model_type", None) == "MultiVectorEncoder"
        if class_ref.startswith(f"{__package__}.") or (late_interaction and args and _is_ours(args[0])):
            from .modules import MODULE_CLASSES, STOCK_CLASSES

            classes = {**STOCK_CLASSES, **MODULE_CLASSES} if late_interaction else MODULE_CLASSES
            if class_ref in classes:
                return classes[class_ref]
        found: type = original(self, class_ref, *args, **kwargs)
        return found

    return lookup


def _is_ours(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "llm2vec_config.json")) and os.path.isfile(
        os.path.join(folder, "modules.json")
    )
