"""LLM2Vec for sentence-transformers: any decoder-only LLM as a text encoder.

Importing this package turns the plugin on: `SentenceTransformer("llm2vec-tiny")` works, and so do saved encoders that
name our modules. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from .aliases import register_alias, unregister_alias
from .plugin import disable_plugin, enable_plugin

if TYPE_CHECKING:
    from .auditing import audit
    from .bidirectional import enable_bidirectional_attention, restore_causal_attention
    from .corpus import encode_corpus
    from .errors import LLM2VecError
    from .evaluation.diagnosis import doctor
    from .loading import load
    from .model import LLM2Vec
    from .types import Encoder
    from .words import encode_words

_LAZY = {
    "Encoder": "types",
    "LLM2Vec": "model",
    "LLM2VecError": "errors",
    "Llm2VecError": "errors",  # deprecated spelling
    "audit": "auditing",
    "doctor": "evaluation.diagnosis",
    "enable_bidirectional_attention": "bidirectional",
    "encode_corpus": "corpus",
    "encode_words": "words",
    "load": "loading",
    "restore_causal_attention": "bidirectional",
}

__all__ = [
    "Encoder",
    "LLM2Vec",
    "LLM2VecError",
    "__version__",
    "audit",
    "disable_plugin",
    "doctor",
    "enable_bidirectional_attention",
    "enable_plugin",
    "encode_corpus",
    "encode_words",
    "load",
    "register_alias",
    "restore_causal_attention",
    "unregister_alias",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


enable_plugin()
