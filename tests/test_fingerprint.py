"""The fingerprint that stores and shards record: another for all that gives other vectors, the same for the same."""

from __future__ import annotations

import pytest
import torch

import st_llm2vec
from faiss_llm2vec import FaissStore
from st_llm2vec.errors import StoreMismatchError
from st_llm2vec.templates import Template

SETTINGS = {
    "pooling": {"pooling_mode": "last_token"},
    "pooled suffix": {"pooling_mode": "eos_token"},
    "pooled prompt": {"include_prompt": True},
    "attention": {"attention": "causal"},
    "length": {"max_seq_length": 9},
    "length of documents": {"document_max_length": 7},
    "template": {"template": Template("passage: ")},
}


@torch.no_grad()
def _scale_a_weight(model):
    next(model.parameters()).mul_(1.01)


def _prompt(name, text):
    return lambda model: model.prompts.update({name: text})


CHANGES = {
    "prompt": _prompt("query", "find: "),
    "another prompt": _prompt("query", "search: "),
    "prompt of documents": _prompt("document", "find: "),
    "weights": _scale_a_weight,
    "pooling of the module": lambda model: setattr(model[1], "pooling_mode", "lasttoken"),
}


@pytest.fixture(scope="module")
def fingerprints(decoder):
    """By what was changed; "nothing" is the model as it is loaded."""
    found = {name: st_llm2vec.load(str(decoder), **setting).fingerprint for name, setting in SETTINGS.items()}
    for name, change in CHANGES.items():
        model = st_llm2vec.load(str(decoder))
        change(model)
        found[name] = model.fingerprint
    return {**found, "nothing": st_llm2vec.load(str(decoder)).fingerprint}


@pytest.mark.parametrize("changed", [*SETTINGS, *CHANGES])
def test_another_setting_or_weight_gives_another_fingerprint(fingerprints, changed):
    same = {name for name, fingerprint in fingerprints.items() if fingerprint == fingerprints[changed]}
    # The module's own pooling is what `pooling_mode` sets.
    twins = {"pooling", "pooling of the module"}
    assert same == (twins if changed in twins else {changed})


def test_the_same_model_gives_the_same_fingerprint(fingerprints, decoder, tmp_path):
    model = st_llm2vec.load(str(decoder))
    assert model.fingerprint == fingerprints["nothing"]
    model.prompts["unused"] = ""
    assert model.fingerprint == fingerprints["nothing"]
    model.encode(["quick brown fox"])
    assert model.fingerprint == fingerprints["nothing"]
    model.save_pretrained(str(tmp_path / "saved"))
    assert st_llm2vec.load(str(tmp_path / "saved")).fingerprint == fingerprints["nothing"]


def test_a_store_refuses_the_model_with_other_weights(decoder, tmp_path):
    model = st_llm2vec.load(str(decoder))
    with FaissStore.create(tmp_path / "store", model) as store:
        store.add(["quick brown fox"])
    _scale_a_weight(model)
    with pytest.raises(StoreMismatchError, match="fingerprint"):
        FaissStore.open(tmp_path / "store", model)
