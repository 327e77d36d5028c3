"""Training on SmolLM2: packed gradients are the padded ones, and our LoRA layer's are peft's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
TEXTS = (ANCHORS, POSITIVES)


def in_training(folder: Path, dtype: str, layers: int = 30) -> Any:
    """SmolLM2's first layers with an adapter of which both matrices get gradients."""
    model = st_llm2vec.load(str(folder), dtype=dtype, device="cpu").train()
    decoder = model[0].model
    decoder.layers, decoder.config.num_hidden_layers = decoder.layers[:layers], layers
    add_lora(model, "supervised", r=4, dropout=0.0)
    torch.manual_seed(0)
    for module in decoder.modules():
        if isinstance(module, LoraLinear):
            module.lora_B["default"].weight.data.normal_(0, 0.02)
    return model


def gradients(model: Any, packing: bool, ours: bool = True, texts: Any = TEXTS) -> tuple[float, Tensor]:
    """Loss and the adapter's gradients of one supervised batch; `ours` is whose LoRA layers run."""
    model[0].packing = packing
    for module in model.modules():
        if isinstance(module, lora.Linear):
            module.__class__ = LoraLinear if ours else lora.Linear
    model.zero_grad()
    columns = [model.preprocess(list(column)) for column in texts]
    loss = MultipleNegativesRankingLoss(model)(columns, torch.arange(len(texts[0])))
    loss.backward()
    assert bool(model[0].status["packed"]) == packing, model[0].status["packed"]
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(found).double()


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_in_float32_packed_gradients_are_the_padded_ones(smollm2: Path) -> None:
    """The plain path moves them by 1.5e-6 when the texts come in another order; a leak between texts by 1e-1."""
    model = in_training(smollm2, "float32")
    loss, expected = gradients(model, packing=False, ours=False)
    for checkpointing in (False, True):
        if checkpointing:
            name = "activation" if hasattr(model[0].model, "activation_checkpointing_enable") else "gradient"
            getattr(model[0].model, f"{name}_checkpointing_enable")()
        packed_loss, found = gradients(model, packing=True)
        assert packed_loss == pytest.approx(loss, rel=1e-4)
        assert apart(found, expected) < 1e-3


def test_in_bfloat16_packed_gradients_are_as_near_to_float32s(smollm2: Path) -> None:
    """Of six layers: over thirty untrained ones, rounding alone turns the plain path's away from float32's."""
    exact, rounded = (in_training(smollm2, dtype, layers=6) for dtype in ("float32", "bfloat16"))
    for texts in (TEXTS, TEXTS[::-1]):
        truth = gradients(exact, packing=False, ours=False, texts=texts)[1]
        plain = apart(gradients(rounded, packing=False, ours=False, texts=texts)[1], truth)
        for packing, ours in ((True, False), (False, True), (True, True)):
            found = apart(gradients(rounded, packing, ours, texts)[1], truth)
            print(f"packed {packing}, our LoRA layers {ours}: {found:.2e} from float32's, plainly {plain:.2e}")
            assert found < 1.5 * plain
