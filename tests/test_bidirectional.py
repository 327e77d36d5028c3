"""Prove the property, not the flag: a later token changes an earlier vector, in every layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tiny_models import tiny_decoder
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from st_llm2vec.bidirectional import (
    ARCHITECTURES,
    audit,
    enable_bidirectional_attention,
    is_bidirectional,
    restore_causal_attention,
)
from st_llm2vec.errors import StillCausalError, UnsupportedArchitectureError

IDS = torch.arange(3, 20)[None]
CASES = [(name, kernel) for name, row in ARCHITECTURES.items() for kernel in row.kernels]


def hidden(model: PreTrainedModel, ids: Tensor, padded: bool) -> Tensor:
    if padded:
        ids = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], 1)
    with torch.no_grad():
        return model(ids, attention_mask=(ids > 0).long()).last_hidden_state[0]


@pytest.mark.parametrize(("model_type", "kernel"), CASES, ids="-".join)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_a_later_token_changes_an_earlier_one(model_type: str, kernel: str, padded: bool) -> None:
    model = tiny_decoder(model_type, kernel)
    changed = IDS.clone()
    changed[0, -1] = 99
    assert torch.equal(hidden(model, IDS, padded)[:16], hidden(model, changed, padded)[:16])
    enable_bidirectional_attention(model)
    moved = (hidden(model, IDS, padded) - hidden(model, changed, padded))[:16].abs().amax(-1)
    assert moved.min() > 1e-4


@pytest.mark.parametrize(("model_type", "kernel"), CASES, ids="-".join)
def test_both_audits_agree_before_and_after(model_type: str, kernel: str) -> None:
    model = tiny_decoder(model_type, kernel)
    for gradients in (False, True):
        before = audit(model, gradients=gradients)
        assert before.causal_layers == [0, 1, 2]
        assert len(before.rows) == 9  # 3 layers x no padding, left, right
    enable_bidirectional_attention(model)
    assert audit(model)
    assert audit(model, gradients=True)


@pytest.mark.parametrize(("model_type", "kernel"), CASES, ids="-".join)
def test_closing_gives_the_same_numbers_bit_for_bit(model_type: str, kernel: str) -> None:
    windowed = {"sliding_window": 4} if model_type in ("mistral", "gemma2", "gemma3_text", "phi3") else {}
    model = tiny_decoder(model_type, kernel, **windowed)
    before, config = hidden(model, IDS, False), model.config.to_dict()
    enable_bidirectional_attention(model)
    assert not torch.equal(hidden(model, IDS, False), before)
    restore_causal_attention(model)
    assert torch.equal(hidden(model, IDS, False), before)
    assert model.config.to_dict() == config


@pytest.mark.parametrize("model_type", ["mistral", "gemma2", "gemma3_text", "phi3"])
def test_a_window_is_switched_off(model_type: str) -> None:
    model = tiny_decoder(model_type, "eager", sliding_window=4)
    enable_bidirectional_attention(model)
    changed = IDS.clone()
    changed[0, -1] = 99
    # One layer reaches four tokens through a window; the first token must see the seventeenth in each of them.
    with torch.no_grad():
        a, b = (model(ids, output_hidden_states=True).hidden_states[1][0, 0] for ids in (IDS, changed))
    assert (a - b).abs().max() > 1e-5


def test_setting_travels_in_config_and_comes_back_causal(tmp_path) -> None:
    model = tiny_decoder("mistral", sliding_window=4)
    before = hidden(model, IDS, False)
    enable_bidirectional_attention(model)
    opened = hidden(model, IDS, False)
    model.save_pretrained(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.allclose(hidden(stock, IDS, False), opened, atol=1e-6)
    restore_causal_attention(stock)
    assert torch.allclose(hidden(stock, IDS, False), before, atol=1e-6)


def test_copies_and_pickles_stay_open() -> None:
    model = tiny_decoder("qwen3")
    enable_bidirectional_attention(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_bidirectional(twin)
        assert audit(twin)


def test_a_stubborn_layer_is_named_and_the_model_closed_again() -> None:
    model = tiny_decoder("llama")
    before = hidden(model, IDS, False)
    stubborn = model.layers[1].self_attn
    original = stubborn.forward

    def causal(hidden_states: Tensor, **kwargs):
        length = hidden_states.shape[1]
        kwargs["attention_mask"] = torch.ones(length, length).tril().bool()[None, None]
        return original(hidden_states, **kwargs)

    stubborn.forward = causal
    with pytest.raises(StillCausalError, match=r"layers \[1\] of 3.*'sdpa'"):
        enable_bidirectional_attention(model)
    stubborn.forward = original
    assert not is_bidirectional(model)
    assert torch.equal(hidden(model, IDS, False), before)


def test_low_precision_is_audited_too() -> None:
    model = tiny_decoder("llama").to(torch.bfloat16)
    assert not audit(model)
    assert enable_bidirectional_attention(model)


def test_encoders_are_refused_with_the_reason() -> None:
    config = AutoConfig.for_model("bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=99)
    with pytest.raises(UnsupportedArchitectureError, match="bidirectional already"):
        enable_bidirectional_attention(AutoModel.from_config(config))
    config = AutoConfig.for_model("t5", d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, vocab_size=99)
    with pytest.raises(UnsupportedArchitectureError, match="encoder-decoder"):
        enable_bidirectional_attention(AutoModel.from_config(config))


def test_recurrence_is_refused() -> None:
    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=99, state_size=4)
    with pytest.raises(UnsupportedArchitectureError):
        enable_bidirectional_attention(AutoModel.from_config(config))
