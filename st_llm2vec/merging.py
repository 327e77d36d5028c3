"""Merges LoRA adapters into a decoder: in memory for `load`, or shard by shard from file to file.

Sums are taken in float32 and rounded once to the weights' own dtype. Afterwards, rows of every merged weight are
compared with the files, so that an adapter that was ignored or misplaced cannot go unseen.
"""

from __future__ import annotations

import copy
import errno
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from .atomic import published_folder
from .checkpoints import Checkpoint, no_weights, weight_files
from .errors import InvalidCheckpointError
from .vetting import own_attention, read_json, require_files

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter_*", "config.json")
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
# Settings of peft's LoRA with which an adapter is more than (alpha / r) B A on every token.
_NOT_PLAIN = """
    use_dora use_qalora use_bdlora kasa_config monteclora_config arrow_config lora_bias alora_invocation_tokens
    target_parameters layer_replication modules_to_save trainable_token_indices
"""
_PEFT = "base_model.model."  # stands before every path in an adapter's file
SHARD = 1 << 30  # bytes, at most, of one file
_SAMPLE = 3  # rows of every merged weight that are compared with the files after loading
Sample = dict[str, tuple[list[int], Tensor]]


def published_weights(target: Path) -> AbstractContextManager[Path]:
    """As `published_folder`; weights that were in `target` before are removed: with two sets, either is opened."""
    return published_folder(target, _WEIGHTS)


class Adapter:
    """A plain LoRA adapter on disk, checked against the weights that it is for; nothing is read before it is used.

    Args:
        folder: Holds adapter_config.json and adapter_model.safetensors.
        model: The decoder; its weights may be on the meta device.

    Raises:
        InvalidCheckpointError: Another method than plain LoRA, a damaged file, or tensors that fit no weight.
    """

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        shapes = {name: weight.shape for name, weight in model.named_parameters()}
        self.folder = folder
        self.config = read_json(folder / "adapter_config.json")
        path = folder / "adapter_model.safetensors"
        self.changes_anything = False  # known once its deltas have been read
        self._require_plain_lora()
        self.alphas = _alphas(self.config)
        trained_on = (self.config.get("auto_mapping") or {}).get("base_model_class") or ""
        if _family(trained_on) not in (None, _family(type(model).__name__)):  # two families can have the same shapes
            raise self._misfit(f"it was trained on {trained_on!r}, and this is {type(model).__name__!r}")
        if not path.is_file():
            raise InvalidCheckpointError(no_weights(folder))
        self.tensors = _opened(path)
        ranks = {name: self.tensors.get_slice(name).get_shape() for name in self.tensors.keys()}  # noqa: SIM118 - no dict
        pairs = {name.removesuffix(".lora_A.weight") for name in ranks if name.endswith(".lora_A.weight")}
        expected = {f"{pair}.lora_{ab}.weight" for pair in pairs for ab in "AB"}
        self.pairs = {target: pair for pair in sorted(pairs) if (target := _target(pair, shapes)) is not None}
        odd = sorted(pairs - set(self.pairs.values())) or sorted(set(ranks) ^ expected)
        if odd or not pairs:
            first, more = (odd or ["(no tensors)"])[0], max(0, len(odd) - 1)
            raise self._misfit(f"{first!r} and {more} more tensors have no place")
        for target, pair in self.pairs.items():
            a, b = ranks[f"{pair}.lora_A.weight"], ranks[f"{pair}.lora_B.weight"]
            shape = (b[0], a[1])[:: -1 if self.config.get("fan_in_fan_out") else 1]
            if shape != tuple(shapes[target]) or a[0] != b[1]:
                raise self._misfit(f"{pair!r} is {b[0]} x {a[1]}, the weight {tuple(shapes[target])}")

    def delta(self, target: str, rows: slice | list[int] = slice(None)) -> Tensor:
        """What the adapter adds to `rows` of a weight: (alpha / r) B A in float32, section 3.9."""
        a, b = (self.tensors.get_tensor(f"{self.pairs[target]}.lora_{ab}.weight").float() for ab in "AB")
        scale = self._scale(self.pairs[target], a.shape[0])
        delta: Tensor = scale * (a.T[rows] @ b.T if self.config.get("fan_in_fan_out") else b[rows] @ a)
        return delta

    def _scale(self, pair: str, rank: int) -> float:
        path = pair.removeprefix(_PEFT)
        alpha: float = next((alpha for key, alpha in self.alphas if key.match(path)), self.config["lora_alpha"])
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def _misfit(self, what: str) -> InvalidCheckpointError:
        return InvalidCheckpointError(
            f"The adapter {self.folder} does not fit this decoder: {what}. It belongs on another base; name the right "
            "one with base=."
        )

    def _require_plain_lora(self) -> None:
        config = self.config
        odd = {key: config.get(key) for key in _NOT_PLAIN.split() if config.get(key)}
        if config.get("peft_type") != "LORA":
            odd["peft_type"] = config.get("peft_type")
        if config.get("lora_alpha") is None:
            odd["lora_alpha"] = None
        if config.get("bias", "none") != "none":
            odd["bias"] = config["bias"]
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start not in ("gaussian", "eva", "orthogonal"):
            odd["init_lora_weights"] = start  # pissa, olora, corda, loftq: the weights below were changed, too
        if odd:
            what = ", ".join(f"{key}={value!r}" for key, value in odd.items())
            raise InvalidCheckpointError(
                f"{self.folder} is not a plain LoRA adapter ({what}). Merge it with peft and load that."
            )


def merge_adapters(model: PreTrainedModel, folders: Sequence[Path]) -> Sample:
    """Adds LoRA adapters to the weights of `model`, in float32, rounded once to the weights' own dtype.

    Every tensor of every file is used; an adapter that does not fit is found before the model is changed.

    Returns:
        Some rows of every weight that changed, computed apart from the files, for `require_merged`.

    Raises:
        InvalidCheckpointError: An adapter that does not fit, was never trained, or holds numbers that are not finite.
    """
    weights = dict(model.named_parameters())
    adapters = [Adapter(folder, model) for folder in folders]
    sample: Sample = {}
    for name in sorted({name for adapter in adapters for name in adapter.pairs}):
        weight = weights[name].detach()
        sample[name] = _sampled(weight, name, adapters)
        weight.copy_(_merged(weight, name, adapters))
    _require_trained(adapters)
    return sample


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself if it has no adapters, else a copy with them merged in float32; the model is not changed."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(model)
    layers = {name: layer for name, layer in merged.named_modules() if isinstance(layer, BaseTunerLayer)}
    dtypes: dict[nn.Parameter, torch.dtype] = {}
    for layer in layers.values():
        weight = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))
        dtypes.setdefault(weight, weight.dtype)
        weight.data = weight.data.float()  # peft gives experts' deltas in the dtype of their weights
        for adapter in (name for name in layer.active_adapters if name in layer.lora_A):
            weight.data += layer.get_delta_weight(adapter).detach().float()
    for weight, dtype in dtypes.items():
        weight.data = weight.data.to(dtype)
    for name, layer in layers.items():
        if name.removesuffix(".base_layer") not in layers or not name.endswith(".base_layer"):  # the outermost
            parent, _, attribute = name.rpartition(".")
            setattr(merged.get_submodule(parent), attribute, layer.get_base_layer())
    merged._hf_peft_config_loaded = False
    del merged.peft_config
    return merged


def merge_to_folder(checkpoint: Checkpoint, folder: Path, *, dtype: torch.dtype | None = None) -> Sample:
    """Writes the decoder with its adapters merged, without its language-model head, one shard at a time.

    Reads and writes tensor by tensor, so that it needs memory for one shard (1 GB) and one weight in float32, however
    large the decoder is. `folder` then opens with `AutoModel` and `AutoTokenizer`, as an ordinary (causal) decoder.

    Args:
        checkpoint: What `resolve` returned.
        folder: Written into; see `published` for one that appears complete or not at all.
        dtype: Default: that of each weight in the decoder's own files.

    Returns, Raises:
        As `merge_adapters`; also OSError where the disk is full.
    """
    config = AutoConfig.from_pretrained(checkpoint.decoder, trust_remote_code=False)
    own_attention(config)
    with torch.device("meta"):
        skeleton = AutoModel.from_config(config)
    adapters = [Adapter(path, skeleton) for path in checkpoint.adapters]
    stored = _stored(checkpoint.decoder, f"{skeleton.base_model_prefix}.")
    if lost := sorted({name for adapter in adapters for name in adapter.pairs} - stored.keys()):
        raise InvalidCheckpointError(
            f"{checkpoint.decoder} has no tensor named {lost[0]!r}, which an adapter changes. Merge it in memory: "
            "load(...).save_pretrained(...)."
        )
    needed = sum(file.stat().st_size for file in weight_files(checkpoint.decoder))
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")

    sample: Sample = {}
    shapes = {name: _cast(shape, dtype) for name, (_, _, shape) in stored.items()}
    plan = split_torch_state_dict_into_shards(shapes, max_shard_size=SHARD)
    for shard, names in plan.filename_to_tensors.items():
        tensors = {}
        for name in names:
            path, stored_name, _ = stored[name]
            with _opened(path) as opened:
                weight = opened.get_tensor(stored_name)
            if any(name in adapter.pairs for adapter in adapters):
                sample[name] = _sampled(weight, name, adapters, dtype)
                weight = _merged(weight, name, adapters, dtype)
            tensors[name] = _cast(weight, dtype).contiguous()
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    _require_trained(adapters)
    raw = read_json(checkpoint.decoder / "config.json")
    raw.pop("auto_map", None)
    if dtype is not None:
        raw["dtype"] = raw["torch_dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    require_files(checkpoint.tokenizer)  # once more: what a link leads to would be copied, and published
    for file in (file for pattern in _TOKENIZER for file in checkpoint.tokenizer.glob(pattern) if file.is_file()):
        shutil.copyfile(file, folder / file.name)
    return sample


def require_merged(model: PreTrainedModel, sample: Sample) -> None:
    """Compares merged weights, as they lie in the model, with the sum of the files' tensors.

    Raises:
        InvalidCheckpointError: A weight is not what its files say.
    """
    weights = dict(model.named_parameters())
    for name, (rows, expected) in sample.items():
        found = weights[name].detach()[rows].float().cpu()
        coarsest = max(torch.finfo(dtype).eps for dtype in (weights[name].dtype, expected.dtype))
        difference = float((found - expected.float()).abs().max())
        if not difference <= 2 * coarsest * float(expected.abs().max()):
            raise InvalidCheckpointError(
                f"After merging, {name!r} differs from the sum of the decoder's and the adapters' tensors by "
                f"{difference:.1e}. The model is not what its files say; load it again."
            )


def restore_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Puts an adapter that is kept beside the weights back as its file has it: in the dtype that it was trained in.

    transformers reads it in the dtype of the decoder, which rounds a float32 adapter of a bfloat16 decoder.

    Raises:
        InvalidCheckpointError: A tensor was not loaded, or is another one.
    """
    loaded = {re.sub(r"(lora_\w+)\.\w+", r"\1", name): p for name, p in model.named_parameters() if "lora_" in name}
    with _opened(folder / "adapter_model.safetensors") as file:
        names = {name.removeprefix(_PEFT): name for name in file.keys()}  # noqa: SIM118 - no dict
        wrong = sorted(names.keys() ^ loaded.keys())
        for name in names.keys() & loaded.keys():
            stored, there = file.get_tensor(names[name]), loaded[name]
            if not torch.equal(stored.to(there.dtype), there.detach().cpu()):
                wrong.append(name)
            there.data = stored.to(there.device)
    if wrong:
        raise InvalidCheckpointError(
            f"The adapter in {folder} was not loaded as its file has it: {wrong[0]!r} and {len(wrong) - 1} more "
            "tensors are missing or differ. It was trained on another base."
        )


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


def _opened(path: Path) -> Any:
    """The open file; a truncated one is found here, before any tensor is read."""
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise InvalidCheckpointError(f"{path} is damaged: {error}. Download it again.") from error


def _stored(decoder: Path, prefix: str) -> dict[str, tuple[Path, str, Tensor]]:
    """Parameter of the headless decoder -> file, name and shape (on meta) of its tensor, in the order of the files."""
    found: dict[str, tuple[Path, str, Tensor]] = {}
    for path in weight_files(decoder):
        with _opened(path) as file:
            found |= {name: (path, name, file.get_tensor(name).to("meta")) for name in file.offset_keys()}
    if not any(name.startswith(prefix) for name in found):
        return found
    return {name.removeprefix(prefix): where for name, where in found.items() if name.startswith(prefix)}


def _merged(weight: Tensor, name: str, adapters: Sequence[Adapter], dtype: torch.dtype | None = None) -> Tensor:
    """The weight with the deltas of the adapters that change it, summed in float32 and rounded once."""
    if not weight.is_floating_point() or weight.is_meta:
        raise InvalidCheckpointError(
            f"{name!r} is {weight.dtype} on {weight.device}, and adapters can only be merged into weights that are "
            "there in full. Convert first (st-llm2vec convert), and load the result quantized or offloaded."
        )
    total = weight.float()
    for adapter in adapters:
        if name in adapter.pairs:
            delta = adapter.delta(name)
            adapter.changes_anything |= bool(delta.any())
            total = total + delta.to(total.device)
    if not total.isfinite().all():
        raise InvalidCheckpointError(f"{name!r} is not finite after merging: damaged files. Download them again.")
    return total.to(dtype or weight.dtype)


def _sampled(
    weight: Tensor, name: str, adapters: Sequence[Adapter], dtype: torch.dtype | None = None
) -> tuple[list[int], Tensor]:
    rows = sorted({round(i * (weight.shape[0] - 1) / (_SAMPLE - 1)) for i in range(_SAMPLE)})
    expected = weight[rows].float().cpu()
    for adapter in adapters:
        if name in adapter.pairs:
            expected = expected + adapter.delta(name, rows)
    return rows, expected.to(dtype or weight.dtype)


def _family(class_name: str) -> str | None:
    """ "Llama" of "LlamaModel", "LlamaForCausalLM" and the original's "LlamaBiModel"; None if transformers has none."""
    known = (name.removesuffix("Model") for name in MODEL_MAPPING_NAMES.values() if isinstance(name, str))
    return max((name for name in known if class_name.startswith(name)), key=len, default=None)


def _require_trained(adapters: Sequence[Adapter]) -> None:
    for adapter in adapters:
        if not adapter.changes_anything:
            raise InvalidCheckpointError(f"{adapter.folder} adds nothing to the decoder: it was never trained.")


def _target(pair: str, shapes: Mapping[str, torch.Size]) -> str | None:
    # The path starts at the inner decoder, or at the causal LM around it ("model.", "transformer.", ...).
    path = pair.removeprefix(_PEFT)
    names = (f"{path}.weight", f"{path.partition('.')[2]}.weight")
    return next((name for name in names if name in shapes), None)


def _alphas(config: dict[str, Any]) -> list[tuple[re.Pattern[str], float]]:
    """What peft's `get_pattern_key` compares with the end of a path, in its order; compiled once for all paths."""
    patterns = config.get("alpha_pattern") or {}
    return [(re.compile(rf"(.*\.)?({pattern})$"), alpha) for pattern, alpha in patterns.items()]
