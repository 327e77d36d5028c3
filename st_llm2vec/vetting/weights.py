"""What a config asks for against what its files hold, before memory is taken or a kernel is fetched for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import InvalidCheckpointError
from .fields import named_weights
from .files import read_json, require_file

MANY_LAYERS = 128  # more than any published decoder has (Llama 405B: 126)
MAX_PER_BYTE = 8  # weights of one byte of a file; the smallest published ones have 1.6 bits
SPARE = 1 << 22  # weights that a file may lack, for the error that names them
MAX_HEADER = 1 << 26  # bytes; Llama 405B has 140,000 over all its files
# Quantization methods whose packages are installed or not. For the others (fp8, mxfp4, nvfp4, metal, eetq, ...)
# transformers fetches kernels from the hub, `local_files_only` or not; what it does not know, it leaves out in silence.
_INSTALLED = """
    aqlm auto-round awq bitnet bitsandbytes bitsandbytes_4bit bitsandbytes_8bit compressed-tensors fouroversix fp_quant
    gptq higgs hqq llm2vec_int8 quanto quark sinq spqr torchao vptq
"""


def require_held(folder: Path, config: Any) -> None:
    """Raises where a config has more weights than its files can hold: they would be made, and fill the memory.

    Args:
        folder: With `model.safetensors`, or what its index names.
        config: Of transformers.

    Raises:
        InvalidCheckpointError: More layers than there are tensors, or more weights than bits.
    """
    import torch
    from transformers import AutoModel

    if not (files := _files(folder)):
        return  # an adapter: its decoder lies elsewhere
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0) or 0
    if layers > MANY_LAYERS and layers > (tensors := sum(map(_tensors, files))):
        raise InvalidCheckpointError(f"{folder} has {layers:,} layers by its config.json, and {tensors:,} tensors.")
    held = MAX_PER_BYTE * sum(file.stat().st_size for file in files) + SPARE
    with torch.device("meta"):
        asked = sum(weight.numel() for weight in AutoModel.from_config(config).parameters())
    if asked > held:
        raise InvalidCheckpointError(
            f"The weights in {str(folder)!r} lack most tensors of a {config.model_type} model: {asked:,} weights by "
            f"its config.json, in files of {sum(file.stat().st_size for file in files):,} bytes. Download them again."
        )


def require_no_kernels(folder: Path, config: Any) -> None:
    """Raises where a config names a quantization that transformers would fetch kernels for, or does not know.

    Raises:
        InvalidCheckpointError: Only the caller may choose that, by model_kwargs={"quantization_config": ...}.
    """
    named = getattr(config, "quantization_config", None)
    if named is None:
        return
    told = named if isinstance(named, Mapping) else vars(named)
    bits = told.get("load_in_8bit") or told.get("load_in_4bit")
    method = "bitsandbytes" if bits else str(getattr(told.get("quant_method"), "value", told.get("quant_method")))
    if method not in _INSTALLED.split():
        raise InvalidCheckpointError(
            f"{folder / 'config.json'}: quantization_config names {method!r}, for which transformers would fetch "
            "kernels from the hub, or which it does not know. Only the caller may choose that: give model_kwargs="
            "{'quantization_config': ...}, where transformers has it with dequantize=True (Mxfp4Config, "
            "FineGrainedFP8Config, ...) if its kernels are not wanted."
        )


def _files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    return [path for path in named_weights(index, read_json(index)) if path.is_file()]


def _tensors(file: Path) -> int:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = opened.read(size) if size <= MAX_HEADER else b"{}"
    try:
        return len(json.loads(header))
    except (ValueError, TypeError, RecursionError):
        return 0  # safetensors says what is wrong


def require_finite_adapter(folder: Path) -> None:
    """Raises `InvalidCheckpointError` where an adapter has numbers that are not finite, which make every vector nan."""
    path = require_file(folder, "adapter_model.safetensors")
    try:
        with safe_open(path, "pt") as file:
            odd = [name for name in file.keys() if not file.get_tensor(name).isfinite().all()]  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise InvalidCheckpointError(f"{path} is damaged: {error}. Download it again.") from error
    if odd:
        raise InvalidCheckpointError(f"{path}: {odd[0]!r} has numbers that are not finite. Download it again.")
