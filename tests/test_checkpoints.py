"""Adapters on top of decoders: what is merged on what, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_models import KIT

import st_llm2vec
from st_llm2vec.checkpoints import resolve
from st_llm2vec.errors import InvalidCheckpointError

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
    assert str(plan) == (
        f"decoder    {models}/llama-base\n"
        f"+ adapter  {models}/llama-mntp\n"
        f"+ adapter  {models}/llama-mntp-supervised\n"
        f"tokenizer  {models}/llama-mntp"
    )


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
    for key, value in {"use_dora": True, "alora_invocation_tokens": [5, 6], "init_lora_weights": "pissa"}.items():
        (folder / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(InvalidCheckpointError, match=rf"not a plain LoRA adapter.*{key}"):
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


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"model.norm.weight": "../other/model.safetensors"}, "no path inside"),
        ({"model.norm.weight": "/etc/model.safetensors"}, "no path inside"),
        ({"model.norm.weight": "..\\\\model.safetensors"}, "no path inside"),
        ({"model.norm.weight": 3}, "no path inside"),
        ({"model.norm.weight": "model-00002-of-00002.safetensors"}, "lacks model-00002-of-00002"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_index_names_files_of_its_own_folder(models: Path, weight_map: dict, message: str) -> None:
    (models / "llama-base" / "model.safetensors").unlink()
    (models / "llama-base" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("llama-base", "llama-mntp"):
        with pytest.raises(InvalidCheckpointError, match=message):
            resolve(str(models / name))


@pytest.mark.parametrize("named", ["../../elsewhere", "x/../../elsewhere", "", None, 3])
def test_an_adapter_names_a_neighbour_or_a_hub_id(models: Path, named: object) -> None:
    path = models / "llama-mntp" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": named}))
    (models.parent / "elsewhere").mkdir(exist_ok=True)
    with pytest.raises(InvalidCheckpointError, match=r"base="):
        resolve(str(models / "llama-mntp"))
    assert resolve(str(models / "llama-mntp"), base=str(models / "llama-base")).decoder == models / "llama-base"


def test_modules_outside_of_a_saved_folder_are_refused(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    st_llm2vec.load(str(models / "llama-base"), device="cpu").save_pretrained(str(folder))
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../1_Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    for opener in (SentenceTransformer, st_llm2vec.load):
        with pytest.raises(InvalidCheckpointError, match=r"'../1_Pooling', which is no path inside"):
            opener(str(folder), device="cpu")


def test_code_of_an_unknown_architecture_is_not_run(models: Path, tmp_path: Path) -> None:
    folder, trace = models / "llama-base", tmp_path / "was-run"
    (folder / "modeling_evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nraise SystemExit('run')\n")
    config = json.loads((folder / "config.json").read_text())
    auto_map = {name: f"modeling_evil.{name}" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto_map}))
    with pytest.raises(InvalidCheckpointError, match="without running the checkpoint's own code"):
        st_llm2vec.load(str(folder), device="cpu")
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"auto_map": {"AutoTokenizer": [None, "modeling_evil.AutoTokenizer"]}})
    )
    st_llm2vec.load(str(folder), device="cpu")  # an architecture that transformers has itself
    assert not trace.exists()


def test_stages_that_exclude_each_other(models: Path) -> None:
    mntp, simcse, supervised = (
        str(models / f"llama-{name}") for name in ("mntp", "mntp-unsup-simcse", "mntp-supervised")
    )
    with pytest.raises(InvalidCheckpointError, match="3 adapters, and the last two exclude each other"):
        resolve(simcse, base=mntp, adapter=supervised)
    with pytest.raises(InvalidCheckpointError, match="one adapter, which would be merged twice"):
        resolve(mntp, adapter=mntp)
    with pytest.raises(InvalidCheckpointError, match=r"The MNTP stage goes first: load\('.*llama-mntp'"):
        resolve(supervised, base=str(models / "llama-base"), adapter=mntp)
    shutil.copy(models / "llama-base" / "model.safetensors", mntp)
    with pytest.raises(InvalidCheckpointError, match=r"holds weights .* and an adapter"):
        resolve(mntp)
    (Path(supervised) / "adapter_config.json").unlink()
    with pytest.raises(InvalidCheckpointError, match=r"no adapter_config.json to read them by"):
        resolve(supervised)


@pytest.mark.parametrize("odd", [{"init_lora_weights": "pissa"}, {"lora_bias": True}, {"peft_type": "LOHA"}], ids=str)
def test_other_methods_than_plain_lora_are_refused(models: Path, odd: dict) -> None:
    path = models / "llama-mntp" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    with pytest.raises(InvalidCheckpointError, match=f"not a plain LoRA adapter .*{next(iter(odd))}"):
        st_llm2vec.load(str(models / "llama-mntp"), device="cpu")


def test_an_adapter_of_another_family_is_refused_although_it_would_fit(models: Path) -> None:
    other = str(MODELS / "gemma-mntp-supervised")  # the kit's families share their shapes
    with pytest.raises(InvalidCheckpointError, match=r"trained on 'GemmaBiModel', and this is 'LlamaModel'"):
        st_llm2vec.load(str(models / "llama-mntp"), adapter=other, device="cpu")
