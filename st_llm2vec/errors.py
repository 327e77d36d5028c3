"""The error tree: every error that st_llm2vec and its integrations raise on purpose.

    LLM2VecError
    ├── ModelNotFoundError            (also FileNotFoundError)
    ├── InvalidCheckpointError        (also ValueError)
    ├── UnsupportedArchitectureError  (also ValueError)
    │   └── StillCausalError
    ├── InvalidInputError             (also ValueError)
    ├── MissingExtraError             (also ImportError)
    ├── CacheError                    (also OSError)
    ├── WorkerError                   (also RuntimeError)
    └── StoreError
        ├── StoreExistsError          (also FileExistsError)
        ├── StoreNotFoundError        (also FileNotFoundError)
        ├── StoreMismatchError        (also ValueError)
        ├── StoreLockedError
        └── StoreCorruptedError

Each also inherits the built-in that a caller would catch. Messages say what was given, what is wrong, what to type.
"""

from __future__ import annotations

import warnings
from typing import Any


class LLM2VecError(Exception):
    """Base of all errors raised on purpose; catch this to catch them all.

    Example:
        >>> try:
        ...     st_llm2vec.load("llm2vec-tiny", attention="both")
        ... except st_llm2vec.LLM2VecError as error:
        ...     print(error)
        attention must be one of 'bidirectional', 'causal', got 'both'.
    """


class ModelNotFoundError(LLM2VecError, FileNotFoundError):
    """The name is no known alias, no folder and no repository that can be reached."""


class InvalidCheckpointError(LLM2VecError, ValueError):
    """The folder exists, but its files cannot give a correct encoder."""


class UnsupportedArchitectureError(LLM2VecError, ValueError):
    """The architecture has no causal mask to remove, or is no decoder."""


class StillCausalError(UnsupportedArchitectureError):
    """The causal mask was removed, and the audit found layers that still cannot see later tokens."""


class InvalidInputError(LLM2VecError, ValueError):
    """A text, prompt or setting that has no sane embedding."""


class MissingExtraError(LLM2VecError, ImportError):
    """An optional dependency is not installed."""


class CacheError(LLM2VecError, OSError):
    """What is kept of an alias is damaged, or cannot be written."""


class WorkerError(LLM2VecError, RuntimeError):
    """Worker processes died; what they had done before is kept."""


class StoreError(LLM2VecError):
    """Base of the errors of a vector store."""


class StoreExistsError(StoreError, FileExistsError):
    """A store is already there and was left as it is."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at this path."""


class StoreMismatchError(StoreError, ValueError):
    """The store was made with another model, dimension or metric."""


class StoreLockedError(StoreError):
    """Another writer has this store open."""


class StoreCorruptedError(StoreError):
    """A file of the store is damaged or missing."""


def __getattr__(name: str) -> Any:
    if name == "Llm2VecError":
        warnings.warn("Llm2VecError is called LLM2VecError now.", DeprecationWarning, stacklevel=2)
        return LLM2VecError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
