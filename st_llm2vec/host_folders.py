"""What a folder that sentence-transformers wrote says of its encoder, read from the host's own files.

`load` reads a saved encoder here, so that it gives the vectors that `SentenceTransformer` gives, or says why it cannot.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import import_module_class
from torch import nn
from transformers import AutoProcessor

from .checkpoints import SETTINGS_FILE, weight_files
from .errors import InvalidCheckpointError, InvalidInputError
from .modules import MODULE_CLASSES, TEXT_ONLY, LLM2VecTransformer
from .pooling import LLM2VecPooling
from .settings import KEPT, OUR_POOLING_MODES, EncoderSettings
from .templates import Template
from .vetting import read_json

# Modules that may follow the pooling; they see its vector only.
FURTHER: tuple[type[nn.Module], ...] = (Normalize, Dense)
# Arguments of the host's Transformer that ours takes as they are, and the values of others that mean nothing is asked.
_PASSED_ON = ("query_length", "document_length")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "modality_config": (TEXT_ONLY,),
    "module_output_name": ("token_embeddings",),
    "unpad_inputs": (None, True, False),
    "do_lower_case": (None, False),
}
_READ = ("max_seq_length", *KEPT)
# Arguments of SentenceTransformer that config_sentence_transformers.json holds.
_OF_MODEL = ("default_prompt_name", "similarity_fn_name", "truncate_dim")
_PROBES = ("a", " The quick brown fox jumps over the lazy dog.\n", "naïve café 编码器", "lazy dog " * 600)
_PROBE_PROMPTS = ("", "Find what answers:", "query: ")


@dataclass(frozen=True)
class HostFolder:
    """An encoder's folder: its settings, and what the host's classes are made of besides."""

    folder: Path
    settings: EncoderSettings
    transformer: dict[str, Any]
    model: dict[str, Any]
    further: tuple[tuple[type[Any], str], ...]
    is_ours: bool
    """Whether it was written by us, so that the plugin opens it in our classes."""

    def further_modules(self) -> list[nn.Module]:
        """The modules after the pooling."""
        return [kind.load(str(self.folder), subfolder=path) for kind, path in self.further]


def read_host_folder(folder: Path) -> HostFolder | None:
    """Read the host's files in a folder; None if sentence-transformers did not write it.

    Raises:
        InvalidInputError: `load` would give other vectors than `SentenceTransformer`.
        InvalidCheckpointError: A file that cannot be understood.
    """
    named = read_json(folder / "modules.json", list)
    if not named:
        return None
    try:
        parts = [(_class_of(str(module["type"]), folder), str(module["path"])) for module in named]
    except (KeyError, TypeError) as error:
        raise InvalidCheckpointError(f"{folder / 'modules.json'} lacks a module's {error}.") from error
    if len(parts) < 2:
        raise _refused(folder, "no pooling after its Transformer")
    first, second, further = *parts[:2], tuple(parts[2:])
    expected = (Transformer, Pooling, *[FURTHER] * len(further))
    for (kind, path), wanted in zip(parts, expected, strict=False):
        if not issubclass(kind, wanted):
            raise _refused(folder, f"a {kind.__name__} where load() expects Transformer, Pooling, Normalize or Dense")
        if kind is Dense and not weight_files(folder / path):
            raise _refused(folder, f"a Dense in {path} without model.safetensors")
    read = _transformer_config(folder, first[1])
    if issubclass(first[0], LLM2VecTransformer):  # saved without settings that are at their defaults
        read = {"attention": "bidirectional", **read}
    pooling = Pooling.load_config(str(folder), subfolder=second[1])
    model = read_json(folder / "config_sentence_transformers.json")
    if (kind_of_model := model.get("model_type") or "SentenceTransformer") != "SentenceTransformer":
        raise _refused(folder, f"a {kind_of_model}")
    stated = {
        "pooling_mode": _pooling_mode(pooling.get("pooling_mode", "mean"), folder),
        "include_prompt": pooling.get("include_prompt", not issubclass(second[0], LLM2VecPooling)),
        "prompts": {name: prompt or "" for name, prompt in (model.get("prompts") or {}).items()},
        **{name: read.get(name) for name in _READ},
        "template": read.get("template") or Template(),
    }
    return HostFolder(
        folder=folder,
        settings=EncoderSettings.from_file(stated, folder),
        transformer={name: read[name] for name in _PASSED_ON if name in read},
        model={name: model[name] for name in _OF_MODEL if model.get(name) is not None},
        further=further,
        is_ours=(folder / SETTINGS_FILE).is_file() or issubclass(second[0], LLM2VecPooling),
    )


def require_same_tokens(
    host: HostFolder, transformer: LLM2VecTransformer, pooling: LLM2VecPooling, prompts: dict[str, str]
) -> None:
    """Check that our modules read and pool what the host's own classes do, on probe texts and random hidden states.

    The tokenizer becomes the one that the host reads, which for some types is not the stored one.

    Raises:
        InvalidInputError: Some probe is read or pooled in another way.
    """
    length = {} if host.settings.max_seq_length is None else {"model_max_length": host.settings.max_seq_length}
    stored, theirs = transformer.tokenizer, AutoProcessor.from_pretrained(str(host.folder), **length)
    theirs = getattr(theirs, "tokenizer", theirs)
    theirs.model_max_length, theirs.padding_side = stored.model_max_length, "right"
    theirs.pad_token = theirs.pad_token or stored.pad_token
    transformer.processor = theirs
    stock = copy.copy(transformer)
    stock.__class__ = Transformer
    stock_pooling = Pooling(8, pooling.pooling_mode, pooling.include_prompt)
    our_pooling = LLM2VecPooling(8, str(pooling.pooling_mode), pooling.include_prompt)
    our_pooling.on_model_ready([transformer])
    generator = torch.Generator().manual_seed(0)
    for prompt in {*_PROBE_PROMPTS, *prompts.values()}:
        ours, others = (module.preprocess(list(_PROBES), prompt=prompt) for module in (transformer, stock))
        same = torch.equal(ours["input_ids"], others["input_ids"])
        if same:
            tokens = torch.randn((*ours["input_ids"].shape, 8), generator=generator)
            a, b = (
                module({**features, "token_embeddings": tokens})["sentence_embedding"]
                for module, features in ((our_pooling, ours), (stock_pooling, others))
            )
            # Where a text's only token begins in the prompt, the host has nothing left and gives zeros.
            left = b.abs().sum(1) > 0
            same = torch.allclose(a[left], b[left], atol=1e-5)
        if not same:
            how = f"{pooling.pooling_mode!r} pooling with include_prompt={pooling.include_prompt}"
            raise _refused(host.folder, f"{how}, which takes other tokens there than here after the prompt {prompt!r}")


def _class_of(reference: str, folder: Path) -> type[Any]:
    if reference in MODULE_CLASSES:
        return MODULE_CLASSES[reference]
    found: Any = None
    if reference.startswith("sentence_transformers."):
        try:
            found = import_module_class(reference)
        except (ImportError, AttributeError) as error:
            raise _refused(folder, f"a module {reference!r} that sentence-transformers does not have") from error
    if not isinstance(found, type):
        raise _refused(folder, f"a module {reference!r}, which is not one of sentence-transformers' own")
    return found


def _transformer_config(folder: Path, path: str) -> dict[str, Any]:
    config: dict[str, Any] = Transformer.load_config(str(folder), subfolder=path)
    for name, value in config.items():
        known = name in (*_PASSED_ON, *_READ) or value in _NEUTRAL.get(name, (None, {}))
        if not known:
            raise _refused(folder, f"{name}={value!r} for its Transformer")
    return config


def _pooling_mode(mode: Any, folder: Path) -> str:
    modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) != 1 or modes[0] not in OUR_POOLING_MODES:
        known = ", ".join(OUR_POOLING_MODES)
        raise _refused(folder, f"pooling_mode {'+'.join(map(str, modes))!r}, and load() knows {known}")
    return OUR_POOLING_MODES[modes[0]]


def _refused(folder: Path, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{folder} has {what}: load() would give other vectors than sentence-transformers does. Open it with "
        "SentenceTransformer(...) after `import st_llm2vec`."
    )
