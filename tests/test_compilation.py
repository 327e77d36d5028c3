"""Compiled layers give the vectors of the layers as they are, for packed sequences of any length, and only there."""

from __future__ import annotations

import os
import pickle
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import WORDS, save_decoder, tiny_decoder, tiny_tokenizer
from torch.nn.functional import cosine_similarity

import st_llm2vec
from st_llm2vec.backend import compilation
from st_llm2vec.backend.compilation import compile_layers
from st_llm2vec.backend.packed_batch import PackedBatch, packed
from st_llm2vec.backend.packing import enable_packing
from st_llm2vec.backend.prepacked import prepack
from st_llm2vec.bidirectional import decoder_layers, enable_bidirectional_attention

# torch's compiler imports what torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

needs_compiler = pytest.mark.skipif(
    not (shutil.which(os.environ.get("CXX", "g++")) and Path(sysconfig.get_path("include"), "Python.h").is_file()),
    reason="there is no C++ compiler, or no Python.h",
)

# Norms of every kind, biases, rotation of a part, parallel blocks, latent attention, experts, windows. All of them take
# minutes: COMPILED="apertus arcee ..." pytest tests/test_compilation.py
MODEL_TYPES = os.environ.get("COMPILED", "deepseek_v3 gemma3_text gpt2 phi qwen3_moe").split()
TEXTS = ["", "a", "seven wizards", WORDS, "the quick brown fox " * 40, "search and find", "compress files", "é ∑ 编码"]


def hidden_states(model: Any, lengths: list[int]) -> torch.Tensor:
    batch = PackedBatch.of(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])
    ids = torch.arange(3, 3 + sum(lengths))[None] % 300
    with torch.inference_mode(), packed(batch):
        hidden: torch.Tensor = model(input_ids=ids, position_ids=batch.position_ids)[0]
    return hidden


@needs_compiler
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_same_hidden_states(model_type: str) -> None:
    model = tiny_decoder(model_type, num_hidden_layers=2).eval()  # of each kind one
    enable_bidirectional_attention(model)
    assert enable_packing(model)
    prepack(model)
    batches = [[1], [2], [1, 7, 7, 19, 30], [50, 3, 3]]
    before = [hidden_states(model, lengths) for lengths in batches]
    assert compile_layers(model)
    for hidden, lengths in zip(before, batches, strict=True):
        assert torch.allclose(hidden_states(model, lengths), hidden, atol=1e-5 * float(hidden.abs().max()))


@needs_compiler
def test_a_causal_window_is_compiled() -> None:
    model = tiny_decoder("mistral", sliding_window=5).eval()
    assert enable_packing(model)
    before = hidden_states(model, [1, 4, 5, 6, 40])
    assert compile_layers(model)
    assert torch.allclose(hidden_states(model, [1, 4, 5, 6, 40]), before, atol=1e-5)


def test_an_implementation_that_is_not_compiled() -> None:
    model = tiny_decoder("llama", "eager").eval()
    assert "takes no packed sequences" in str(compile_layers(model))
    assert enable_packing(model)
    assert "'eager'" in str(compile_layers(model))
    assert decoder_layers(model)[0]._compiled_call_impl is None


@needs_compiler
def test_a_layer_that_would_differ_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_decoder("llama").eval()
    assert enable_packing(model)
    before = hidden_states(model, [3, 9])
    vectors, scales = compilation.vectors_of, iter([1.0, 1.01])

    def scaled(*args: Any) -> list[torch.Tensor]:
        scale = next(scales)
        return [states * scale for states in vectors(*args)]

    monkeypatch.setattr(compilation, "vectors_of", scaled)
    assert "moves the vectors" in str(compile_layers(model))
    assert torch.equal(hidden_states(model, [3, 9]), before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("compilation") / "llama", tokenizer=tiny_tokenizer(bos=True))


@pytest.fixture(scope="module")
def model(folder: Path) -> st_llm2vec.LLM2Vec:
    return st_llm2vec.load(str(folder), device="cpu", dtype="float32", compile=True)


@needs_compiler
def test_load(folder: Path, model: st_llm2vec.LLM2Vec) -> None:
    assert model[0].status["compiled"]
    expected = st_llm2vec.load(str(folder), device="cpu").encode(TEXTS)
    for batch_size in (1, 3, 32):
        assert np.allclose(model.encode(TEXTS, batch_size=batch_size), expected, atol=1e-5)
    assert np.allclose(model.encode(TEXTS[::-1])[::-1], expected, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"quantize": "int8"}, {"quantize": "int8", "dtype": "float32"}], ids=str
)
def test_other_numbers(folder: Path, options: dict[str, str]) -> None:
    one, other = (st_llm2vec.load(str(folder), device="cpu", compile=c, **options) for c in (True, False))
    assert one[0].status["compiled"]
    a, b = (m.encode(TEXTS, convert_to_tensor=True).float() for m in (one, other))
    assert float(cosine_similarity(a, b).min()) >= 0.9995


@needs_compiler
def test_who_needs_ordinary_layers_gets_them(folder: Path) -> None:
    model = st_llm2vec.load(str(folder), device="cpu", dtype="float32", compile=True)
    expected = model.encode(TEXTS)
    with torch.enable_grad():
        loss = model(model.preprocess(TEXTS))["sentence_embedding"].sum()
    loss.backward()
    layer = decoder_layers(model[0].model)[0]
    assert float(layer.self_attn.q_proj.weight.grad.abs().max()) > 0
    assert np.allclose(model.encode(TEXTS), expected, atol=1e-5)  # ordinary weights again, compiled anew
    layer.mlp.down_proj.weight.data *= 2
    assert not np.allclose(model.encode(TEXTS), expected, atol=1e-3)


@needs_compiler
def test_a_copy_compiles_by_itself(model: st_llm2vec.LLM2Vec) -> None:
    expected = model.encode(TEXTS)
    copied = pickle.loads(pickle.dumps(model))
    assert copied[0].status["compiled"].on is None
    assert np.allclose(copied.encode(TEXTS), expected, atol=1e-5)
    assert copied[0].status["compiled"]


def test_a_model_that_its_user_compiles_is_padded(folder: Path) -> None:
    model = st_llm2vec.load(str(folder), device="cpu")
    expected = model.encode(TEXTS)
    model.compile(backend="eager")
    assert np.allclose(model.encode(TEXTS), expected, atol=1e-5)
    assert np.allclose(model.encode(TEXTS[3:4]), expected[3:4], atol=1e-5)  # no pads, so no mask


def test_what_cannot_be_compiled_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"device": "cpu", "compile": True}
    model = st_llm2vec.load(str(folder), packing=False, **options)
    assert "compile=True was left out: packing=False" in caplog.text
    eager = st_llm2vec.load(str(folder), model_kwargs={"attn_implementation": "eager"}, **options)
    assert "'eager'" in caplog.text
    assert np.allclose(eager.encode(TEXTS), model.encode(TEXTS), atol=1e-5)


def test_without_a_compiler_the_model_encodes_as_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing compiled before
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        model = st_llm2vec.load(str(folder), device="cpu", dtype="bfloat16", compile=True)
    assert "compile=True was left out" in caplog.text
    assert "ompiler" in str(model[0].status["compiled"])
    expected = st_llm2vec.load(str(folder), device="cpu", dtype="bfloat16").encode(TEXTS)
    assert np.allclose(model.encode(TEXTS), expected, atol=1e-5)
