"""What a name stands for: a decoder, and the LoRA adapters that are merged into it, in which order.

LLM2Vec publishes adapters only: base decoder + MNTP adapter + SimCSE or supervised adapter. The second adapter's own
files name the raw decoder, so a loader that trusts them skips MNTP silently (defect Q18 of the original). Nothing of
a checkpoint is executed, and only safetensors are read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from .errors import InvalidCheckpointError, ModelNotFoundError

SETTINGS_FILE = "llm2vec_config.json"
# Names of the original package's llm2vec_config.json, and ours.
_ORIGINAL_SETTINGS = {"max_length": "max_seq_length", "doc_max_length": "document_max_length"}
# What a snapshot needs; code and pickles stay on the hub.
_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.txt", "README.md", "LICENSE*"]


@dataclass(frozen=True)
class Checkpoint:
    """A decoder, the adapters to merge into it in this order, and where tokenizer and settings come from."""

    decoder: Path
    adapters: tuple[Path, ...]
    tokenizer: Path
    original_name: str | None
    settings: dict[str, Any]
    sources: tuple[dict[str, str | None], ...]  # what was asked for, and the commit that it resolved to

    def __str__(self) -> str:
        lines = [f"decoder    {self.decoder}"]
        lines += [f"+ adapter  {folder}" for folder in self.adapters]
        return "\n".join([*lines, f"tokenizer  {self.tokenizer}"])


def resolve(
    name: str,
    *,
    adapter: str | None = None,
    base: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Finds the decoder and the adapters of a name; downloads what is not a local folder.

    Args:
        name: Folder or hub id of a decoder, or of an MNTP stage (config.json and an adapter, no weights).
        adapter: Folder or hub id of a second adapter on top.
        base: What the adapter in `name` belongs on; needed where its files cannot be trusted to say so.
        revision: Branch, tag or commit of `name`.

    Raises:
        ModelNotFoundError: Neither a folder nor a repository that can be reached.
        InvalidCheckpointError: Files are missing, or are of a kind that is not read.
    """
    sources: list[dict[str, str | None]] = []

    def fetch(what: str, revision: str | None = None) -> Path:
        folder, commit = _folder(what, revision, local_files_only)
        sources.append({"name": folder.name if commit is None else what, "commit": commit})  # no local paths on cards
        return folder

    top = fetch(name, revision)
    adapters: list[Path] = []
    if adapter is not None:
        adapters.append(fetch(adapter))
        _require_adapter(adapters[0], adapter)
    settings_folder = adapters[0] if adapters else top
    names_itself = top
    decoder = top
    if (top / "adapter_config.json").is_file() and not _weights(top):
        adapters.insert(0, top)
        named = base
        if named is None:
            if not (top / "config.json").is_file():
                raise InvalidCheckpointError(
                    f"{name!r} holds an adapter only, and adapters of a second stage name the raw decoder although "
                    "they belong on top of an MNTP stage. Say what it belongs on: "
                    f"load({name!r}, base='<the MNTP stage or decoder>')."
                )
            named = str(_json(top / "adapter_config.json").get("base_model_name_or_path") or "")
            beside = top.parent / named
            named = str(beside) if named and not Path(named).is_absolute() and beside.is_dir() else named
        below = resolve(named, local_files_only=local_files_only)
        sources += below.sources
        adapters = [*below.adapters, *adapters]
        decoder = below.decoder
        if not (top / "config.json").is_file():
            names_itself = below.tokenizer
    elif base is not None:
        raise InvalidCheckpointError(
            f"base={base!r} was given, but {name!r} has weights of its own; leave base out, or give the adapter."
        )
    if not _weights(decoder):
        raise InvalidCheckpointError(_no_weights(decoder, name))

    tokenizer = next((f for f in (names_itself, decoder) if (f / "tokenizer_config.json").is_file()), decoder)
    original = _json(names_itself / "config.json").get("_name_or_path") or None
    if original is None and not Path(name).is_dir():
        original = name
    return Checkpoint(decoder, tuple(adapters), tokenizer, original, read_settings(settings_folder), tuple(sources))


def read_settings(folder: Path) -> dict[str, Any]:
    """Settings in `llm2vec_config.json`, ours or the original package's, under our names; empty if there is none."""
    path = folder / SETTINGS_FILE
    settings = {_ORIGINAL_SETTINGS.get(key, key): value for key, value in _json(path).items()} if path.is_file() else {}
    if "skip_instruction" in settings:
        settings["include_prompt"] = not settings.pop("skip_instruction")
    return settings


def _folder(name: str, revision: str | None, local_files_only: bool) -> tuple[Path, str | None]:
    if Path(name).is_dir():
        return Path(name), None
    if not name or Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelNotFoundError(f"There is no folder {name!r}. Check the path; hub ids look like 'owner/name'.")
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=local_files_only)
    except HFValidationError as error:
        raise ModelNotFoundError(f"{name!r} is neither a folder nor a hub id ('owner/name').") from error
    except (OSError, ValueError) as error:
        where = "the local cache (local_files_only=True)" if local_files_only else "the hub or its cache"
        raise ModelNotFoundError(
            f"{name!r} is no folder here and could not be read from {where}: {type(error).__name__}: {error}. Gated "
            f"repositories need their licence accepted at https://huggingface.co/{name} and a token: hf auth login."
        ) from error
    return Path(found), Path(found).name


def _weights(folder: Path) -> list[Path]:
    return sorted(f for f in folder.glob("*.safetensors") if not f.name.startswith("adapter_"))


def _no_weights(folder: Path, name: str) -> str:
    pickles = [f.name for f in folder.glob("*.bin")] + [f.name for f in folder.glob("*.pt")]
    if pickles:
        return (
            f"{name!r} has its weights in {pickles[0]}, a pickle, which can run code when it is opened; only "
            "safetensors are read. Convert it where you trust it: AutoModel.from_pretrained(...).save_pretrained(...)."
        )
    return f"{name!r} has no *.safetensors weights in {folder}. Give the folder that save_pretrained wrote."


def _require_adapter(folder: Path, name: str) -> None:
    if not (folder / "adapter_config.json").is_file():
        raise InvalidCheckpointError(f"adapter={name!r} has no adapter_config.json; give a folder that peft has saved.")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidCheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InvalidCheckpointError(f"{path} holds a {type(content).__name__}, not an object.")
    return content


def merge_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Adds a LoRA adapter to the weights of `model`, in float32, rounded once to the weights' own dtype.

    W = W + (alpha / r) B A, section 3.9. Every tensor of the file is used, or nothing is.

    Raises:
        InvalidCheckpointError: Another method than plain LoRA, a truncated file, or tensors that fit no weight.
    """
    config = _json(folder / "adapter_config.json")
    unknown = [
        k for k in ("use_dora", "modules_to_save", "layer_replication", "trainable_token_indices") if config.get(k)
    ]
    if config.get("peft_type") != "LORA" or unknown or config.get("bias", "none") != "none":
        what = ", ".join(unknown) or f"peft_type={config.get('peft_type')!r}, bias={config.get('bias')!r}"
        raise InvalidCheckpointError(
            f"{folder} is not a plain LoRA adapter ({what}). Merge it with peft and load that."
        )
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise InvalidCheckpointError(_no_weights(folder, str(folder)))
    targets = {name.removesuffix(".weight"): p for name, p in model.named_parameters() if name.endswith(".weight")}
    try:
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
            pairs = {name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")}
            expected = sorted(f"{pair}.lora_{ab}.weight" for pair in pairs for ab in "AB")
            found = {pair: _target(pair, targets) for pair in pairs}
            missing = sorted(pair for pair, weight in found.items() if weight is None)
            if names != expected or missing or not pairs:
                odd = missing or sorted(set(names) ^ set(expected)) or ["(no tensors)"]
                raise InvalidCheckpointError(
                    f"The adapter {folder} does not fit this decoder: {odd[0]!r} and {len(odd) - 1} more tensors have "
                    "no place. It was trained on another base; name the right one with base=."
                )
            deltas = []
            for pair, weight in found.items():
                a, b = file.get_tensor(f"{pair}.lora_A.weight"), file.get_tensor(f"{pair}.lora_B.weight")
                assert weight is not None
                if (b.shape[0], a.shape[1]) != tuple(weight.shape) or a.shape[0] != b.shape[1]:
                    raise InvalidCheckpointError(
                        f"The adapter {folder} does not fit this decoder: {pair!r} is {b.shape[0]} x {a.shape[1]}, the "
                        f"weight {tuple(weight.shape)}. It was trained on another base; name the right one with base=."
                    )
                deltas.append((weight, a, b, _scale(config, pair, a.shape[0])))
    except SafetensorError as error:
        raise InvalidCheckpointError(f"{path} is damaged: {error}. Download it again.") from error
    with torch.no_grad():
        for weight, a, b, scale in deltas:
            delta = scale * (b.float() @ a.float())
            weight.copy_((weight.float() + delta.to(weight.device)).to(weight.dtype))


def _target(pair: str, targets: dict[str, Tensor]) -> Tensor | None:
    # peft writes base_model.model.<path>; the path starts at the inner decoder, or at the causal LM around it.
    path = pair.removeprefix("base_model.model.")
    return targets.get(path, targets.get(path.removeprefix("model.")))


def _scale(config: dict[str, Any], pair: str, rank: int) -> float:
    def value(patterns: dict[str, float] | None, default: float) -> float:
        return next((v for k, v in (patterns or {}).items() if pair == k or pair.endswith(f".{k}")), default)

    alpha = value(config.get("alpha_pattern"), config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
