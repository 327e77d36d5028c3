"""GGUF files (llama.cpp's) become decoders: dequantized through transformers' reader into a temporary folder.

transformers takes from the defaults of an architecture, in silence, what a GGUF file does not say and what it does
not look for itself: other digits, no BOS, no rotary scaling. So every key and every tensor of a file has to be in the
tables here (each row is compared with the decoder that a file was made from, tests/test_gguf_files.py), or the file is
refused.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .checkpoints import weight_files
from .errors import (
    InvalidCheckpointError,
    InvalidInputError,
    MissingExtraError,
    ModelNotFoundError,
)
from .gguf_configs import ROTARY, config_of
from .gguf_tokenizers import tokenizer_of, unsupported, value_of
from .hub import Hub, require_no_revision
from .runtime import Runtime
from .vetting import can_be_path, opening, read_json, require_file, require_sane_gguf

if TYPE_CHECKING:
    from gguf import GGUFReader

    from .model import LLM2Vec

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass
class Opened:
    """What `load` goes on with: folders in the place of GGUF files."""

    name: str
    base: str | None
    runtime: Runtime
    file: Path | None = None
    folder: Path | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def label(self, model: LLM2Vec) -> None:
        """Names the file, not the temporary folder, as what the weights come from."""
        model.provenance |= self.provenance
        if model[0].model.name_or_path == str(self.folder):  # else: stages were merged into it
            model[0].model.name_or_path = str(self.file and self.file.absolute())


@contextmanager
def opened(name: str, base: str | None, revision: str | None, hub: Hub, runtime: Runtime) -> Iterator[Opened]:
    """Dequantizes the GGUF file that `name` or `base` stands for, for as long as the block runs.

    Args:
        name: As for `load`; a GGUF file, a folder with one and no other weights, or what holds `gguf_file`.
        base: What an adapter-only `name` belongs on; taken from its adapter_config.json if that names a GGUF file.
        revision, hub: Where `name` is a repository.
        runtime: `gguf_file` is taken out of its `model_kwargs`; weights are written in its dtype, by default in
            float32, or in that of a file without quantized weights if it holds them exactly.

    Raises:
        InvalidCheckpointError: No GGUF file, a damaged one, a part of one, several, or one that cannot be read exactly.
        MissingExtraError: The extra `gguf` is not installed.
        OSError: The disk is full.
    """
    gguf_file = runtime.model_kwargs.get("gguf_file")
    rest = {key: value for key, value in runtime.model_kwargs.items() if key != "gguf_file"}
    dtype = runtime.stored_dtype if isinstance(runtime.stored_dtype, torch.dtype) else None
    file = _find(name, gguf_file, revision, hub)
    below = base or _base_of(name)
    file_below = None if file or below is None else _find(below)
    result = Opened(name, base, replace(runtime, model_kwargs=rest), file=file or file_below)
    if result.file is None:
        yield result
        return
    with tempfile.TemporaryDirectory(prefix="st-llm2vec-gguf-", ignore_cleanup_errors=True) as temporary:
        result.folder = folder = Path(temporary) / result.file.stem
        folder.mkdir()
        with opening(result.file):
            result.provenance = {"gguf": write_folder(_read(result.file), result.file, folder, dtype)}
        if file:
            result.name = str(folder)
        else:
            result.base = str(folder)
        yield result


def _base_of(name: str) -> str | None:
    """The GGUF file that an adapter was trained on, if it names one."""
    if not Path(name, "adapter_config.json").is_file():
        return None
    named = read_json(Path(name, "adapter_config.json")).get("base_model_name_or_path")
    return named if can_be_path(named) and named.endswith(".gguf") else None


def _find(name: str, gguf_file: Any = None, revision: str | None = None, hub: Hub | None = None) -> Path | None:
    """The GGUF file that a name stands for; None if it stands for something else."""
    path = Path(name)
    if path.exists():
        require_no_revision(name, revision)
    if gguf_file is not None:
        if not isinstance(gguf_file, str) or not gguf_file or os.path.isabs(gguf_file) or ".." in Path(gguf_file).parts:
            raise InvalidInputError(f"gguf_file must be the name of a file in the folder, got {gguf_file!r}.")
        if path.is_file():
            raise InvalidInputError(f"gguf_file must be left out with {name!r}, which is a file, got {gguf_file!r}.")
        if not path.is_dir():
            return _download(name, gguf_file, revision, hub or Hub())
        if not os.path.lexists(path / gguf_file):
            raise ModelNotFoundError(f"There is no file {gguf_file!r} in {name!r}.")
        return require_file(path, gguf_file)
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if path.suffix == ".gguf" and not path.is_dir():
        raise ModelNotFoundError(f"There is no file {name!r}.")
    if not path.is_dir() or (path / "adapter_config.json").is_file() or weight_files(path):
        return None
    found = sorted(file.name for file in path.glob("*.gguf"))
    if len(found) > 1:
        raise InvalidCheckpointError(
            f"{name} holds {len(found)} GGUF files: {', '.join(found)}. Give one of them: {str(path / found[0])!r}."
        )
    return require_file(path, found[0]) if found else None


def _download(name: str, gguf_file: str, revision: str | None, hub: Hub) -> Path:
    from huggingface_hub import hf_hub_download

    repository, _, pinned = name.partition("@")
    try:
        return Path(
            hf_hub_download(
                repository,
                gguf_file,
                revision=revision or pinned or None,
                local_files_only=hub.local_files_only,
                cache_dir=None if hub.cache_folder is None else str(hub.cache_folder),
                token=hub.token,
            )
        )
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"{name!r} is no folder here, and {gguf_file!r} could not be read from the hub or its cache: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _read(path: Path) -> GGUFReader:
    """The keys and tensors of a file, none of them loaded; damaged files, parts and strangers are found here."""
    require_sane_gguf(path)
    try:
        from gguf import GGUFReader

        if find_spec("accelerate") is None:  # which transformers asks for
            raise ImportError("accelerate")
    except ImportError as error:
        raise MissingExtraError("Reading GGUF files needs the extra: pip install 'st-llm2vec[gguf]'.") from error
    try:
        reader = GGUFReader(path)
        ends = [tensor.data_offset + tensor.n_bytes for tensor in reader.tensors]
    except Exception as error:  # whatever numpy says of the bytes where the file ends
        raise InvalidCheckpointError(f"{path} is damaged or cut off ({error}). Download it again.") from error
    if not ends:
        raise InvalidCheckpointError(f"{path} holds no tensors. Download it again.")
    places = sorted((tensor.data_offset, tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors)
    if any(start < end for (_, end), (start, _) in pairwise(places)):
        raise InvalidCheckpointError(f"{path} is damaged: tensors share their bytes. Do not use it.")
    if (value_of(reader, "split.count") or 0) > 1:
        raise InvalidCheckpointError(
            f"{path} is one of {value_of(reader, 'split.count')} parts of a model. Put them together with llama.cpp: "
            f"llama-gguf-split --merge {path.name} whole.gguf"
        )
    return reader


def write_folder(reader: GGUFReader, path: Path, folder: Path, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Writes what the file holds as `save_pretrained` of transformers would, head included.

    Returns:
        The file's name, and which of its tensors were dequantized from what.
    """
    from transformers import AutoModelForCausalLM

    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    config = config_of(reader, path)
    tokenizer = tokenizer_of(reader, path)  # what cannot be read exactly is said before the long part
    needed = sum(int(tensor.n_elements) for tensor in reader.tensors) * (dtype or torch.float32).itemsize
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 1e9:.1f} GB are needed in {folder.parent} for dequantized weights, and {free / 1e9:.1f} GB are "
            "free. Set TMPDIR to a folder with more room",
        )
    with torch.device("meta"):  # before memory is taken for what the config says and the file does not hold
        _require_as_many(reader, path, AutoModelForCausalLM.from_config(config))
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=dtype or torch.float32, output_loading_info=True
        )
    except (ImportError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidCheckpointError(f"transformers cannot read {path}: {error}") from error
    _require_all_read(reader, path, model, sorted(info["missing_keys"]))
    model.config.__dict__.pop("quantization_config", None)
    weights = model.state_dict()
    if (
        dtype is None
        and (own := _float_type(types))
        and all(torch.equal(w.to(own).float(), w) for w in weights.values())
    ):
        weights = {name: weight.to(own) for name, weight in weights.items()}
    with torch.device("meta"):  # a model that was loaded quantized does not save itself
        whole = type(model)(model.config)
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if re.fullmatch(r"[\w.-]+", license_name := str(value_of(reader, "general.license") or "")):
        (folder / "README.md").write_text(f"---\nlicense: {license_name}\n---\n", encoding="utf-8")
    quantized = {name: n for name, n in types.items() if name not in _PLAIN}
    return {"file": path.name, "dequantized_from": quantized, "dtype": str(whole.dtype).removeprefix("torch.")}


def _float_type(types: Iterable[str]) -> torch.dtype | None:
    """The float type of a file without quantized weights; norms are float32 in all of them."""
    own = {_PLAIN.get(name) for name in types} - {torch.float32}
    return own.pop() if len(own) == 1 else None


def _require_all_read(reader: GGUFReader, path: Path, model: nn.Module, missing: list[str]) -> None:
    """Raises where a weight of the model is not in the file, or numbers of the file are not in the model."""
    if missing:
        raise InvalidCheckpointError(f"{path} lacks {len(missing)} weights, {missing[0]!r} first. Download it again.")
    _require_as_many(reader, path, model)


def _require_as_many(reader: GGUFReader, path: Path, model: nn.Module) -> None:
    held = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name != ROTARY)
    read = sum(parameter.numel() for parameter in model.parameters())
    if held != read:
        raise unsupported(path, f"it holds {held:,} weights, and {type(model).__name__} has {read:,}")
