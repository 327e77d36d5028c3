"""What the integrations need from an encoder, and what texts come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns texts into vectors; every `SentenceTransformer` is one.

    Example:
        >>> isinstance(model, st_llm2vec.Encoder)
        True
    """

    def encode_query(self, inputs: Any, **kwargs: Any) -> Any:
        """Vectors of queries: float32 (n, dimension) for a list of n texts, (dimension,) for one text."""
        ...

    def encode_document(self, inputs: Any, **kwargs: Any) -> Any:
        """Vectors of documents: float32 (n, dimension) for a list of n texts, (dimension,) for one text."""
        ...


def gives_names(values: Any) -> bool:
    """Whether iterating gives names and not what is held: the keys of a mapping, the columns of a data frame."""
    return isinstance(values, Mapping) or (hasattr(values, "columns") and hasattr(values, "dtypes"))
