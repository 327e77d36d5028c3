"""Adapters on top of decoders: what is merged on what, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import KIT

import st_llm2vec
from st_llm2vec.checkpoints import resolve
from st_llm2vec.errors import InvalidCheckpointError, ModelNotFoundError

MODELS = KIT / "models"
TEXT = ["how much protein should a female eat"]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Copies of the Llama checkpoints of the kit, free to be damaged."""
    for folder in MODELS.glob("llama-*"):
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path


def test_a_plan_prints_the_order(models: Path) -> None:
    plan = resolve(str(models / "llama-mntp"), adapter=str(models / "llama-mntp-supervised"))
    assert plan.decoder == models / "llama-base"
    assert [folder.name for folder in plan.adapters] == ["llama-mntp", "llama-mntp-supervised"]
    assert plan.tokenizer == models / "llama-mntp"
    assert plan.original_name == "meta-llama/Meta-Llama-3-8B-Instruct"
    lines = str(plan).splitlines()
    assert [line.split()[0] for line in lines] == ["decoder", "+", "+", "tokenizer"]


def test_a_second_stage_alone_does_not_skip_mntp(models: Path) -> None:
    with pytest.raises(InvalidCheckpointError, match="base="):
        resolve(str(models / "llama-mntp-supervised"))
    named = st_llm2vec.load(str(models / "llama-mntp-supervised"), base=str(models / "llama-mntp"), device="cpu")
    given = st_llm2vec.load(str(models / "llama-mntp"), adapter=str(models / "llama-mntp-supervised"), device="cpu")
    assert np.array_equal(named.encode(TEXT), given.encode(TEXT))


def test_base_beside_weights_is_refused(models: Path) -> None:
    with pytest.raises(InvalidCheckpointError, match="has weights of its own"):
        resolve(str(models / "llama-base"), base=str(models / "llama-mntp"))


def test_code_in_a_checkpoint_is_not_run(models: Path) -> None:
    assert (models / "llama-mntp" / "modeling_llama_encoder.py").is_file()  # raises when imported
    assert "auto_map" in json.loads((models / "llama-mntp" / "config.json").read_text())
    st_llm2vec.load(str(models / "llama-mntp"), device="cpu")


def change(adapter: Path, **tensors: object) -> None:
    path = adapter / "adapter_model.safetensors"
    stored = load_file(path)
    for name, value in tensors.items():
        key = next(k for k in stored if name in k)
        old = stored.pop(key)
        if value == "rename":
            stored[key.replace("layers.0", "layers.7")] = old
        elif value == "wide":
            stored[key] = old.repeat(1, 2)
    save_file(stored, path)


@pytest.mark.parametrize("damage", ["rename", "wide", "drop"])
def test_an_adapter_that_does_not_fit_changes_nothing(models: Path, damage: str) -> None:
    change(models / "llama-mntp", **{"layers.0.mlp.up_proj.lora_A": damage})
    with pytest.raises(InvalidCheckpointError, match="does not fit this decoder"):
        st_llm2vec.load(str(models / "llama-mntp"), device="cpu")


def test_other_adapters_and_damaged_files_are_refused(models: Path) -> None:
    folder = models / "llama-mntp"
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(InvalidCheckpointError, match=r"not a plain LoRA adapter.*use_dora"):
        st_llm2vec.load(str(folder), device="cpu")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(InvalidCheckpointError, match="damaged"):
        st_llm2vec.load(str(folder), device="cpu")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(InvalidCheckpointError, match="a pickle"):
        st_llm2vec.load(str(folder), device="cpu")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(InvalidCheckpointError, match="not valid JSON"):
        st_llm2vec.load(str(folder), device="cpu")


def test_a_folder_without_an_adapter_is_named(models: Path) -> None:
    with pytest.raises(InvalidCheckpointError, match=r"no adapter_config.json"):
        resolve(str(models / "llama-base"), adapter=str(models / "llama-base"))


def test_a_hub_id_is_read_from_the_cache_with_its_commit(
    models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The layout of a real hub cache, filled by hand; nothing is downloaded."""
    commit = "0" * 39 + "1"
    cache = tmp_path / "hub" / "models--owner--decoder"
    shutil.copytree(models / "llama-base", cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    plan = resolve("owner/decoder", local_files_only=True)
    assert plan.sources == ({"name": "owner/decoder", "commit": commit},)
    from_hub = st_llm2vec.load("owner/decoder", local_files_only=True, device="cpu")
    assert np.array_equal(from_hub.encode(TEXT), st_llm2vec.load(str(models / "llama-base"), device="cpu").encode(TEXT))
    with pytest.raises(ModelNotFoundError, match="owner/other"):
        resolve("owner/other", local_files_only=True)
