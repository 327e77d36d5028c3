"""What a GPU has to do right, in bfloat16: run by `make gpu` there (ST_LLM2VEC_DEVICE=cuda), by `make test` on a CPU.

On a CPU the same calls are made and the same vectors expected; which attention runs, and what waits for a GPU, is only
seen on one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tiny_models import WORDS, save_decoder
from torch.nn.functional import cosine_similarity

import st_llm2vec
from st_llm2vec.backend import attention
from st_llm2vec.backend.packed_batch import PackedBatch
from st_llm2vec.encoding import run_batch

DEVICE = os.environ.get("ST_LLM2VEC_DEVICE", "cpu")
ON_GPU = DEVICE.startswith("cuda")
FLASH = ON_GPU and find_spec("flash_attn") is not None
IMPLEMENTATIONS = ["sdpa", "eager", *(["flash_attention_2"] if FLASH else [])]
ROWS = {"sdpa": "varlen" if ON_GPU else "sdpa", "eager": "own function", "flash_attention_2": "flash attention"}
TEXTS = ["a", "seven wizards", WORDS, "the quick brown fox " * 40, "search and find", "compress files"] * 4
# A tiny model whose attention is not even: of 0.02, nobody could tell where a token stands.
SHAPE = {"initializer_range": 0.2, "hidden_size": 64, "head_dim": 16, "num_key_value_heads": 2}


@contextmanager
def rows_taken() -> Iterator[list[str]]:
    """The rows of attention's table that are taken while the block runs."""
    taken: list[str] = []
    table = list(attention.TABLE)

    def noted(row: attention.Row) -> attention.Row:
        def attend(batch: PackedBatch, call: attention.Call) -> torch.Tensor:
            taken.append(row.name)
            return row.attend(batch, call)

        return row._replace(attend=attend)

    attention.TABLE[:] = map(noted, table)
    try:
        yield taken
    finally:
        attention.TABLE[:] = table


@pytest.fixture(scope="module", params=["llama", "mistral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    window = {"sliding_window": 24} if request.param == "mistral" else {}
    return save_decoder(tmp_path_factory.mktemp("gpu") / request.param, request.param, **SHAPE, **window)


def load(folder: Path, implementation: str = "sdpa", **options: Any) -> st_llm2vec.LLM2Vec:
    options = {"dtype": "bfloat16", "device": DEVICE} | options
    return st_llm2vec.load(str(folder), model_kwargs={"attn_implementation": implementation}, **options)


def vectors(model: st_llm2vec.LLM2Vec) -> torch.Tensor:
    return torch.as_tensor(model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)).float().cpu()


def smallest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(cosine_similarity(a, b).min())


def test_the_device_is_there() -> None:
    assert not ON_GPU or torch.cuda.is_available()


@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_packed_vectors_are_those_of_float32(folder: Path, implementation: str, direction: str) -> None:
    """As near as padded ones, by the attention that is meant for this device."""
    exact = vectors(load(folder, dtype="float32", packing=False, attention=direction, device="cpu"))
    padded = vectors(load(folder, implementation, packing=False, attention=direction))
    model = load(folder, implementation, attention=direction)
    model.encode("a")
    assert model[0].status["packed"], model[0].status["packed"]
    with rows_taken() as taken:
        found = vectors(model)
    assert set(taken) == {ROWS[implementation]}
    assert smallest(found, padded) > 0.998
    assert smallest(found, exact) > smallest(padded, exact) - 1e-3


def test_no_layer_waits_for_the_device(folder: Path) -> None:
    """On a GPU torch says so; the list of a batch's token counts is made on the CPU."""
    model = load(folder)
    texts = model[0].tokenized(TEXTS)
    place = torch.device(DEVICE)
    expected = run_batch(model, texts, place)
    features = model[0].collate(texts)
    packed = PackedBatch.of(features["attention_mask"]).to(place)
    ids = {name: value.to(place) for name, value in features.items() if isinstance(value, torch.Tensor)}
    if ON_GPU:
        torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            found = model({**ids, "packed_batch": packed})["sentence_embedding"]
    finally:
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("default")
    assert smallest(found.float(), expected.float()) > 0.9999


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports what torch itself deprecates
@pytest.mark.skipif(not ON_GPU, reason="tests/test_compilation.py compiles on a CPU")
def test_compiled_layers_give_the_same_vectors(folder: Path) -> None:
    plain, compiled = load(folder), load(folder, compile=True)
    assert compiled[0].status["compiled"], compiled[0].status["compiled"]
    assert smallest(vectors(compiled), vectors(plain)) > 0.998


def gradients(model: st_llm2vec.LLM2Vec) -> torch.Tensor:
    model.train()
    model.zero_grad()
    columns = [
        {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in features.items()}
        for features in (model.preprocess(TEXTS[:4]), model.preprocess(TEXTS[1:5]))
    ]
    MultipleNegativesRankingLoss(model)(columns, torch.arange(4)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().cpu()


def test_packed_gradients_are_as_near_to_float32s(folder: Path) -> None:
    exact = gradients(load(folder, dtype="float32", packing=False, device=DEVICE))
    padded, packed = (gradients(load(folder, packing=packing)) for packing in (False, True))

    def apart(found: torch.Tensor) -> float:
        return float((found - exact).norm() / exact.norm())

    assert apart(packed) < 1.5 * apart(padded) + 1e-3
