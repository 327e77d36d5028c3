"""A name becomes an encoder: `load`, and `convert`, which writes it to a folder in the memory of one shard."""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from . import aliases, kernels
from .bidirectional import refuse_encoders
from .checkpoints import NOT_SAVED, Checkpoint, read_json, resolve
from .equivalence import PROBES as PROBE_TEXTS
from .equivalence import SHORT_PROBES, off
from .errors import InvalidCheckpointError, InvalidInputError, ModelNotFoundError, UnsupportedArchitectureError
from .merging import Sample, merge_adapters, merge_to_folder, published, require_merged
from .model import LLM2Vec
from .modules import DEFAULT_MAX_SEQ_LENGTH, POOLING_MODES, LLM2VecPooling, LLM2VecTransformer
from .saving import PROBES, portable_copy, write_folder
from .templates import CHAT, Template, choose_template, own_template, with_eos

log = logging.getLogger(__name__)


def load(
    name: str,
    *,
    adapter: str | None = None,
    base: str | None = None,
    pooling_mode: str | None = None,
    template: str | Template | None = None,
    max_seq_length: int | None = None,
    document_max_length: int | None = None,
    include_prompt: bool | None = None,
    attention: str | None = None,
    dtype: torch.dtype | str | None = None,
    quantize: str | None = None,
    packing: bool = True,
    compile: bool = False,
    device: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> LLM2Vec:
    """A text encoder from any decoder: bidirectional, and proven so.

    Args:
        name: An alias ("llm2vec-tiny"), a folder that `save_pretrained` wrote, or a folder or hub id of a decoder or
            of an LLM2Vec checkpoint.
        adapter: A second LoRA adapter on top (SimCSE or supervised), merged after the one in `name`.
        base: What an adapter-only `name` belongs on.
        pooling_mode: "mean" (default), "weighted_mean", "last_token", "eos_token" or "bos_token".
        template: Name in `prompts.TEMPLATES`, "chat" (the user's turn of the tokenizer's own chat template) or a
            `Template`; None takes what the checkpoint is known for, else none.
        max_seq_length: Tokens at most, all included; default 512, or the decoder's positions if they are fewer.
        document_max_length: Cut the text alone first, word by word; default: what the checkpoint says, else 400 for
            adapters on a decoder, as LLM2Vec publishes them, and no cut for others.
        include_prompt: Pool BOS, template and prompt, too; default False.
        attention: "bidirectional" or "causal" (the ordinary decoder); default: as it was saved, else bidirectional.
        dtype: On a CPU, one that is given also lays the weights out for the processor (`kernels.prepack`). Default
            float32 on a CPU, the checkpoint's own elsewhere and where its weights are int8.
        quantize: "int8" rounds the weights, on a CPU, if the vectors stay close to those of float32
            (`kernels.quantize`); the rest is in `dtype`, by default bfloat16 where the processor has it.
        packing: Run texts without padding where that is proven to give the same vectors; False pads every batch.
        compile: Compile the layers, for packed texts, with `torch.compile` (`compilation.compile_layers`): faster, the
            same vectors; loading takes seconds longer, and on a CPU needs a C++ compiler. Said where it cannot be done.
        device: "cpu", "cuda", "mps"; default: the best there is.
        model_kwargs: As for `SentenceTransformer`: device_map, attn_implementation, quantization_config, ...
        revision: Branch, tag or commit of `name` on the hub.
        local_files_only: Touch no network.

    Raises:
        ModelNotFoundError, InvalidCheckpointError, UnsupportedArchitectureError, StillCausalError, InvalidInputError.
    """
    if not isinstance(name, str | os.PathLike):
        raise InvalidInputError(f"load takes a name or a folder, and was given {type(name).__name__}.")
    name = alias_folder(os.fspath(name), revision, local_files_only) or os.fspath(name)
    asked = {
        "pooling_mode": pooling_mode,
        "template": template,
        "max_seq_length": max_seq_length,
        "document_max_length": document_max_length,
        "include_prompt": include_prompt,
        "attention": attention,
    }
    checkpoint = resolve(name, adapter=adapter, base=base, revision=revision, local_files_only=local_files_only)
    if quantize not in (None, "int8"):
        raise InvalidInputError(f"quantize={quantize!r} is not known. The only kind is 'int8'.")
    rest = dtype  # of what is not quantized
    if quantize:
        device, dtype = device or "cpu", torch.float32
    model = _build(checkpoint, asked, dtype=dtype, device=device, model_kwargs=model_kwargs)
    model[0].packing = packing
    if quantize or (rest is not None and model.device.type == "cpu"):
        _use_kernels(model.eval(), quantize, rest)
    if compile:
        model[0].compiles = True
        model.encode(PROBES, show_progress_bar=False)
        if not (compiled := model[0].status["compiled"]):
            reason = compiled.reason or model[0].status["packed"].reason
            log.warning("compile=True was left out: %s. The vectors are the same, encoding takes longer.", reason)
    return model


def convert(
    name: str,
    folder: str | os.PathLike[str],
    *,
    adapter: str | None = None,
    base: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    provenance: dict[str, Any] | None = None,
    **settings: Any,
) -> LLM2Vec:
    """As `load(...).save_pretrained(folder)`, in the memory of one shard: reads, merges and writes file by file.

    Before the folder appears, its encoder is opened and compared with the decoder without adapters on probe texts.

    Args:
        name: A folder or hub id, as for `load`, but no alias.
        adapter, base, revision, local_files_only: As for `load`.
        folder: Folder to write; it appears complete or not at all.
        dtype: Of the weights; default: as they are stored.
        device: Where the probe texts run; default: the CPU.
        provenance: What llm2vec_config.json shall say of the encoder's origin besides decoder, adapters and commits.
        **settings: `prompts`, and `pooling_mode`, `template`, ... as for `load`.

    Returns:
        The encoder in the folder.

    Raises:
        As `load`; also OSError where the disk is full.
    """
    dtype = _dtype(dtype)
    checkpoint = resolve(name, adapter=adapter, base=base, revision=revision, local_files_only=local_files_only)
    options: dict[str, Any] = {"asked": settings, "dtype": "auto", "device": device or "cpu"}
    before = None
    if checkpoint.adapters:
        before = _probe(_build(replace(checkpoint, adapters=()), **options))
    with published(Path(folder)) as new, tempfile.TemporaryDirectory(dir=new) as temporary:
        merged = Path(temporary)
        model = _build(checkpoint, **options, merged=(merged, merge_to_folder(checkpoint, merged, dtype=dtype)))
        after = _probe(model)
        if before is not None and np.allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max()):
            raise InvalidCheckpointError(f"Merging {name!r} changes no vector: the adapters are without effect.")
        model.provenance |= provenance or {}
        write_folder(model, new, portable_copy(model), with_weights=False)
        for file in merged.glob("*.safetensors*"):  # the model goes on reading them under their new names
            os.replace(file, new / file.name)
    model[0].model.name_or_path = os.fspath(folder)
    return model


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(found, torch.dtype):
        raise InvalidInputError(f"dtype={dtype!r} is not known. Use float32, bfloat16 or float16.")
    return found


def _probe(model: LLM2Vec) -> np.ndarray:
    vectors: np.ndarray = model.encode(PROBES, show_progress_bar=False)
    if not np.isfinite(vectors).all():
        raise InvalidCheckpointError("Vectors of probe texts are not finite; the weights are damaged.")
    return vectors


def _build(
    checkpoint: Checkpoint,
    asked: dict[str, Any],
    *,
    dtype: torch.dtype | str | None,
    device: str | None,
    model_kwargs: dict[str, Any] | None = None,
    merged: tuple[Path, Sample] | None = None,
) -> LLM2Vec:
    """The encoder of a checkpoint, its adapters merged here, or in the folder `merged` already."""
    folder, sample = merged or (checkpoint.decoder, None)
    model_kwargs = model_kwargs or {}
    if model_kwargs.get("quantization_config") and checkpoint.adapters and not merged:
        raise InvalidInputError(
            "Adapters cannot be merged into quantized weights. Merge first, `st-llm2vec convert ... FOLDER`, then load "
            "that folder quantized."
        )
    _require_two_modules(checkpoint.decoder)
    config = _read_config(folder)
    settings = _settle(checkpoint, config, asked)
    stored = getattr(config, "quantization_config", None)
    if dtype is None:
        on_cpu = device == "cpu" or (device is None and not torch.accelerator.is_available())
        dtype = torch.float32 if on_cpu and not stored else "auto"
    transformer = LLM2VecTransformer(
        str(folder),
        attention="causal",  # adapters first: the audit is of what will run
        document_max_length=settings["document_max_length"],
        tokenizer_folder=str(checkpoint.tokenizer),
        model_kwargs={"dtype": dtype, "use_safetensors": True, **model_kwargs},
        processor_kwargs={"model_max_length": settings["max_seq_length"]},
    )
    if settings["template"] == CHAT:
        settings["template"] = own_template(transformer.tokenizer)
    transformer.text_template = settings["template"]
    if settings["pooling_mode"] == "eos_token":
        eos = transformer.tokenizer.eos_token
        transformer.text_template = with_eos(settings["template"], checkpoint.original_name, config.model_type, eos)
    if checkpoint.adapters and sample is None:
        sample = merge_adapters(transformer.model, checkpoint.adapters)
        # A next stage's adapter names its base. On the raw decoder, that would lose these stages without a word.
        transformer.model.name_or_path = f"{checkpoint.adapters[-1].name}{NOT_SAVED}"
    transformer.attention = settings["attention"]
    require_merged(transformer.model, sample or {})
    mode = POOLING_MODES[settings["pooling_mode"]]
    pooling = LLM2VecPooling(transformer.get_embedding_dimension(), mode, settings["include_prompt"])
    if model_kwargs.keys() & {"device_map", "quantization_config"}:
        device = str(transformer.model.device)  # the weights are where they were asked to be
    model = LLM2Vec(modules=[transformer, pooling], device=device, prompts=settings["prompts"])
    model.provenance = settings.get("provenance") or {
        "base_model": checkpoint.original_name or checkpoint.sources[0]["name"],
        "checkpoints": list(checkpoint.sources),
        "license": _license(checkpoint.decoder),
    }
    model.model_card_data.license = model.provenance.get("license")
    return model


def _use_kernels(model: LLM2Vec, quantize: str | None, dtype: torch.dtype | str | None) -> None:
    """Lays the weights out for the processor, in int8 on request; what it cannot do is said."""
    decoder = model[0].model
    if quantize and (model.device.type != "cpu" or getattr(decoder, "is_quantized", False)):
        what = f"on {model.device}" if model.device.type != "cpu" else "int8 already, or quantized in another way"
        raise InvalidInputError(f"quantize={quantize!r} is for float weights on a CPU; these are {what}. Leave it out.")
    if quantize and not (missing := kernels.lacks("int8")):
        probes: dict[str, Any] = {"prompt": "", "convert_to_tensor": True, "show_progress_bar": False}
        model[0].status["quantized"] = kernels.quantize(
            decoder, lambda: model.encode(PROBE_TEXTS + SHORT_PROBES, **probes), dtype=_dtype(dtype)
        )
        return
    if quantize:
        log.warning("quantize='int8' was left out, as this is %s; the model encodes in float32.", missing)
        model[0].status["quantized"] = off(missing)
    if not kernels.lacks("bfloat16"):
        kernels.keep_residual_in_float32(decoder)
    status = model[0].status["prepacked"] = kernels.prepack(decoder, model.tokenizer)
    if status.reason and status.reason == kernels.lacks("bfloat16") and decoder.dtype == torch.bfloat16:
        log.warning("bfloat16 is slower than float32 here, as this is %s. dtype='float32' is faster.", status.reason)
    elif not status:
        log.info("The linear layers run without prepacked weights: %s.", status.reason)


def alias_folder(name: str, revision: str | None = None, local_files_only: bool = False) -> str | None:
    """The folder of an alias, made from what it stands for at its first use; None if `name` is no alias.

    Raises:
        ModelNotFoundError: Not kept yet, and what it stands for cannot be reached.
        CacheError, and what `load` raises.
    """
    alias = aliases.find(name)
    if alias is None:
        return None
    if revision is not None:
        raise InvalidInputError(
            f"revision={revision!r} was given for the alias {name!r}, which stands for {alias}. Give an alias with "
            f"that revision a name of its own: st_llm2vec.register_alias(..., revision={revision!r})."
        )
    return str(aliases.folder_of(name, alias, lambda folder: write_alias(name, alias, folder, local_files_only)))


def write_alias(name: str, alias: aliases.Alias, folder: Path, local_files_only: bool = False) -> None:
    """Merges what an alias stands for, in the dtype of its decoder, and writes the portable folder."""
    try:
        convert(
            alias.model,
            folder,
            adapter=alias.adapter,
            base=alias.base,
            revision=alias.revision,
            local_files_only=local_files_only,
            provenance={"alias": name},
            prompts=dict(alias.prompts),
            **alias.settings,
        )
    except ModelNotFoundError as error:
        answered = getattr(error.__cause__, "response", None) is not None
        hint = (
            f" Run this where there is a network: st-llm2vec convert {name} -o {name}; in the working directory, "
            "the folder that it writes is opened under this name."
        )
        raise ModelNotFoundError(
            f"{name!r} stands for {alias}, and has not been made yet. {error}{'' if answered else hint}"
        ) from error


def _settle(checkpoint: Checkpoint, config: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Every setting of `load`: what was asked for, else what the checkpoint says, else the default; all checked."""
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or math.inf
    settings: dict[str, Any] = {
        "pooling_mode": "mean",
        "template": None,
        "max_seq_length": min(DEFAULT_MAX_SEQ_LENGTH, limit),
        # LLM2Vec's own checkpoints are adapters, evaluated with this cut (section 3.10); ours say what they do.
        "document_max_length": 400 if checkpoint.adapters and "format" not in checkpoint.settings else None,
        "include_prompt": False,
        "attention": "bidirectional",
        "prompts": None,
    }
    for given in (checkpoint.settings, asked):
        settings |= {key: value for key, value in given.items() if value is not None}
    if settings["pooling_mode"] not in POOLING_MODES:
        raise InvalidInputError(
            f"pooling_mode={settings['pooling_mode']!r} is not known. Use one of {sorted(POOLING_MODES)}."
        )
    for key in ("max_seq_length", "document_max_length"):
        value = settings[key]
        if value is not None and not 1 <= value <= (limit if key == "max_seq_length" else math.inf):
            raise InvalidInputError(
                f"{key}={value!r} cannot be used: {checkpoint.decoder.name!r} takes 1 to {limit} tokens."
            )
    if isinstance(settings["template"], dict):  # as we saved it
        settings["template"] = Template(**settings["template"])
    names = [checkpoint.original_name, *(source["name"] for source in checkpoint.sources)]
    if settings["template"] != CHAT:
        settings["template"] = choose_template(settings["template"], *names)
    return settings


def _require_two_modules(folder: Path) -> None:
    if extra := read_json(folder / "modules.json", list)[2:]:
        raise InvalidInputError(
            f"{folder} has modules after its pooling ({', '.join(module['type'] for module in extra)}), which load() "
            "would leave out. Open it with SentenceTransformer(...) after `import st_llm2vec`."
        )


def _read_config(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidCheckpointError(
            f"{folder} has no config.json that transformers can read without running the checkpoint's own code: {error}"
        ) from error
    refuse_encoders(config)
    if not getattr(config.get_text_config(decoder=True), "num_hidden_layers", None):
        raise UnsupportedArchitectureError(f"model_type {config.model_type!r} has no layers of attention to open.")
    return config


def _license(folder: Path) -> str | None:
    """The licence that the decoder's model card states."""
    card = folder / "README.md"
    found = re.search(r"^license:\s*(\S+)\s*$", card.read_text(encoding="utf-8"), re.M) if card.is_file() else None
    return found.group(1) if found else None
