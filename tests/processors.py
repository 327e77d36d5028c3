"""What a test needs of the processor, and a processor that lacks it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from st_llm2vec.backend.prepacked import lacks

needs = {
    kind: pytest.mark.skipif(bool(lacks(kind)), reason=f"this is {lacks(kind)}")
    for kind in ("float32", "bfloat16", "int8")
}


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Take instructions away, by torch's names for them."""
    for name in names:
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda: False)


def cosine(a: Any, b: Any) -> float:
    """The smallest cosine of two vectors of one text."""
    return float(cosine_similarity(torch.as_tensor(a).float(), torch.as_tensor(b).float(), dim=-1).min())
