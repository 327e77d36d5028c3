"""Makes `SentenceTransformer(...)` open our names and folders; touches nothing else, and can be taken back.

sentence-transformers has no plugin hook, and a short name fails inside `SentenceTransformer.__init__`, so that method
is wrapped, as is the method that looks up a class named in `modules.json` (for our own two classes only).
"""

from __future__ import annotations

import functools
import os
import sys
from types import ModuleType
from typing import Any

import wrapt

from . import aliases

_HOST = "sentence_transformers"
_originals: dict[str, Any] = {}
_enabled = False


def enable_plugin() -> None:
    """Opens our aliases and saved folders through plain `SentenceTransformer(...)`. `import st_llm2vec` calls it."""
    global _enabled  # noqa: PLW0603 - one switch for the process, as the class is one for the process
    _enabled = True
    if _HOST in sys.modules and hasattr(sys.modules[_HOST], "SentenceTransformer"):
        _patch(sys.modules[_HOST])
    elif not getattr(enable_plugin, "waiting", False):
        enable_plugin.waiting = True  # type: ignore[attr-defined]
        wrapt.register_post_import_hook(_patch, _HOST)  # our own import stays light


def disable_plugin() -> None:
    """Gives `SentenceTransformer` its own methods back."""
    global _enabled  # noqa: PLW0603 - one switch for the process, as the class is one for the process
    _enabled = False
    if _originals:
        host = sys.modules[_HOST].SentenceTransformer
        for name, method in _originals.items():
            if method is None:
                delattr(host, name)  # was inherited
            else:
                setattr(host, name, method)
        _originals.clear()


def _patch(module: ModuleType) -> None:
    host = module.SentenceTransformer
    if not _enabled or _originals:
        return
    for name in ("__init__", "_load_module_class_from_ref"):
        _originals[name] = host.__dict__.get(name)
    original_init, original_lookup = host.__init__, host._load_module_class_from_ref

    @functools.wraps(original_init)
    def __init__(  # noqa: N807 - becomes the method of that name
        self: Any, model_name_or_path: str | None = None, *args: Any, **kwargs: Any
    ) -> None:
        name = os.fspath(model_name_or_path) if isinstance(model_name_or_path, os.PathLike) else model_name_or_path
        folder = None
        if isinstance(name, str) and aliases.find(name):
            from .checkpoints import Hub
            from .loading import alias_folder

            hub = {key: kwargs[key] for key in ("cache_folder", "token", "local_files_only") if key in kwargs}
            folder = alias_folder(name, kwargs.get("revision"), Hub(**hub))
        if type(self) is host and isinstance(name, str) and (folder or _is_ours(name)):
            from .model import LLM2Vec

            self.__class__ = LLM2Vec
            LLM2Vec.__init__(self, folder or name, *args, **kwargs)
        else:
            original_init(self, folder or model_name_or_path, *args, **kwargs)

    @functools.wraps(original_lookup)
    def _load_module_class_from_ref(self: Any, class_ref: str, *args: Any, **kwargs: Any) -> type:
        if class_ref.startswith(f"{__package__}."):
            from .modules import MODULE_CLASSES

            if class_ref in MODULE_CLASSES:
                return MODULE_CLASSES[class_ref]
        found: type = original_lookup(self, class_ref, *args, **kwargs)
        return found

    host.__init__ = __init__
    host._load_module_class_from_ref = _load_module_class_from_ref


def _is_ours(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "llm2vec_config.json")) and os.path.isfile(
        os.path.join(folder, "modules.json")
    )
