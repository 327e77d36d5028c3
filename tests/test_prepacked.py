"""Prepacked weights give the vectors that plain ones give, and step aside for whoever needs the weights."""

from __future__ import annotations

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from processors import cosine, needs, without
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import tiny_decoder
from torch import nn

import st_llm2vec
from st_llm2vec.backend.prepacked import PrepackedLinear, Product, prepack, sibling_groups
from st_llm2vec.backend.residual import keeps_residual_in_float32
from st_llm2vec.encoding import _in_use

TEXTS = ["a", "the quick brown fox", "seven wizards compress files and search for query answers while a dog jumps"]
FOLDED = {"llama": {1, 2, 3}, "qwen3": {1, 2, 3}, "gemma2": {1, 2, 3}, "gpt_neox": {1}, "phi3": {1}, "mixtral": {1, 3}}


@pytest.fixture(autouse=True)
def _no_progress_bars(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")


def packed(model) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, PrepackedLinear)]


def hidden(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 40)[None], use_cache=False)[0]


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, marks=needs["float32"]), pytest.param(torch.bfloat16, marks=needs["bfloat16"])],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize("model_type", FOLDED)
def test_prepacked_weights_give_the_same_hidden_states(model_type, dtype):
    model = tiny_decoder(model_type, "eager").to(dtype)
    before = hidden(model)
    assert prepack(model)
    assert {len(layer.product.out_features) for layer in packed(model)} == FOLDED[model_type]
    after = hidden(model)
    if dtype == torch.float32:
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    else:
        assert cosine(after, before) >= 0.9999


def test_layers_whose_weights_are_read_stay_ordinary():
    class Reader(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return nn.functional.linear(self.inner(x), torch.eye(len(self.inner.weight)))

    model = tiny_decoder("llama")
    model.layers[0].mlp.down_proj = Reader(model.layers[0].mlp.down_proj)
    before = hidden(model)
    assert "reads the weights" in str(prepack(model))
    torch.testing.assert_close(hidden(model), before)


def test_layers_that_run_twice_or_share_a_weight_stay_ordinary():
    class Twice(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(self.inner(x))

    model = tiny_decoder("llama")
    square = nn.Linear(32, 32)
    model.layers[0].self_attn.o_proj = Twice(square)
    shared = model.layers[1].mlp
    shared.up_proj.weight = shared.gate_proj.weight
    found = [layer for group in sibling_groups(model, (nn.Linear,), fused=False) for layer in group]
    others = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    left_out = {id(square), id(shared.up_proj), id(shared.gate_proj)}
    assert {id(layer) for layer in found} == {id(layer) for layer in others} - left_out


@needs["float32"]
def test_who_needs_another_dtype_gets_it(model):
    layer = packed(model)[0]
    x = torch.randn(3, layer.in_features)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer not in packed(model)


def test_threads_that_run_a_model_keep_its_layers_as_they_are(monkeypatch):
    class Transformer:
        pass

    asked, transformer = [], Transformer()
    monkeypatch.setattr("st_llm2vec.encoding.expect", lambda module, tokens: asked.append(tokens))
    with _in_use(transformer, 5), _in_use(transformer, 7):  # the second one comes while the first one runs
        pass
    assert asked == [5]
    with _in_use(transformer, 9):
        assert asked == [5, 9]


@needs["bfloat16"]
@pytest.mark.parametrize("name", ["decoder", "llm2vec-tiny"])
def test_bfloat16_is_close_to_float32(name, request):
    folder = str(request.getfixturevalue(name)) if name == "decoder" else name
    full, half = (st_llm2vec.load(folder, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert half[0].model.dtype == torch.bfloat16
    assert packed(half)
    assert cosine(full.encode(TEXTS), half.encode(TEXTS)) >= 0.999


@needs["bfloat16"]
def test_a_folder_opened_in_bfloat16_has_the_vectors_that_load_gives(decoder, tmp_path):
    """Both keep the residual stream in float32, and training takes it back in both."""
    st_llm2vec.load(str(decoder), device="cpu").save_pretrained(tmp_path / "saved")
    opened = SentenceTransformer(str(tmp_path / "saved"), device="cpu", model_kwargs={"dtype": "bfloat16"})
    loaded = st_llm2vec.load(str(tmp_path / "saved"), device="cpu", dtype="bfloat16")
    assert opened[0].model.dtype == torch.bfloat16
    assert keeps_residual_in_float32(opened[0].model)
    expected = loaded.encode(TEXTS)
    np.testing.assert_allclose(opened.encode(TEXTS), expected, atol=1e-3 * np.abs(expected).max())
    opened.train()
    assert not keeps_residual_in_float32(opened[0].model)
    assert {p.dtype for p in opened.parameters()} == {torch.bfloat16}


def test_a_processor_without_bfloat16_says_that_float32_is_faster(decoder, monkeypatch, caplog):
    without(monkeypatch, "avx512_bf16", "amx_tile")
    model = st_llm2vec.load(str(decoder), device="cpu", dtype="bfloat16")
    assert not packed(model)
    assert "bfloat16 is slower than float32 here" in caplog.text


def test_without_onednn_nothing_is_packed(decoder, monkeypatch):
    expected = st_llm2vec.load(str(decoder), device="cpu", dtype="float32").encode(TEXTS)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = st_llm2vec.load(str(decoder), device="cpu", dtype="float32")
    assert not packed(model)
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)


@pytest.fixture
def model(decoder):
    return st_llm2vec.load(str(decoder), device="cpu", dtype="float32")


@needs["float32"]
def test_a_pickled_model_is_packed_again(model):
    copied = pickle.loads(pickle.dumps(model))
    assert len(packed(copied)) == len(packed(model)) == 21
    np.testing.assert_array_equal(copied.encode(TEXTS), model.encode(TEXTS))


@needs["float32"]
def test_layers_of_one_product_called_in_turns_get_their_own_inputs():
    torch.manual_seed(0)
    weights, (x, y) = [torch.randn(3, 4), torch.randn(5, 4)], torch.randn(2, 6, 4)
    product = Product(weights, [None, None])
    for layer, given in [(0, x), (1, y), (0, y), (0, x), (1, x), (1, x)]:
        torch.testing.assert_close(product(given, layer), given @ weights[layer].T)


@needs["float32"]
def test_threads_share_a_model(model):
    texts = [" ".join(TEXTS[i % 3].split()[: 1 + i % 7]) for i in range(24)]
    alone = [model.encode(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for vector, expected in zip(pool.map(model.encode, texts), alone, strict=True):
            np.testing.assert_allclose(vector, expected, atol=1e-6)


@needs["float32"]
def test_saved_weights_are_the_ones_that_were_loaded(model, decoder, tmp_path):
    model.encode(TEXTS)
    model.save_pretrained(tmp_path / "saved")
    stored = load_file(decoder / "model.safetensors")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved
    assert all(torch.equal(saved[name], stored[f"model.{name}"]) for name in saved)
    assert len(packed(model)) == 21


@needs["float32"]
def test_an_optimizer_made_before_training_gets_the_weights(model):
    before = model.encode(TEXTS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    assert not packed(model)
    model(model.preprocess(TEXTS))["sentence_embedding"].square().sum().backward()
    weight = model[0].model.layers[0].mlp.up_proj.weight
    assert weight.grad.abs().sum() > 0
    old = weight.detach().clone()
    optimizer.step()
    assert not torch.equal(weight, old)
    assert np.abs(model.encode(TEXTS) - before).max() > 1e-4


@needs["float32"]
@pytest.mark.parametrize(
    "use",
    [
        lambda model: model.to(torch.float64),
        lambda model: model(model.preprocess(["a"])),  # with gradients
        lambda model: [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)],
        lambda model: model.load_state_dict(model.state_dict()),
    ],
    ids=["dtype", "gradients", "reading", "loading"],
)
def test_who_needs_the_weights_gets_them(model, use):
    before = model.encode(TEXTS)
    use(model)
    assert not packed(model)
    assert not any(parameter.isnan().any() for parameter in model.parameters())
    np.testing.assert_allclose(model.encode(TEXTS), before, atol=1e-5)


@needs["float32"]
def test_a_copy_can_be_edited_and_a_twin_shares(model):
    before = model.encode(TEXTS)
    edited, twin = copy.deepcopy(model), st_llm2vec.bidirectional.twin(model)
    assert not packed(edited)
    assert len(packed(twin)) == 21
    np.testing.assert_array_equal(twin.encode(TEXTS), before)
    with torch.no_grad():
        edited[0].model.layers[0].mlp.up_proj.weight.mul_(2)
    assert np.abs(edited.encode(TEXTS) - before).max() > 1e-4
    np.testing.assert_array_equal(model.encode(TEXTS), before)


@pytest.fixture
def unasked(decoder, monkeypatch):
    """An encoder that nobody asked for prepacked weights; 200 tokens repay them."""
    monkeypatch.setattr("st_llm2vec.backend.deciding.PREPACK_TOKENS", 200)
    monkeypatch.setattr("st_llm2vec.backend.deciding.CHECKED_TOKENS", 50)
    return st_llm2vec.load(str(decoder), device="cpu")


CORPUS = [f"{text} {i}" for i in range(20) for text in TEXTS]


@needs["float32"]
def test_a_corpus_prepacks_and_a_query_does_not(unasked):
    before = unasked.encode(TEXTS)
    assert not packed(unasked)
    assert unasked[0].status["prepacked"].on is None
    unasked.encode(CORPUS)
    assert len(packed(unasked)) == 21
    assert unasked[0].status["prepacked"]
    np.testing.assert_allclose(unasked.encode(TEXTS), before, atol=1e-5 * np.abs(before).max())


@needs["float32"]
def test_many_queries_prepack_too(unasked):
    for _ in range(20):
        unasked.encode(TEXTS)
    assert packed(unasked)


@needs["float32"]
def test_a_folder_opened_by_sentence_transformers_prepacks_too(unasked, tmp_path):
    unasked.save_pretrained(tmp_path / "saved")
    model = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    model.encode(CORPUS)
    assert packed(model)


@needs["float32"]
def test_a_model_prepacked_unasked_is_trained_saved_copied_and_packed_again(unasked, decoder, tmp_path):
    from peft import LoraConfig

    unasked.encode(CORPUS)
    before = unasked.encode(TEXTS)
    unasked.save_pretrained(tmp_path / "saved")
    stored, saved = load_file(decoder / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(saved[name], stored[f"model.{name}"]) for name in saved)
    for copied in (copy.deepcopy(unasked), pickle.loads(pickle.dumps(unasked))):
        np.testing.assert_allclose(copied.encode(TEXTS), before, atol=1e-5)
    unasked.train()
    unasked(unasked.preprocess(TEXTS))["sentence_embedding"].square().sum().backward()
    assert not packed(unasked)
    assert not any(parameter.isnan().any() for parameter in unasked.parameters())
    unasked.encode(CORPUS)
    unasked.encode(CORPUS)
    assert packed(unasked)  # the work repays it again
    unasked[0].model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    np.testing.assert_allclose(unasked.encode(TEXTS), before, atol=1e-5)
    unasked.train()
    unasked(unasked.preprocess(TEXTS))["sentence_embedding"].square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in unasked.named_parameters() if "lora" in n)


@needs["float32"]
def test_weights_of_a_twin_are_left_alone(unasked):
    twin = st_llm2vec.bidirectional.twin(unasked)
    before = twin.encode(TEXTS)
    unasked.encode(CORPUS)
    assert not packed(unasked)
    assert "twin" in str(prepack(unasked[0].model))
    np.testing.assert_array_equal(twin.encode(TEXTS), before)
    del twin
    gc.collect()  # modules hold themselves in circles
    unasked.encode(CORPUS)
    assert packed(unasked)


@needs["float32"]
def test_threads_share_a_model_that_prepacks_meanwhile(unasked, model):
    expected = model.encode(CORPUS)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(unasked.encode, [CORPUS] * 8):
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert packed(unasked)


@needs["bfloat16"]
def test_bfloat16_keeps_what_stands_between_products_in_float32(decoder):
    model = st_llm2vec.load(str(decoder), device="cpu", dtype="bfloat16")
    with torch.inference_mode():
        assert model[0].model(input_ids=torch.arange(3, 9)[None])[0].dtype == torch.float32
    before = model.encode(TEXTS)
    model(model.preprocess(TEXTS))["sentence_embedding"].sum().backward()  # ordinary layers, the same numbers
    assert not packed(model)
    assert cosine(model.encode(TEXTS), before) > 0.9999
    assert model.to(torch.bfloat16)[0].model(input_ids=torch.arange(3, 9)[None])[0].dtype == torch.bfloat16
