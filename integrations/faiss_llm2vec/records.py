"""What a store gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """A document as it was stored."""

    id: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Hit:
    """A document found by a search.

    `score`, higher is better: cosine similarity in [-1, 1] (metric "cosine"), inner product ("dot"), or the negative
    Euclidean distance ("l2", 0 is identical).
    """

    id: str
    text: str
    score: float
    metadata: dict[str, Any]
