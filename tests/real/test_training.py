"""Training on SmolLM2: packed gradients are the padded ones, and our LoRA layer's are peft's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.tuners import lora
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

import st_llm2vec
from st_llm2vec.training import add_lora
from st_llm2vec.training.lora_linear import LoraLinear

ANCHORS = [
    "A man is playing a guitar.",
    "Stocks fell sharply on Monday, after the central bank had raised its rates once more.",
    "The cat sat on the mat.",
]
POSITIVES = ["Someone plays the guitar.", "Shares dropped.", "A cat is asleep on the couch, next to an open window."]


def gradients(
    folder: Path, dtype: str, packing: bool, ours: bool = True, checkpointing: bool = False, layers: int = 30
) -> tuple[float, Tensor]:
    """Loss and the adapter's gradients of one supervised batch; `ours` is whose LoRA layers."""
    model = st_llm2vec.load(str(folder), dtype=dtype, device="cpu", packing=packing).train()
    decoder = model[0].model
    decoder.layers = decoder.layers[:layers]
    decoder.config.num_hidden_layers = layers
    add_lora(model, "supervised", r=4, dropout=0.0)
    torch.manual_seed(0)
    for module in decoder.modules():
        if isinstance(module, LoraLinear):
            module.lora_B["default"].weight.data.normal_(0, 0.02)  # peft's own first is zero, and so A's gradient
            if not ours:
                module.__class__ = lora.Linear
    if checkpointing:
        name = "activation" if hasattr(decoder, "activation_checkpointing_enable") else "gradient"
        getattr(decoder, f"{name}_checkpointing_enable")()
    columns = [model.preprocess(texts) for texts in (ANCHORS, POSITIVES)]
    loss = MultipleNegativesRankingLoss(model)(columns, torch.arange(len(ANCHORS)))
    loss.backward()
    assert bool(model[0].status["packed"]) == packing, model[0].status["packed"]
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(found).double()


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_in_float32_packed_gradients_are_the_padded_ones(smollm2: Path) -> None:
    """The plain path moves them by 1.5e-6 when the texts come in another order; a leak between texts by 1e-1."""
    loss, expected = gradients(smollm2, "float32", packing=False, ours=False)
    for options in ({}, {"checkpointing": True}):
        packed_loss, found = gradients(smollm2, "float32", packing=True, **options)
        assert packed_loss == pytest.approx(loss, rel=1e-4)
        assert apart(found, expected) < 1e-3


def test_in_bfloat16_packed_gradients_are_as_near_to_float32s(smollm2: Path) -> None:
    """Of six layers: over thirty untrained ones, rounding alone turns the plain path's away from float32's."""
    _, exact = gradients(smollm2, "float32", packing=False, ours=False, layers=6)
    _, padded = gradients(smollm2, "bfloat16", packing=False, ours=False, layers=6)
    _, packed = gradients(smollm2, "bfloat16", packing=True, layers=6)
    assert apart(packed, exact) < 1.25 * apart(padded, exact)
