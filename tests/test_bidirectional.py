"""Prove the property, not the flag: a later token changes an earlier vector, in every layer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import becomes_bidirectional, causal_layers, table_row, uncompiled_flex
from tiny_models import save_decoder, tiny_decoder
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import st_llm2vec
from st_llm2vec import bidirectional
from st_llm2vec.bidirectional import (
    ARCHITECTURES,
    REFUSED,
    audit,
    enable_bidirectional_attention,
    is_bidirectional,
    needs_module_flags,
    restore_causal_attention,
    twin,
)
from st_llm2vec.errors import StillCausalError, UnsupportedArchitectureError

IDS = torch.arange(3, 20)[None]
CASES = [(name, implementation) for name, row in ARCHITECTURES.items() for implementation in row.implementations]


def hidden(model: PreTrainedModel, ids: Tensor, padded: bool) -> Tensor:
    if padded:
        ids = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], 1)
    with torch.no_grad():
        return model(ids, attention_mask=(ids > 0).long()).last_hidden_state[0]


# Hybrids of a layer that stays causal and one that opens; in the others, every layer stays causal.
HYBRIDS = ["bamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm3", "minimax", "nemotron_h", "olmo_hybrid"]
HYBRIDS += ["qwen3_5_text", "qwen3_next", "recurrent_gemma"]
REFUSED_LAYERS = dict.fromkeys(HYBRIDS, "layer 0 of 2")
WINDOWED = ["mistral", "gemma2", "gemma3_text", "phi3", "qwen2"]


@pytest.fixture(autouse=True)
def _uncompiled_flex() -> Iterator[None]:
    with uncompiled_flex():
        yield


@pytest.mark.parametrize(("model_type", "implementation"), CASES)
def test_every_layer_opens_and_closes_again(model_type: str, implementation: str) -> None:
    model = tiny_decoder(model_type, implementation)
    before, config = hidden(model, IDS, False), model.config.to_dict()
    layers = list(range(model.config.num_hidden_layers))
    for gradients in (
        (False, True) if implementation != "flex_attention" else (False,)
    ):  # flex has no backward pass on a CPU
        report = audit(model, gradients=gradients)
        assert report.causal_layers == layers
        assert len(report.rows) == 3 * len(layers)  # no padding, left, right
    assert becomes_bidirectional(model, implementation)
    assert not torch.equal(hidden(model, IDS, False), before)
    restore_causal_attention(model)
    assert torch.equal(hidden(model, IDS, False), before)
    assert model.config.to_dict() == config


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma3_text", "qwen3", "gpt2", "stablelm"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_a_later_token_changes_an_earlier_one(model_type: str, padded: bool) -> None:
    model = tiny_decoder(model_type)
    changed = IDS.clone()
    changed[0, -1] = 99
    assert torch.equal(hidden(model, IDS, padded)[:16], hidden(model, changed, padded)[:16])
    enable_bidirectional_attention(model)
    moved = (hidden(model, IDS, padded) - hidden(model, changed, padded))[:16].abs().amax(-1)
    assert moved.min() > 1e-5


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_refusal_names_the_layers_that_stay_causal(model_type: str) -> None:
    assert causal_layers(model_type) == REFUSED_LAYERS.get(model_type, "all")


@pytest.mark.parametrize("model_type", [name for name, row in ARCHITECTURES.items() if "sdpa" in row.implementations])
def test_only_attention_mixes_tokens(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the audit cannot see: a recurrence beside bidirectional attention.
    if model_type == "falcon":
        pytest.skip("it calls sdpa itself, so its attention cannot be taken away")
    assert not mixes_without_attention(tiny_decoder(model_type), monkeypatch)


def test_a_recurrence_beside_attention_mixes_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mixes_without_attention(tiny_decoder("falcon_h1"), monkeypatch)


def mixes_without_attention(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> bool:
    def nothing(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return torch.zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", nothing)
    changed = IDS.clone()
    changed[0, 0] = 99
    return not torch.allclose(hidden(model, IDS, False)[1:], hidden(model, changed, False)[1:], atol=1e-6)


@pytest.mark.parametrize("model_type", ["stablelm", "nemotron"])
def test_the_flag_in_the_config_is_not_enough(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert needs_module_flags(tiny_decoder(model_type, "eager"))
    assert not needs_module_flags(tiny_decoder("llama"))
    monkeypatch.setattr(bidirectional, "_set_module_flags", lambda model, *, is_causal: None)
    with pytest.raises(StillCausalError, match=r"layers \[0, 1, 2\] of 3"):
        enable_bidirectional_attention(tiny_decoder(model_type))


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_learned_positions_do_not_see_the_padding(model_type: str, tmp_path: Path) -> None:
    encoder = st_llm2vec.load(save_decoder(tmp_path / model_type, model_type), device="cpu")
    texts = ["fox", "the quick brown fox jumps over a lazy dog while seven wizards compress files"]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=1e-6)


def test_two_directions_in_two_threads_on_one_set_of_weights() -> None:
    model = tiny_decoder("mistral", sliding_window=4)
    expected = {"causal": hidden(model, IDS, True)}
    enable_bidirectional_attention(model)
    expected["bidirectional"] = hidden(model, IDS, True)
    models = {"bidirectional": model, "causal": twin(model)}
    restore_causal_attention(models["causal"])
    for a, b in zip(model.parameters(), models["causal"].parameters(), strict=True):
        assert a is b

    def run(direction: str) -> bool:
        return all(torch.equal(hidden(models[direction], IDS, True), expected[direction]) for _ in range(20))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, ["causal", "bidirectional"] * 4))


def test_a_twin_of_an_encoder_is_an_encoder(tmp_path: Path) -> None:
    encoder = st_llm2vec.load(save_decoder(tmp_path / "qwen3", "qwen3"), device="cpu")
    vectors = encoder.encode(["the quick brown fox"])
    causal = twin(encoder)
    causal[0].attention = "causal"
    assert not np.allclose(causal.encode(["the quick brown fox"]), vectors, atol=1e-5)
    assert np.array_equal(encoder.encode(["the quick brown fox"]), vectors)
    assert {id(p) for p in causal.parameters()} == {id(p) for p in encoder.parameters()}


def test_loading_costs_two_forward_passes_of_three_rows_of_eight_tokens() -> None:
    model = tiny_decoder("llama")
    shapes = []
    model.register_forward_pre_hook(lambda *args: shapes.append(args[2]["input_ids"].shape), with_kwargs=True)
    enable_bidirectional_attention(model)
    assert shapes == [(3, 8), (3, 8)]


def test_sharp_local_heads_are_seen() -> None:
    """As in trained decoders: attention falls below a millionth over seven positions, and is bidirectional still."""
    model = tiny_decoder("llama")
    for name, weight in model.layers[1].self_attn.named_parameters():
        if name[:2] in ("q_", "k_"):
            weight.data *= 52
    enable_bidirectional_attention(model)
    restore_causal_attention(model)
    assert audit(model, paddings=("none",)).causal_layers == [0, 1, 2]


def test_the_page_has_the_rows_of_the_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "architectures.md").read_text(encoding="utf-8")
    page = page.partition("\n\n## What LoRA adapts")[0].splitlines()
    start, refused = page.index("| --- | --- | --- | --- |") + 1, page.index("| --- | --- | --- |") + 1
    assert page[start : start + len(ARCHITECTURES)] == [table_row(name) for name in ARCHITECTURES]
    wanted = [f"| {name} | {REFUSED_LAYERS.get(name, 'all')} | {reason} |" for name, reason in REFUSED.items()]
    assert page[refused:] == wanted


@pytest.mark.parametrize("setting", ["off", "symmetric"])
@pytest.mark.parametrize("model_type", WINDOWED)
def test_a_window_is_off_or_symmetric(model_type: str, setting: Any) -> None:
    window = {"use_sliding_window": True, "max_window_layers": 0} if model_type == "qwen2" else {}
    model = tiny_decoder(model_type, "eager", sliding_window=8, **window)
    windows = [module.__dict__.get("sliding_window") for module in model.modules()]
    causal = hidden(model, IDS, False)
    enable_bidirectional_attention(model)
    if setting == "symmetric":
        enable_bidirectional_attention(model, sliding_window="symmetric")
        enable_bidirectional_attention(model)  # again, as when a saved folder is opened
    else:
        assert 8 not in [module.__dict__.get("sliding_window") for module in model.modules()]  # flash attention's copy
    changed = IDS.clone()
    changed[0, -1] = 99
    # One layer reaches eight tokens through a window; the first token must see the seventeenth in each of them.
    with torch.no_grad():
        a, b = (model(ids, output_hidden_states=True).hidden_states[1][0, 0] for ids in (IDS, changed))
    assert bool((a - b).abs().max() > 1e-5) == (setting == "off")
    restore_causal_attention(model)
    assert torch.equal(hidden(model, IDS, False), causal)
    assert [module.__dict__.get("sliding_window") for module in model.modules()] == windows


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
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_bidirectional(other)
        assert audit(other)


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


@pytest.mark.parametrize("model_type", ["mpt", "cpmant"])
def test_a_model_that_cannot_be_audited_is_closed_again(model_type: str) -> None:
    model = tiny_decoder(model_type, "eager")
    with pytest.raises(UnsupportedArchitectureError, match=r"attention='causal'"):
        enable_bidirectional_attention(model)
    assert not is_bidirectional(model)


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


def test_every_earlier_position_has_to_see_the_last() -> None:
    """A layer that looks one token ahead is not open: only the position before the last sees it."""
    model = tiny_decoder("llama")

    def look_ahead(_: Any, args: Any, kwargs: Any, output: Any) -> Tensor:
        tokens: Tensor = args[0] if args else kwargs["hidden_states"]
        moved: Tensor = (output[0] if isinstance(output, tuple) else output) + tokens.roll(-1, 1)
        return moved

    for layer in bidirectional.decoder_layers(model):
        layer.register_forward_hook(look_ahead, with_kwargs=True)
    assert not any(row.bidirectional for row in audit(model, paddings=("none",)).rows)
    with pytest.raises(StillCausalError):
        bidirectional._proven(model)
