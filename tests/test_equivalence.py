"""One rule accepts what gives the same vectors, and refuses what breaks them: on tiny random models and on a real one.

REAL_MODEL=FOLDER adds a pretrained decoder (`make test-real`); everything else needs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from processors import needs
from tiny_models import tiny_decoder
from transformers import AutoConfig, AutoModel, AutoTokenizer, MistralConfig, MistralModel, PreTrainedModel

from st_llm2vec.backend import attention, equivalence
from st_llm2vec.backend.equivalence import (
    LIMITS,
    PROBES,
    SLACK,
    Move,
    Status,
    alone,
    judge,
    own_noise,
    precision,
    probe_ids,
)
from st_llm2vec.backend.packed_batch import PackedBatch
from st_llm2vec.backend.packing import enable_packing, is_packing
from st_llm2vec.backend.prepacked import Product, prepack
from st_llm2vec.bidirectional import enable_bidirectional_attention

REAL = os.environ.get("REAL_MODEL")
MODELS = ["tiny", *(["real"] if REAL else [])]


def decoder(name: str, **changes: Any) -> tuple[PreTrainedModel, Any]:
    """A decoder and its tokenizer; with `changes` one that has windows."""
    if name == "tiny":
        # of 0.02, transformers' own, attention is even, and in bfloat16 nobody could tell where a token stands
        return tiny_decoder("mistral" if changes else "llama", initializer_range=0.2, **changes), None
    model = AutoModel.from_pretrained(REAL, dtype=torch.float32).eval()
    if changes:  # a mistral is a llama with a window
        known = {k: v for k, v in AutoConfig.from_pretrained(REAL).to_dict().items() if k != "model_type"}
        config = MistralConfig(**known | changes, attn_implementation="sdpa")
        windowed = MistralModel(config).eval()
        windowed.load_state_dict(model.state_dict())
        model = windowed
    return model, AutoTokenizer.from_pretrained(REAL)


def shorter(
    implementation: str, query: Any, causal: bool, window: int | None, mask: Callable[..., Any] = attention._mask
) -> Any:
    return mask(implementation, query, causal, window and window - 1)


def lost(
    implementation: str, query: Any, causal: bool, window: int | None, mask: Callable[..., Any] = attention._mask
) -> Any:
    return mask(implementation, query, causal, None)


def blind(implementation: str, query: Any, causal: bool, window: int | None) -> Any:
    """One token of longer texts does not see the one before."""
    length = query.shape[2]
    seen = torch.ones(length, length, dtype=torch.bool)
    if length > 4:
        seen[length // 2, length // 2 - 1] = False
    return seen[None, None]


def touching(batch: PackedBatch) -> list[tuple[int, int]]:
    """The two shortest texts attend to each other."""
    return [(1, sum(batch.lengths[:2])), *((1, n) for n in batch.lengths[2:])]


def positions(change: Callable[[torch.Tensor], torch.Tensor], of: Any = PackedBatch.of) -> Callable[[Any], PackedBatch]:
    def broken(mask: Any) -> PackedBatch:
        batch: PackedBatch = of(mask)
        return PackedBatch(batch.positions, change(batch.position_ids), batch.lengths)

    return broken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("name", MODELS)
def test_packing_is_accepted(name: str, attention: str, dtype: torch.dtype) -> None:
    model, tokenizer = decoder(name)
    if attention == "bidirectional":
        enable_bidirectional_attention(model)
    status = enable_packing(model.to(dtype), tokenizer)
    assert status, status
    assert status.move is not None
    assert status.noise is not None


@pytest.mark.parametrize("fault", [shorter, lost])
@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_window_is_refused(name: str, fault: Callable[..., Any]) -> None:
    model, tokenizer = decoder(name, sliding_window=12)
    with mock.patch.object(attention, "_mask", fault):
        assert "moves the vectors" in str(enable_packing(model, tokenizer))
    assert not is_packing(model)
    assert enable_packing(model, tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param((attention, "_mask", blind), id="one token unseen"),
        pytest.param((PackedBatch, "runs", property(touching)), id="texts see each other"),
        pytest.param((PackedBatch, "of", positions(lambda ids: ids * 2)), id="positions doubled"),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_a_fault_is_refused(name: str, fault: tuple[Any, str, Any], dtype: torch.dtype) -> None:
    model, tokenizer = decoder(name)
    model = model.to(dtype)
    enable_bidirectional_attention(model)
    with mock.patch.object(*fault):
        status = enable_packing(model, tokenizer)
    assert "moves the vectors" in str(status)
    assert enable_packing(model, tokenizer)


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_positions_that_do_not_restart_are_refused(model_type: str) -> None:
    """Where positions are absolute; rotary ones are relative, and a text anywhere has the same vectors."""
    running = positions(lambda ids: torch.arange(ids.numel())[None])
    model = tiny_decoder(model_type)
    with mock.patch.object(PackedBatch, "of", running):
        assert not enable_packing(model)
    assert enable_packing(model)


@needs["float32"]
@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_product_is_refused(name: str) -> None:
    model, tokenizer = decoder(name)
    multiply = Product.multiply
    with mock.patch.object(Product, "multiply", lambda *args: multiply(*args) * 1.0005):
        assert "moves the vectors" in str(prepack(model, tokenizer))
    assert prepack(model, tokenizer)


def test_the_rule() -> None:
    """Below the floor always, above the ceiling never, in between as far as the plain path moves."""
    before = [torch.ones(4, 8), torch.ones(2, 8)]
    text, token = LIMITS["float32"]

    def move(by: float, noise: float) -> Status:
        return judge(before, [before[0], before[1] * (1 + by)], Move(noise, noise), "float32")

    assert move(text.floor / 2, 0.0)
    assert not move(text.floor * 2, 0.0)
    assert move(text.floor * 2, text.floor)
    assert not move(text.floor * 2 * SLACK, text.floor)
    assert not move(text.ceiling * 2, 1.0)
    assert not move(torch.nan, 1.0)
    # a single token's fault, which the mean over a long text hides
    long = [torch.ones(10_000, 8)]
    wrong = [long[0].clone()]
    wrong[0][5] *= 1 + 2 * token.floor
    assert "single tokens" in str(judge(long, wrong, Move(0.0, 0.0), "float32"))
    assert not judge(before, [states * torch.nan for states in before], Move(1.0, 1.0), "float32")


def test_probe_texts_reach_beyond_windows() -> None:
    for changes, longest in ({"sliding_window": 50}, 53), ({"sliding_window": 256}, 24), ({}, 24):
        texts = probe_ids(tiny_decoder("mistral", **changes))
        assert max(map(len, texts)) == longest
        assert 1 in map(len, texts)
    chunked = tiny_decoder("llama4_text", attention_chunk_size=40)
    assert max(map(len, probe_ids(chunked))) == 43


def test_own_noise_is_measured_once() -> None:
    model = tiny_decoder("llama")
    texts = probe_ids(model)
    first = own_noise(model, texts)
    assert first.text < 1e-5
    with mock.patch.object(model, "forward", side_effect=AssertionError):
        assert own_noise(model, texts) == first
    assert own_noise(model.to(torch.bfloat16), texts) != first  # for another dtype again


def test_noise_is_what_a_decoder_makes_of_rounding() -> None:
    """Another batch is often computed by the same sums in the same order; another product's are in another order."""
    model = tiny_decoder("llama")
    for name, parameter in model.named_parameters():  # channels that are the same, large, and cancel out
        weight = parameter.data
        if name.endswith("embed_tokens.weight"):
            weight[:, 1] = weight[:, 0]
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[1] = weight[0]
        elif weight.ndim == 2:
            weight[:, 0], weight[:, 1] = 100.0, -100.0
    texts = probe_ids(model)
    with mock.patch.object(equivalence, "_rounded_otherwise", return_value=nullcontext()):
        by_another_batch = own_noise(model, texts)
    equivalence._known.clear()
    found = own_noise(model, texts)
    assert found.text > 4 * by_another_batch.text
    assert found.text < LIMITS["float32"].text.ceiling
    before = alone(model, texts)
    with equivalence._rounded_otherwise(model), ThreadPoolExecutor(1) as pool:
        elsewhere, here = pool.submit(alone, model, texts).result(), alone(model, texts)
    assert Move.between(before, elsewhere).text == 0  # who encodes in another thread notices nothing
    assert Move.between(before, here).text > 0
    assert Move.between(before, alone(model, texts)).text == 0


def test_a_text_alone_has_its_own_tokens() -> None:
    model = tiny_decoder("llama")
    assert [len(states) for states in alone(model, [[3], [4, 5, 6]])] == [1, 3]
    assert len(PROBES) == 7


def test_noise_is_measured_again_for_another_direction_of_attention() -> None:
    model, _ = decoder("tiny")
    texts = probe_ids(model)
    causal = own_noise(model, texts)
    enable_bidirectional_attention(model)
    assert own_noise(model, texts) != causal


def test_a_model_in_int8_is_held_to_the_limits_of_int8() -> None:
    model = tiny_decoder("llama")
    assert precision(model) == "float32"
    model.is_quantized = True
    assert precision(model) == "int8"


def test_a_move_is_relative_to_the_vector() -> None:
    before = torch.full((1, 4, 8), 50.0)
    assert Move.between(before, before * 1.01).text == pytest.approx(0.01, rel=1e-4)
    assert Move.between(before / 1e4, before / 1e4 * 1.01).token == pytest.approx(0.01, rel=1e-4)
