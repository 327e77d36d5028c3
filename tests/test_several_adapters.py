"""Several LoRA adapters on one encoder, switched call by call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import st_llm2vec
from st_llm2vec.errors import InvalidCheckpointError, InvalidInputError
from st_llm2vec.training import add_lora
from st_llm2vec.training.records import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # by the second adapter
TEXTS = ["the lazy dog", "a quick brown fox jumps", "hello"]


@pytest.fixture(scope="module")
def folders(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two trained adapters, and the first once more with another alpha."""
    folder, made = tmp_path_factory.mktemp("adapters"), {}
    for name, seed, alpha in (("questions", 1, 8), ("titles", 2, 8), ("louder", 1, 16)):
        model = st_llm2vec.load(str(decoder), device="cpu").train()
        add_lora(model, name, r=4, alpha=alpha)
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, weight in model[0].model.named_parameters():
                if "lora_" in key:
                    weight.copy_(0.2 * torch.randn_like(weight))
        save_adapter(model, folder / name, str(decoder), torch.float32)
        made[name] = str(folder / name)
    return made


@pytest.fixture(scope="module")
def model(decoder: Path, folders: dict[str, str]) -> Any:
    model = st_llm2vec.load(str(decoder), device="cpu")
    model.encode(TEXTS)
    for name, folder in folders.items():
        model.load_adapter(folder, adapter_name=name)
    return model


def test_each_adapter_gives_the_vectors_of_the_merged_encoder(
    model: Any, folders: dict[str, str], decoder: Path
) -> None:
    for name in (*folders, next(iter(folders))):
        merged = st_llm2vec.load(str(decoder), adapter=folders[name], device="cpu")
        with model.use_adapter(name):
            np.testing.assert_allclose(model.encode(TEXTS), merged.encode(TEXTS), atol=1e-4)
    with model.use_adapter(None):
        plain = st_llm2vec.load(str(decoder), device="cpu")
        np.testing.assert_allclose(model.encode(TEXTS), plain.encode(TEXTS), atol=1e-5)


def test_afterwards_what_was_in_use_before_is_in_use_again(model: Any) -> None:
    model.set_adapter("titles")
    before = model.encode(TEXTS)
    with pytest.raises(ZeroDivisionError), model.use_adapter("questions"):
        np.abs(model.encode(TEXTS) - before).max() > 0.1 and 1 / 0
    np.testing.assert_array_equal(model.encode(TEXTS), before)
    with model.use_adapter(None), model.use_adapter("questions"):
        pass
    np.testing.assert_array_equal(model.encode(TEXTS), before)


def test_a_store_can_tell_which_adapter_made_its_vectors(model: Any, folders: dict[str, str]) -> None:
    """The weights in memory are the same ones, whichever adapter is in use, and say nothing of its alpha."""
    found = {}
    for name in (*folders, None):
        with model.use_adapter(name):
            found[name] = model.fingerprint
    assert len(set(found.values())) == 4


def test_an_adapter_that_is_not_there_is_refused(model: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"of .*titles.*, got 'answers'"), model.use_adapter("answers"):
        pass


@pytest.mark.parametrize("fault", ["nan", "link", "damaged", "a pattern without end"])
def test_an_adapter_is_vetted_before_it_is_added(
    decoder: Path, folders: dict[str, str], tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(folders["titles"], folder)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if fault == "nan":
        save_file({name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights)
    elif fault == "link":
        weights.rename(tmp_path / "elsewhere")
        weights.symlink_to(tmp_path / "elsewhere")
    elif fault == "damaged":
        weights.write_bytes(weights.read_bytes()[:50])
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"alpha_pattern": {"(a+)+b": 8}}))
    fresh = st_llm2vec.load(str(decoder), device="cpu")
    before = fresh.encode(TEXTS)
    with pytest.raises(InvalidCheckpointError):
        fresh.load_adapter(str(folder), adapter_name="stranger")
    np.testing.assert_array_equal(fresh.encode(TEXTS), before)
