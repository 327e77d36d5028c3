"""`search` of a store that knows its model, by words as well, and the errors that name both models."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import SENTENCES, Command


def test_search_needs_no_model_and_finds_words(command: Command, encoder: Path, texts: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert command("index", texts, store, "--model", encoder, "--device", "cpu").code == 0
    found = command("search", store, SENTENCES[1], "-k", 1, "--json", "--device", "cpu")
    assert found.code == 0, found.err
    assert json.loads(found.out)[0]["hits"][0]["text"] == SENTENCES[1]
    found = command("search", store, "wizard", "-k", 3, "--hybrid", "--json")
    assert {hit["text"] for hit in json.loads(found.out)[0]["hits"]} >= {SENTENCES[1], SENTENCES[4]}
    assert json.loads(found.out)[0]["hits"][0]["score"] <= 2 / 61
    other = command("search", store, "wizard", "-m", "llm2vec-tiny")
    assert other.code == 1
    assert str(encoder) in other.err
    assert "'llm2vec-tiny'" in other.err
    encoder.rename(encoder.with_name("moved"))
    try:
        gone = command("search", store, "wizard")
        assert gone.code == 1
        assert f"-m {encoder}" in " ".join(gone.err.split())
    finally:
        encoder.with_name("moved").rename(encoder)
    assert command("search", store, "wizard", "-m", encoder).code == 0
    nothing = command("search", store, "wizard", "--rerank", tmp_path / "none")
    assert nothing.code == 1
    assert "safetensors" in nothing.err
