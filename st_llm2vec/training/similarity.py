"""Cosine similarity as the losses take it."""

from __future__ import annotations

import torch
from sentence_transformers.util import cos_sim
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity in float32: bfloat16 would round it to 1/256, which the loss then multiplies by its scale."""
    with torch.autocast(a.device.type, enabled=False):
        similarity: Tensor = cos_sim(a.float(), b.float())
    return similarity
