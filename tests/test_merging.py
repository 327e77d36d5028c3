"""Merging, in memory and from file to file: the same numbers, proven against the files, and all or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_models import KIT, save_decoder
from transformers import AutoModel, AutoModelForCausalLM

import st_llm2vec
from st_llm2vec import merging
from st_llm2vec.checkpoints import resolve
from st_llm2vec.errors import InvalidCheckpointError
from st_llm2vec.loading import convert
from st_llm2vec.merging import merge_adapters, merge_to_folder, published_weights, require_merged

MODELS = KIT / "models"
TEXTS = [["Retrieve passages that answer", "how much protein"], ["", "a passage"]]


def plan(family: str = "llama"):
    return resolve(str(MODELS / f"{family}-mntp"), adapter=str(MODELS / f"{family}-mntp-supervised"))


def decoder(folder: Path, dtype: torch.dtype = torch.float32):
    return AutoModel.from_pretrained(folder, dtype=dtype)


def by_hand(family: str) -> dict[str, torch.Tensor]:
    """W + sum of (alpha / r) B A, from the files, in float64."""
    base = load_file(MODELS / f"{family}-base" / "model.safetensors")
    for stage in ("mntp", "mntp-supervised"):
        folder = MODELS / f"{family}-{stage}"
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        for name in [name for name in tensors if "lora_A" in name]:
            a, b = tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double()
            target = name.replace("base_model.model.", "model.").replace(".lora_A.weight", ".weight")
            base[target] = base[target] + config["lora_alpha"] / config["r"] * b @ a
    return {name.removeprefix("model."): tensor for name, tensor in base.items() if name != "lm_head.weight"}


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_both_ways_of_merging_give_the_sum_of_the_files(family: str, tmp_path: Path) -> None:
    checkpoint = plan(family)
    model = decoder(checkpoint.decoder)
    merge_adapters(model, checkpoint.adapters)
    merge_to_folder(checkpoint, tmp_path)
    written, expected = load_file(tmp_path / "model.safetensors"), by_hand(family)
    assert written.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, written[name])
        assert torch.allclose(parameter, expected[name].float(), atol=1e-6)
    assert torch.equal(decoder(tmp_path).embed_tokens.weight, model.embed_tokens.weight)


def test_two_adapters_are_rounded_once(tmp_path: Path) -> None:
    checkpoint = plan()
    model = decoder(checkpoint.decoder, torch.bfloat16)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    merge_adapters(model, checkpoint.adapters)
    merge_to_folder(checkpoint, tmp_path, dtype=torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    exact, base = by_hand("llama"), load_file(checkpoint.decoder / "model.safetensors")
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert tensor.dtype == torch.bfloat16
        assert (tensor.float() != exact[name].float().bfloat16().float()).float().mean() < 1e-2  # ties of the last bit
    for name, parameter in model.named_parameters():
        delta = exact[name] - base[f"model.{name}"]
        once = (before[name].double() + delta).bfloat16()
        assert (parameter != once).float().mean() < 1e-2, name


def test_shards_are_written_one_by_one_and_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AutoModel.from_pretrained(MODELS / "llama-base").save_pretrained(tmp_path / "many", max_shard_size="100KB")
    base = tmp_path / "many"
    assert len(list(base.glob("*.safetensors"))) > 2
    shutil.copy(MODELS / "llama-base" / "tokenizer.json", base)
    sizes = []
    save = merging.save_file
    monkeypatch.setattr(
        merging, "save_file", lambda tensors, *a, **k: sizes.append(len(tensors)) or save(tensors, *a, **k)
    )
    monkeypatch.setattr(merging, "SHARD", 150_000)
    checkpoint = resolve(str(MODELS / "llama-mntp"), base=str(base))
    out = tmp_path / "out"
    out.mkdir()
    merge_to_folder(checkpoint, out)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{i:05}-of-{len(sizes):05}.safetensors" for i in range(1, len(sizes) + 1)]
    assert sorted(file.name for file in out.glob("*.safetensors")) == names
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in decoder(out).parameters())
    model = decoder(checkpoint.decoder)
    merge_adapters(model, checkpoint.adapters)
    for (name, a), b in zip(model.named_parameters(), decoder(out).parameters(), strict=True):
        assert torch.equal(a, b), name


def test_convert_writes_what_load_and_save_write(tmp_path: Path) -> None:
    mntp, adapter = str(MODELS / "llama-mntp"), str(MODELS / "llama-mntp-supervised")
    loaded = st_llm2vec.load(mntp, adapter=adapter, device="cpu", pooling_mode="weighted_mean")
    loaded.save_pretrained(str(tmp_path / "saved"))
    converted = convert(mntp, tmp_path / "converted", adapter=adapter, pooling_mode="weighted_mean")
    names = [sorted(file.name for file in (tmp_path / n).rglob("*")) for n in ("saved", "converted")]
    assert names[0] == names[1]
    for name in ("config.json", "llm2vec_config.json", "modules.json", "tokenizer.json"):
        assert (tmp_path / "saved" / name).read_text() == (tmp_path / "converted" / name).read_text()
    expected = loaded.encode(TEXTS)
    for model in (converted, SentenceTransformer(str(tmp_path / "converted"), device="cpu")):
        assert np.abs(model.encode(TEXTS) - expected).max() <= 1e-6
    assert {item.name for item in tmp_path.iterdir()} == {"saved", "converted"}


def damaged(folder: Path, change) -> Path:
    """A copy of an adapter, each of whose tensors went through `change`."""
    shutil.copytree(MODELS / "llama-mntp", folder)
    path = folder / "adapter_model.safetensors"
    save_file({name: change(name, tensor).contiguous() for name, tensor in load_file(path).items()}, path)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, t: t * float("nan"), "is not finite after merging"),
        (lambda name, t: torch.zeros_like(t) if "lora_B" in name else t, "was never trained"),
    ],
    ids=["nan", "zero"],
)
def test_adapters_without_sense_are_refused(change, message: str, tmp_path: Path) -> None:
    folder = damaged(tmp_path / "adapter", change)
    base = str(MODELS / "llama-base")
    for open_it in (
        lambda: st_llm2vec.load(str(folder), base=base, device="cpu"),
        lambda: convert(str(folder), tmp_path / "out", base=base),
    ):
        with pytest.raises(InvalidCheckpointError, match=message):
            open_it()
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_effect_is_not_published(tmp_path: Path) -> None:
    folder = damaged(tmp_path / "adapter", lambda name, t: t * 1e-9 if "lora_B" in name else t)
    with pytest.raises(InvalidCheckpointError, match="changes no vector"):
        convert(str(folder), tmp_path / "out", base=str(MODELS / "llama-base"))
    assert [item.name for item in tmp_path.iterdir()] == ["adapter"]


def test_a_merged_weight_that_is_not_the_sum_stops(tmp_path: Path) -> None:
    checkpoint = plan()
    model = decoder(checkpoint.decoder)
    sample = merge_adapters(model, checkpoint.adapters)
    assert len(sample) == 14
    require_merged(model, sample)
    weight = model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[-1] *= 1.001
    with pytest.raises(InvalidCheckpointError, match=r"layers.1.mlp.down_proj.weight' differs from the sum"):
        require_merged(model, sample)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("trained_as", [AutoModel, AutoModelForCausalLM])
def test_conv1d_weights_take_the_transposed_sum(trained_as: type, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    save_decoder(tmp_path / "gpt2", "gpt2")
    model = trained_as.from_pretrained(tmp_path / "gpt2")
    tuned = get_peft_model(model, LoraConfig(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    expected = tuned.merge_and_unload().state_dict()
    merged = decoder(tmp_path / "gpt2")
    merge_adapters(merged, [tmp_path / "adapter"])
    path = "transformer." if trained_as is AutoModelForCausalLM else ""
    for name, parameter in merged.named_parameters():
        assert torch.allclose(parameter, expected[path + name], atol=1e-6), name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
@pytest.mark.parametrize(
    "scaling",
    [
        {"alpha_pattern": {r"layers\.[1-9]+\.self_attn\.q_proj": 64, "v_proj": 4}},  # keys are expressions
        {"r": 16, "lora_alpha": 16, "use_rslora": True},  # alpha / sqrt(r) = 4, not alpha / r = 1
    ],
)
def test_the_scale_is_pefts(scaling: dict, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = MODELS / "llama-base"
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights="gaussian", **scaling)
    tuned = get_peft_model(decoder(base), config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    expected = tuned.merge_and_unload().state_dict()
    merged = decoder(base)
    merge_adapters(merged, [tmp_path / "adapter"])
    for name, parameter in merged.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-6), name


class TestFullDisk:
    """Whatever runs out of space, the folder is what it was, and nothing else is left."""

    def fill(self, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(target, full)

    @pytest.mark.parametrize(
        "target", ["st_llm2vec.merging.save_file", "transformers.PretrainedConfig.save_pretrained", "os.replace"]
    )
    def test_of_convert(self, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        convert(str(MODELS / "llama-base"), tmp_path / "out")
        before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
        self.fill(monkeypatch, target)
        for folder in ("out", "new"):
            with pytest.raises(OSError, match=rf"No space left on device.*{folder}") as caught:
                convert(str(MODELS / "llama-mntp"), tmp_path / folder)
            assert caught.value.errno == errno.ENOSPC
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_is_foreseen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
        with pytest.raises(OSError, match=r"0\.0 GB are free"):
            convert(str(MODELS / "llama-mntp"), tmp_path / "out")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), SafetensorError("I/O: No space left on device")])
    def test_in_both_words(self, error: Exception, tmp_path: Path) -> None:
        def write() -> None:
            with published_weights(tmp_path / "out") as folder:
                (folder / "half").write_text("done")
                raise error

        with pytest.raises(OSError, match=r"No space left on device for .*out, which is as it was before") as caught:
            write()
        assert caught.value.errno == errno.ENOSPC
        assert not list(tmp_path.iterdir())


def test_code_that_is_not_copied_is_not_named(tmp_path: Path) -> None:
    source = save_decoder(tmp_path / "decoder")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling_own.OwnModel"}}))
    (tmp_path / "merged").mkdir()
    merge_to_folder(resolve(str(source)), tmp_path / "merged")
    assert "auto_map" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_old_weights_do_not_survive_beside_new_ones(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    convert(str(MODELS / "llama-mntp"), folder)
    (folder / "notes.txt").write_text("mine")
    with published_weights(folder) as new:
        AutoModel.from_pretrained(MODELS / "llama-base").save_pretrained(new, max_shard_size="100KB")
    assert not (folder / "model.safetensors").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert torch.equal(decoder(folder).embed_tokens.weight, decoder(MODELS / "llama-base").embed_tokens.weight)


@pytest.mark.parametrize("part", [0.3, 0.99])
def test_truncated_shards_are_named(part: float, tmp_path: Path) -> None:
    base = tmp_path / "base"
    AutoModel.from_pretrained(MODELS / "llama-base").save_pretrained(base, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "llama-base" / name, base)
    shard = sorted(base.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[: int(part * shard.stat().st_size)])
    with pytest.raises(InvalidCheckpointError, match=r"damaged|cannot be read"):
        st_llm2vec.load(str(MODELS / "llama-mntp"), base=str(base), device="cpu")
    with pytest.raises(InvalidCheckpointError, match=r"damaged|cannot be read"):
        convert(str(MODELS / "llama-mntp"), tmp_path / "out", base=str(base))
    assert not (tmp_path / "out").exists()
