"""Our LoRA layer is peft's: values, gradients, dropout; and whatever is not the plain case is left to peft."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from tiny_models import tiny_decoder
from torch import Tensor, nn

from st_llm2vec.training.lora_linear import LoraLinear, keep_mask, speed_up

WIDTH, ROWS, TOKENS = 64, 96, 50


def layers(dtype: torch.dtype, bias: bool = True, **options: Any) -> tuple[Any, Any]:
    """(ours, peft's) of the same weights, the adapter in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, ROWS, bias=bias)).to(dtype)
    adapted = get_peft_model(model, LoraConfig(target_modules=["0"], r=4, lora_alpha=8, **options)).train()
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape) / 4
    peft_layer = adapted.base_model.model[0]
    ours = copy.deepcopy(adapted)
    assert speed_up(ours) == 1
    return ours.base_model.model[0], peft_layer


def pass_through(layer: Any, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Output, and the gradients of the input and the adapter."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    out.backward(gradient.to(out.dtype))
    found = [out.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]
    assert len(found) == 4
    return found


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, TOKENS, WIDTH).to(dtype), torch.randn(2, TOKENS, ROWS).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_in_float32(bias: bool) -> None:
    ours, peft_layer = layers(torch.float32, bias)
    for found, expected in zip(pass_through(ours, *batch()), pass_through(peft_layer, *batch()), strict=True):
        assert found.dtype == expected.dtype
        assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_in_bfloat16_it_is_as_near_to_the_truth_as_pefts() -> None:
    ours, peft_layer = layers(torch.bfloat16)
    exact = copy.deepcopy(peft_layer).double()
    inputs = batch(torch.bfloat16)
    truth = pass_through(exact, *(x.double() for x in inputs))
    for found, other, true in zip(pass_through(ours, *inputs), pass_through(peft_layer, *inputs), truth, strict=True):
        assert found.dtype == other.dtype  # the adapter's gradients: float32
        error, theirs = ((x.double() - true).norm() / true.norm() for x in (found, other))
        assert error < max(1.5 * theirs, 2**-8)


def test_autocast_casts_a_frozen_weight_once_and_again_when_it_changed() -> None:
    ours, peft_layer = layers(torch.float32)
    x, gradient = batch()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            ours(x)
        for _ in range(2):
            found, expected = pass_through(ours, x, gradient), pass_through(peft_layer, x, gradient)
            assert [t.dtype for t in found] == [t.dtype for t in expected]
            for one, other in zip(found, expected, strict=True):
                assert (one - other).norm() < 2**-6 * other.norm()
            cast = ours._frozen(torch.bfloat16)[0]
            assert ours._frozen(torch.bfloat16)[0] is cast
            for layer in (ours, peft_layer):
                layer.base_layer.weight.data.mul_(-1)
                layer.base_layer.weight.add_(0)  # counts as a change
    assert "_cast" not in vars(pickle.loads(pickle.dumps(ours)))


def test_dropout_of_a_layer_is_pefts() -> None:
    """The branch reads what is kept, doubled here; its gradients go the same way."""
    ours, _ = layers(torch.float32, lora_dropout=0.5)
    x, gradient = batch()
    torch.manual_seed(5)
    found = pass_through(ours, x, gradient)
    torch.manual_seed(5)
    keep = keep_mask(x.reshape(-1, WIDTH), 0.5).view(x.shape)
    assert 0.4 < keep.float().mean() < 0.6
    x = x.clone().requires_grad_()
    a, b = ours.lora_A["default"].weight, ours.lora_B["default"].weight
    ours.zero_grad()
    out = ours.base_layer(x) + 2 * (x * keep * 2) @ a.t() @ b.t()
    out.backward(gradient)
    for one, other in zip(found, [out.detach(), x.grad, a.grad, b.grad], strict=True):
        assert torch.allclose(one, other, atol=1e-5 * float(other.abs().max()))
    ours.eval()
    assert torch.equal(ours(x), ours(x))


@pytest.mark.parametrize("dropped", [0.05, 0.3, 0.999999])
def test_what_dropout_keeps(dropped: float) -> None:
    """Each value by itself, the asked share of them, and others in the next pass; of torch's generator alone."""
    x = torch.empty(1000, 333)
    torch.manual_seed(3)
    masks = [keep_mask(x, dropped) for _ in range(2)]
    torch.manual_seed(3)
    assert torch.equal(keep_mask(x, dropped), masks[0])
    deviation = (dropped * (1 - dropped) / x.numel()) ** 0.5
    for mask in masks:
        assert mask.shape == x.shape
        assert abs(float(mask.float().mean()) - (1 - dropped)) < 5 * deviation + 2**-16
    kept = [masks[0], masks[1], masks[0].roll(1, 1), masks[0].roll(1, 0)]
    for other in kept[1:]:  # of independent values, both are kept with the product of their probabilities
        both = float((kept[0] & other).float().mean())
        assert abs(both - (1 - dropped) ** 2) < 5 * deviation + 2**-15


def _two_adapters(model: Any) -> None:
    torch.manual_seed(2)
    model.add_adapter("second", LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])


def _double(module: nn.Module, _: Any, out: Tensor) -> Tensor:
    return out * 2


SPECIAL = {
    "merged": lambda model: model.merge_adapter(),
    "disabled": lambda model: model.base_model.disable_adapter_layers(),
    "two adapters": _two_adapters,
    "a hook": lambda model: model.base_model.model[0].lora_A["default"].register_forward_hook(_double),
    "a trainable weight": lambda model: model.base_model.model[0].base_layer.requires_grad_(True),
    "another layer": lambda model: setattr(model.base_model.model[0], "base_layer", nn.Identity()),
}


@pytest.mark.parametrize("case", [*SPECIAL, "dora", "a bias"])
def test_what_is_not_plain_is_left_to_peft(case: str) -> None:
    torch.manual_seed(0)
    options = {"dora": {"use_dora": True}, "a bias": {"lora_bias": True}}.get(case, {})
    model = get_peft_model(
        nn.Sequential(nn.Linear(WIDTH, WIDTH)),
        LoraConfig(target_modules=["0"], init_lora_weights=bool(options), **options),
    )
    plain = copy.deepcopy(model)
    assert speed_up(model) == 1
    for one in (model, plain):
        for name, p in one.named_parameters():
            p.data = torch.linspace(-1, 1, p.numel()).view(p.shape) if "lora_" in name else p.data
        SPECIAL.get(case, lambda _: None)(one)
    x = torch.randn(3, WIDTH)
    found, expected = model(x), plain(x)
    assert torch.allclose(found, expected, atol=1e-5)
    if case not in ("merged", "disabled"):
        found.sum().backward()
        expected.sum().backward()
        for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            assert p.grad is None or torch.allclose(p.grad, q.grad, atol=1e-4), name


def test_layers_of_other_kinds_stay() -> None:
    """gpt2's are no linear layers."""
    model = tiny_decoder("gpt2", None)
    model.add_adapter(LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    assert speed_up(model) == 0
    assert any(type(layer) is lora.Linear for layer in model.modules())
    assert not any(isinstance(layer, LoraLinear) for layer in model.modules())
