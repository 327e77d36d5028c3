"""Our attention on a CPU computes what torch's does, text by text."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_decoder

from st_llm2vec.backend import attention, cpu_attention, packing
from st_llm2vec.backend.packed_batch import PackedBatch
from st_llm2vec.bidirectional import enable_bidirectional_attention

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's compiler imports what torch itself deprecates
    pytest.mark.skipif(
        not (
            torch.cpu._is_avx512_supported()
            and shutil.which(os.environ.get("CXX", "g++"))
            and Path(sysconfig.get_path("include"), "Python.h").is_file()
        ),
        reason="it needs AVX512, a C++ compiler and Python.h",
    ),
]


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    cpu_attention._library.cache_clear()  # it remembers that a test of what is missing had no compiler


def batch_of(lengths: Sequence[int]) -> PackedBatch:
    return PackedBatch.of(torch.arange(max(lengths)) < torch.tensor(sorted(lengths))[:, None])


def heads(total: int, number: int, dim: int) -> torch.Tensor:
    """(1, number, total, dim) as a projection leaves it: heads side by side."""
    return torch.randn(1, total, number, dim).transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    shared=st.sampled_from([1, 2, 3, 7]),
    keys=st.integers(1, 3),
    dim=st.sampled_from([16, 24, 64, 80]),
    width=st.sampled_from([16, 33, 64, 128]),
    is_causal=st.booleans(),
    window=st.sampled_from([None, 1, 5, 40]),
    scaling=st.sampled_from([None, 0.3]),
)
def test_equals_torch(
    lengths: list[int],
    shared: int,
    keys: int,
    dim: int,
    width: int,
    is_causal: bool,
    window: int | None,
    scaling: float | None,
) -> None:
    torch.manual_seed(0)
    batch, total = batch_of(lengths), sum(lengths)
    query, key, value = heads(total, keys * shared, dim), heads(total, keys, dim), heads(total, keys, width)
    expected = attention._by_sdpa(batch, attention.Call(query, key, value, scaling, is_causal, window))
    found = cpu_attention.attend(
        query, key, value, batch.cu_seqlens, scaling=scaling, is_causal=is_causal, window=window
    )
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_long_texts_and_large_scores() -> None:
    batch = batch_of([700, 3])
    query, key, value = heads(703, 2, 64) * 30, heads(703, 1, 64), heads(703, 1, 64)
    expected = attention._by_sdpa(batch, attention.Call(query, key, value, None, False, None))
    found = cpu_attention.attend(query, key, value, batch.cu_seqlens)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at", range(3))
def test_nan_is_not_hidden(at: int) -> None:
    batch = batch_of([4, 5])
    parts = [heads(9, 2, 16) for _ in range(3)]
    parts[at][0, 0, 6, 3] = torch.nan
    found = cpu_attention.attend(*parts, batch.cu_seqlens)
    assert found[0, :4].isfinite().all()  # the other text
    assert not found[0, 6, 0].isfinite().all()


def test_what_it_cannot_do_is_left_to_torch() -> None:
    wide, narrow = heads(9, 2, 16), heads(9, 2, 8)
    assert cpu_attention.fits(wide, wide)
    assert not cpu_attention.fits(wide.bfloat16(), wide.bfloat16())
    assert not cpu_attention.fits(narrow, narrow)
    assert not cpu_attention.fits(wide, narrow)
    with pytest.raises(ValueError, match="must end at the 9 tokens of the sequence, got 8"):
        cpu_attention.attend(wide, wide, wide, torch.tensor([0, 4, 8]))  # another batch's


def test_numbers_that_lie_apart() -> None:
    query, key, value = (torch.randn(1, 2, 16, 9).mT for _ in range(3))
    cu_seqlens = torch.tensor([0, 4, 9])
    expected = cpu_attention.attend(query.contiguous(), key.contiguous(), value.contiguous(), cu_seqlens)
    found = cpu_attention.attend(query, key, value, cu_seqlens)
    assert torch.equal(found, expected)


def test_compiled_layers_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from st_llm2vec.backend.compilation import compile_layers
    from st_llm2vec.backend.equivalence import probe_ids

    model = tiny_decoder("llama", head_dim=16).eval()
    enable_bidirectional_attention(model)
    assert packing.enable_packing(model)
    texts = probe_ids(model, None)
    before = packing.vectors_of(model, texts)
    assert compile_layers(model)
    calls: list[Any] = []
    monkeypatch.setattr(attention, "attend", lambda *a, **k: calls.append(cpu_attention.attend(*a, **k)) or calls[-1])
    after = packing.vectors_of(model, texts)
    assert len(calls) == model.config.num_hidden_layers
    for a, b in zip(after, before, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * float(b.abs().max()))
