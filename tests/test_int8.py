"""int8 weights give nearly the vectors of float32, and are saved, reopened and refused as they should."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from processors import cosine, needs, without
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_models import save_decoder
from torch import nn

import st_llm2vec
from st_llm2vec.backend import int8, quantizing
from st_llm2vec.backend.equivalence import PROBES
from st_llm2vec.bidirectional import decoder_layers
from st_llm2vec.errors import InvalidCheckpointError, InvalidInputError

TEXTS = ["a", "the quick brown fox", "seven wizards compress files and search for query answers while a dog jumps"]


@pytest.fixture(autouse=True)
def _no_progress_bars(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture(scope="module")
def int8_model(decoder):
    return st_llm2vec.load(str(decoder), quantize="int8")


@needs["int8"]
def test_int8_is_close_to_float32(decoder, int8_model):
    assert cosine(st_llm2vec.load(str(decoder), device="cpu").encode(TEXTS), int8_model.encode(TEXTS)) >= 0.998
    tiny, small = st_llm2vec.load("llm2vec-tiny", device="cpu"), st_llm2vec.load("llm2vec-tiny", quantize="int8")
    assert cosine(tiny.encode(PROBES), small.encode(PROBES)) >= 0.999  # trained, not random


@needs["int8"]
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_product_is_the_product_of_the_rounded_numbers(dtype):
    torch.manual_seed(0)
    layer = nn.Linear(64, 24)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    whole = int8.Rounded.of(weight, torch.ones(1, 64), torch.empty(0, dtype=torch.int64))
    rounded, scale = whole.int8, whole.scale
    assert rounded.abs().max() in (126, 127)
    assert ((rounded * scale - weight).abs() <= scale * 0.5001).all()  # to the nearest
    product = int8.Int8Product.of([layer], [whole])
    # the extremes of every size must not wrap round: oneDNN gets bytes
    x = (torch.randn(200, 64) * torch.logspace(-6, 6, 200)[:, None]).to(dtype)
    s = (x.abs().amax(1, keepdim=True).float() * int8._ROOM).bfloat16().float()
    expected = (x.float() / s).round() * s @ (rounded * scale).T + bias
    got = product(x, 0)
    assert got.dtype == dtype
    assert cosine(got, expected) > (0.999999 if dtype == torch.float32 else 0.9999)
    x[3, 5] = torch.nan
    assert product(x, 0)[3].isnan().all()
    assert not product(x, 0)[4].isnan().any()
    assert product(x[:0], 0).shape == (0, 24)


def hard_to_round(folder, layers, depth):
    """A decoder in whose `layers` more channels than outliers take the range of int8; in pairs they cancel out."""
    folder = save_decoder(folder, tie_word_embeddings=False, num_hidden_layers=depth)
    weights = load_file(folder / "model.safetensors")
    even, odd = slice(0, 12, 2), slice(1, 12, 2)
    readers = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
    for name, tensor in weights.items():
        if name.endswith("embed_tokens.weight"):
            tensor[:, odd] = tensor[:, even]
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[odd] = tensor[even]
        elif name.endswith(readers) and int(name.split("layers.")[1].split(".")[0]) in layers:
            tensor[:, even], tensor[:, odd] = 20.0, -20.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@needs["int8"]
def test_a_model_that_rounds_badly_is_refused(tmp_path):
    folder = hard_to_round(tmp_path / "bad", range(4), depth=4)
    with pytest.raises(
        InvalidInputError, match=r"largest distance to float32 over 15 probe texts is .* at most 0\.1 is allowed"
    ):
        st_llm2vec.load(folder, quantize="int8")


@needs["int8"]
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_first_layers_that_round_badly_stay_as_they_are(tmp_path, bad):
    folder = hard_to_round(tmp_path / "bad", range(bad), depth=6)
    model = st_llm2vec.load(folder, quantize="int8")
    layers = decoder_layers(model[0].model)
    rounded = [any(isinstance(part, int8.Int8Linear) for part in layer.modules()) for layer in layers]
    assert rounded == [i >= bad for i in range(6)]
    said = str(model[0].status["quantized"])
    assert said == (f"yes: the first {bad} of 6 layers stay in float32" if bad else "yes")
    assert bool(model[0].status["prepacked"]) == bool(bad)
    before = model.encode(TEXTS)
    assert cosine(st_llm2vec.load(folder, device="cpu").encode(TEXTS), before) >= 0.998
    model.save_pretrained(tmp_path / "int8")
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    plain = [stored[name].dtype for i in range(6) if (name := f"layers.{i}.mlp.up_proj.weight") in stored]
    assert plain == [torch.float32] * bad
    for reopened in (st_llm2vec.load(str(tmp_path / "int8")), pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(reopened.encode(TEXTS), before, atol=1e-5)


@needs["int8"]
def test_a_saved_int8_folder_gives_the_same_vectors(int8_model, tmp_path):
    before = int8_model.encode(TEXTS)
    int8_model.save_pretrained(tmp_path / "int8")
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    name = "layers.0.self_attn.q_proj"
    assert stored[f"{name}.weight_int8"].dtype == torch.int8
    assert stored[f"{name}.weight_scale"].shape == (32, 1)
    assert stored[f"{name}.weight_smooth"].shape == (1, 32)
    assert stored[f"{name}.weight_outliers"].shape == (4,)
    assert stored[f"{name}.weight_columns"].shape == (32, 4)
    assert f"{name}.weight" not in stored
    for reopened in (
        st_llm2vec.load(str(tmp_path / "int8")),
        SentenceTransformer(str(tmp_path / "int8"), device="cpu"),
    ):
        np.testing.assert_array_equal(reopened.encode(TEXTS), before)
        assert reopened.fingerprint == int8_model.fingerprint
    reopened.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[key], stored[key]) for key in stored)


@needs["int8"]
@pytest.mark.parametrize("channels", [[0, 1, 2, 99], [0, 1, 2, -1], [0, 1, 2, 2]])
def test_outliers_of_a_file_must_be_channels(channels, int8_model, tmp_path):
    """One that is named twice would count twice."""
    int8_model.save_pretrained(tmp_path / "int8")
    weights = load_file(tmp_path / "int8" / "model.safetensors")
    weights["layers.1.mlp.up_proj.weight_outliers"] = torch.tensor(channels)
    save_file(weights, tmp_path / "int8" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InvalidCheckpointError, match=r"up_proj.weight_outliers must be different channels in \[0, 32\)"
    ):
        st_llm2vec.load(str(tmp_path / "int8"))


@needs["int8"]
def test_plain_sentence_transformers_refuses_an_int8_folder(decoder, tmp_path):
    # in float32 stock modules over the live model give the same vectors; over the file they could not
    st_llm2vec.load(str(decoder), quantize="int8", dtype="float32").save_pretrained(tmp_path / "int8")
    st_llm2vec.disable_plugin()
    try:
        with pytest.raises(ValueError, match="trust_remote_code"):
            SentenceTransformer(str(tmp_path / "int8"), device="cpu")
    finally:
        st_llm2vec.enable_plugin()


@needs["int8"]
def test_int8_cannot_be_trained_moved_or_rounded_again(int8_model, decoder, tmp_path):
    model = copy.deepcopy(int8_model)
    np.testing.assert_array_equal(model.encode(TEXTS), int8_model.encode(TEXTS))
    with pytest.raises(InvalidInputError, match="runs on CPUs only"):
        copy.deepcopy(model).to("meta")
    model.train()
    with pytest.raises(InvalidInputError, match="cannot be trained"):
        model(model.preprocess(TEXTS))
    int8_model.save_pretrained(tmp_path / "int8")
    with pytest.raises(InvalidInputError, match="int8 already"):
        st_llm2vec.load(str(tmp_path / "int8"), quantize="int8")
    with pytest.raises(InvalidInputError, match="'int8'"):
        st_llm2vec.load(str(decoder), quantize="int4")
    with pytest.raises(InvalidInputError, match=r"dtype must be float32, bfloat16 or float16 .*'auto'"):
        st_llm2vec.load(str(decoder), quantize="int8", dtype="auto")


def test_a_processor_without_int8_products_encodes_in_float32_and_says_so(decoder, monkeypatch, caplog):
    expected = st_llm2vec.load(str(decoder), device="cpu", dtype="float32").encode(TEXTS)
    without(monkeypatch, "vnni", "amx_tile")
    model = st_llm2vec.load(str(decoder), quantize="int8")
    np.testing.assert_array_equal(model.encode(TEXTS), expected)
    assert "a processor without VNNI or AMX_TILE instructions; the model encodes in float32" in caplog.text


@needs["int8"]
def test_an_int8_folder_opens_on_a_processor_without_int8_products(int8_model, tmp_path, monkeypatch):
    before = int8_model.encode(TEXTS)
    int8_model.save_pretrained(tmp_path / "int8")
    without(monkeypatch, "vnni", "amx_tile")
    model = st_llm2vec.load(str(tmp_path / "int8"))
    assert cosine(model.encode(TEXTS), before) > 0.999
    assert model.fingerprint == int8_model.fingerprint


@needs["int8"]
def test_a_pickled_int8_model_gives_the_same_vectors(int8_model):
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(int8_model)).encode(TEXTS), int8_model.encode(TEXTS))


def rounded_product(layer, smooth, outliers, x):
    return int8.Int8Product.of([layer], [int8.Rounded.of(layer.weight, smooth, torch.tensor(outliers).long())])(x, 0)


@needs["int8"]
def test_an_outlier_channel_is_smoothed():
    """A channel a thousand times the others would leave them 255 / 1000 of a step in every token."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 48, bias=False), torch.randn(100, 64)
    x[:, 7] *= 1000
    layer.weight.data[:, 7] /= 1000
    expected = layer(x).detach()
    smooth = (x.abs().amax(0) / layer.weight.detach().abs().amax(0)).sqrt()[None]
    assert cosine(rounded_product(layer, torch.ones(1, 64), [], x), expected) < 0.9
    assert cosine(rounded_product(layer, smooth, [], x), expected) > 0.999


@needs["int8"]
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_outlier_channel_with_large_weights_is_multiplied_in_float32(dtype):
    """Smoothing takes from the input what it gives to the weights, so it cannot help here."""
    torch.manual_seed(0)
    layers, x = [nn.Linear(64, 48), nn.Linear(64, 16, bias=True)], torch.randn(100, 64)
    x[:, 7] *= 1000
    smooth = torch.ones(1, 64)
    found = torch.cat([rounded_product(layer, smooth, [7], x.to(dtype)).float() for layer in layers], 1)
    expected = torch.cat([layer(x.to(dtype).float()).detach() for layer in layers], 1)
    assert (found - expected).abs().max() / expected.abs().max() < (1e-4 if dtype == torch.float32 else 1e-2)
    if dtype == torch.float32:  # of which bfloat16 holds nothing beside a channel like that
        spoiled = torch.cat([rounded_product(layer, smooth, [], x) for layer in layers], 1)
        large = (x[:, 7:8] * torch.cat([layer.weight for layer in layers])[:, 7]).detach()
        assert cosine(found - large, expected - large) > 0.999
        assert cosine(spoiled - large, expected - large) < 0.9
    joined = int8.Int8Product.of(layers, [int8.Rounded.of(layer.weight, smooth, torch.tensor([7])) for layer in layers])
    torch.testing.assert_close(torch.cat([joined(x.to(dtype), i) for i in (0, 1)], 1).float(), found)


@needs["int8"]
def test_outliers_are_those_channels_that_would_take_the_range_of_the_others():
    torch.manual_seed(0)
    layer, inputs = nn.Linear(64, 48, bias=False), torch.ones(64)
    inputs[[3, 9]] = 500.0
    layer.weight.data[:, 9] /= 500  # nothing for smoothing to do
    inputs[20], layer.weight.data[:, 30] = 40.0, 8.0
    (product,) = quantizing.round_group([layer], inputs)
    assert len(product.outliers[0]) == 8
    assert {3, 20, 30} <= set(product.outliers[0].tolist())
    stored = int8.Int8Linear(64, 48, bias=False)
    stored.pack(product, 0)
    whole = stored.rounded()
    assert torch.equal(whole.columns, layer.weight[:, whole.outliers])
    assert not whole.int8[:, whole.outliers].any()


def test_layers_up_to_the_one_that_makes_massive_activations_stay():
    """What they compute decides which token becomes the attention sink."""
    smollm2 = [(33, 49), (359, 408), (863, 860), (93, 43), (26671, 10585), (26662, 10099), (11937, 634), (6396, 259)]
    assert quantizing.layers_before_sink(smollm2) == 5
    assert quantizing.layers_before_sink([(16, 30), (22, 30), (25, 24), (12, 10)]) == 0  # llm2vec-tiny has none


@needs["int8"]
def test_a_sink_is_seen_in_what_layers_hand_on(tmp_path, monkeypatch):
    """Whether or not the probe texts move: they are few."""
    monkeypatch.setattr(quantizing, "NEAR", 10.0)
    folder = save_decoder(tmp_path / "sink", num_hidden_layers=6)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith("layers.1.mlp.down_proj.weight"):
            tensor[5] = 3e3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = st_llm2vec.load(str(folder), quantize="int8")
    assert str(model[0].status["quantized"]) == "yes: the first 2 of 6 layers stay in float32"
