"""Adapters open one encoder for a name, whatever options come with it, or name the option that they cannot follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import st_llm2vec
from langchain_llm2vec import LLM2VecEmbeddings
from llama_index_llm2vec import LLM2VecEmbedding
from st_llm2vec.encoders import open_encoder
from st_llm2vec.errors import InvalidInputError, ModelNotFoundError

TEXTS = ["the quick brown fox", "a lazy dog"]
Door = Callable[[str, dict[str, Any]], list[list[float]]]


def langchain(name: str, options: dict[str, Any]) -> list[list[float]]:
    cache = {"cache_folder": options.pop("cache_folder")} if "cache_folder" in options else {}
    return LLM2VecEmbeddings(name, model_kwargs=options, **cache).embed_documents(TEXTS)


def llama_index(name: str, options: dict[str, Any]) -> list[list[float]]:
    embedding = LLM2VecEmbedding(name, normalize=False, **options)
    return [embedding.get_text_embedding(text) for text in TEXTS]


DOORS: list[Door] = [
    langchain,
    llama_index,
    lambda name, options: open_encoder(name, options).encode_document(TEXTS).tolist(),
]


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The name of a raw decoder in a hub cache that is not the default one."""
    monkeypatch.setenv("ST_LLM2VEC_HOME", str(tmp_path / "home"))
    hub.add_repository(tmp_path / "hub", hub.DECODER, hub.KIT / "models" / "mistral-base")
    return hub.DECODER


@pytest.mark.parametrize("door", DOORS)
def test_a_cache_folder_finds_the_same_encoder(door: Door, raw: str, tmp_path: Path) -> None:
    wanted = st_llm2vec.load(raw, cache_folder=tmp_path / "hub", local_files_only=True, device="cpu").encode(TEXTS)
    for more in ({}, {"token": "hf_x"}, {"token": False}, {"trust_remote_code": True}, {"backend": "torch"}):
        given = {"cache_folder": str(tmp_path / "hub"), "device": "cpu", **more}
        assert np.allclose(door(raw, given), wanted, atol=1e-6)
    with pytest.raises(ModelNotFoundError, match=raw):
        door(raw, {"cache_folder": str(tmp_path / "elsewhere"), "local_files_only": True})


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "options",
    [{"trust_remote_code": True}, {"trust_remote_code": False}, {"token": "hf_x"}, {"token": None}, {"revision": None}],
    ids=str,
)
def test_an_option_does_not_choose_another_encoder(door: Door, decoder: Path, options: dict[str, Any]) -> None:
    wanted = st_llm2vec.load(str(decoder), device="cpu").encode(TEXTS)
    causal = SentenceTransformer(str(decoder), device="cpu").encode(TEXTS)
    given = door(str(decoder), {"device": "cpu", **options})
    assert np.allclose(given, wanted, atol=1e-6)
    assert not np.allclose(given, causal, atol=1e-3)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "options",
    [{"backend": "onnx"}, {"tokenizer_kwargs": {"padding_side": "left"}}, {"config_kwargs": {"is_causal": False}},
     {"processor_kwargs": {"x": 1}}, {"use_auth_token": "x"}, {"modules": []}, {"batch_size": 3}],
    ids=str,
)  # fmt: skip
def test_an_option_that_cannot_be_followed_is_named(door: Door, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=rf"{next(iter(options))}=.*SentenceTransformer\(\.\.\.\)"):
        door("owner/absent", dict(options))


def test_options_that_only_set_an_attribute_are_followed(decoder: Path) -> None:
    options = {"truncate_dim": 8, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    encoder: Any = open_encoder(str(decoder), {"device": "cpu", "prompts": {"query": "find: "}, **options})
    assert encoder.encode(TEXTS).shape == (2, 8)
    assert np.allclose(encoder.encode(TEXTS), encoder.encode(TEXTS, prompt="find: "))
    assert encoder.similarity_fn_name == "dot"


def test_a_misspelt_value_is_refused_at_the_door(decoder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"default_prompt_name must be one of .*got 'qeury'"):
        open_encoder(str(decoder), {"device": "cpu", "default_prompt_name": "qeury"})
    with pytest.raises(InvalidInputError, match=r"truncate_dim must be .*got '8'"):
        open_encoder("owner/absent", {"truncate_dim": "8"})
    with pytest.raises(InvalidInputError, match=r"similarity_fn_name must be .*got 'cos'"):
        open_encoder("owner/absent", {"similarity_fn_name": "cos"})


def test_what_is_given_twice_is_refused(decoder: Path) -> None:
    with pytest.raises(InvalidInputError, match="cache_folder was given twice"):
        LLM2VecEmbeddings(str(decoder), cache_folder="x", model_kwargs={"cache_folder": "y"})
    with pytest.raises(InvalidInputError, match="max_seq_length was given twice"):
        LLM2VecEmbedding(str(decoder), max_length=8, max_seq_length=9)
    for make in (LLM2VecEmbeddings, LLM2VecEmbedding):
        encoder = st_llm2vec.load(str(decoder), device="cpu")
        with pytest.raises(InvalidInputError, match="cache_folder must be left out with an encoder"):
            make(encoder, cache_folder="x")


def test_an_alias_is_made_from_the_cache_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = str(hub.fill(tmp_path / "hub"))
    options: dict[str, Any] = {"cache_folder": cache, "token": "hf_x", "device": "cpu"}
    vectors = []
    for i, build in enumerate((st_llm2vec.load, SentenceTransformer)):
        monkeypatch.setenv("ST_LLM2VEC_HOME", str(tmp_path / f"home-{i}"))
        with pytest.raises(ModelNotFoundError):
            build("llm2vec-mistral", device="cpu")
        vectors.append(build("llm2vec-mistral", **options).encode(TEXTS))
    assert np.allclose(*vectors, atol=1e-6)
    monkeypatch.setenv("ST_LLM2VEC_HOME", str(tmp_path / "home-2"))
    st_llm2vec.loading.convert(hub.MISTRAL, tmp_path / "converted", cache_folder=cache, local_files_only=True)


def test_downloads_get_the_token_and_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of every stage: the adapter on top, the one below, and the decoder that it names."""
    cache, asked = hub.fill(tmp_path / "hub"), []

    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options["token"], options["cache_dir"]))
        return str(next((cache / f"models--{repository.replace('/', '--')}" / "snapshots").iterdir()))

    monkeypatch.setattr("st_llm2vec.hub.snapshot_download", download)
    st_llm2vec.load(hub.MISTRAL, adapter=f"{hub.MISTRAL}-supervised", token="hf_x", cache_folder="c", device="cpu")
    names = (hub.MISTRAL, f"{hub.MISTRAL}-supervised", hub.DECODER)
    assert sorted(asked) == sorted((name, "hf_x", "c") for name in names)
