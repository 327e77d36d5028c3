"""Attention with dropout on a CPU computes torch's, text by text, and its gradients are those of what it computes."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from st_llm2vec.backend import attention, dropout
from st_llm2vec.backend.dropout import attend_with_dropout
from st_llm2vec.backend.packed_batch import PackedBatch

LENGTHS = (1, 4, 4, 7, 30)
MASKS = [(False, None), (True, None), (False, 3), (True, 5)]  # is_causal, window


def inputs(dtype: torch.dtype = torch.float32, lengths: tuple[int, ...] = LENGTHS) -> tuple[PackedBatch, list[Tensor]]:
    """A packed batch; queries of 6 heads, keys and values of 2, as projections leave them."""
    torch.manual_seed(0)
    batch = PackedBatch.of(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])
    shapes = [(1, sum(lengths), heads, dim) for heads, dim in ((6, 8), (2, 8), (2, 5))]
    return batch, [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(("is_causal", "window"), MASKS)
@pytest.mark.parametrize("autocast", [False, True])
def test_where_nothing_falls_out_it_is_torchs(is_causal: bool, window: int | None, autocast: bool) -> None:
    batch, tensors = inputs()
    call = attention.Call(*tensors, 0.3, is_causal, window)
    expected = attention._by_sdpa(batch, call) / 0.75  # what is kept is larger by the share that is dropped
    gradient = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, tensors, gradient)
    dropped = attention.replace(call, dropout=0.25)
    keeps_all = mock.patch.object(dropout, "keep_mask", lambda x, _: torch.ones_like(x, dtype=torch.bool))
    with keeps_all, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = attention.within_texts(batch, dropped)
        gradients = torch.autograd.grad(found, tensors, gradient)
    for one, other in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-5)


def test_dtypes_that_differ_are_the_widest() -> None:
    """As autocast hands them on: the rotary embedding is float32, and values are not turned."""
    batch, (query, key, value) = inputs()
    value = value.detach().bfloat16().requires_grad_()
    torch.manual_seed(1)
    found = attend_with_dropout(query, key, value, batch, dropped=0.4)
    torch.manual_seed(1)
    assert torch.equal(found, attend_with_dropout(query, key, value.float(), batch, dropped=0.4))
    found.sum().backward()
    assert value.grad is not None
    assert value.grad.dtype == torch.bfloat16


def test_gradients_are_those_of_what_was_drawn() -> None:
    batch, tensors = inputs(torch.float64, (2, 3, 3))

    def attend(*tensors: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attend_with_dropout(*tensors, batch, dropped=0.4)

    assert torch.autograd.gradcheck(attend, tensors)
    first, again = attend_with_dropout(*tensors, batch, dropped=0.4), attend(*tensors)
    assert torch.equal(again, attend(*tensors))
    assert not torch.allclose(first, again)


def test_the_mean_of_many_draws_is_attention_without_dropout() -> None:
    batch, tensors = inputs()
    expected = attention._by_sdpa(batch, attention.Call(*tensors, None, False, None)).detach()
    with torch.no_grad():
        draws = torch.stack([attend_with_dropout(*tensors, batch, dropped=0.3) for _ in range(600)])
    assert float(((draws.mean(0) - expected) / draws.std(0).clamp_min(1e-6)).abs().max()) < 6 / 600**0.5
