"""A name becomes an encoder: `load`, and `convert`, which writes it to a folder in the memory of one shard."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import aliases, gguf_files
from .backend.accelerating import accelerate
from .checkpoints import NOT_SAVED, Checkpoint, resolve
from .errors import InvalidCheckpointError, InvalidInputError, LLM2VecError, ModelNotFoundError
from .host_folders import require_same_tokens
from .hub import Hub
from .merging import Sample, merge_adapters, merge_to_folder, published_weights, require_merged
from .model import LLM2Vec
from .modules import LLM2VecTransformer
from .planning import Plan, plan_encoder, read_config, template_of
from .pooling import LLM2VecPooling
from .runtime import AUTO, Runtime, as_torch_dtype
from .saving import PROBES, portable_copy, write_folder
from .settings import KEPT, POOLING_MODES, EncoderSettings
from .templates import Template
from .vetting import can_be_path, opening

log = logging.getLogger(__name__)


def load(
    name: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    pooling_mode: str | None = None,
    template: str | Template | None = None,
    max_seq_length: int | None = None,
    document_max_length: int | None = None,
    include_prompt: bool | None = None,
    attention: str | None = None,
    prompts: Mapping[str, str] | None = None,
    dtype: torch.dtype | str | None = None,
    quantize: str | None = None,
    packing: bool = True,
    compile: bool = False,
    device: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_folder: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> LLM2Vec:
    """Load a text encoder from any decoder: bidirectional, and proven so.

    A folder that sentence-transformers wrote is opened as it was saved, attention included.

    Args:
        name: An alias ("llm2vec-tiny"), a folder that `save_pretrained` wrote, a folder or hub id of a decoder or of
            an LLM2Vec checkpoint, or a GGUF file (`gguf_files`), which is dequantized.
        adapter: A second LoRA adapter on top (SimCSE or supervised), merged after the one in `name`.
        base: What an adapter-only `name` belongs on.
        pooling_mode: "mean" (default), "weighted_mean", "last_token", "eos_token" or "bos_token"; the names that
            sentence-transformers has for them are understood.
        template: Name in `templates.TEMPLATES`, "chat" (the user's turn of the tokenizer's own chat template) or a
            `Template`; None takes what the checkpoint is known for, else none.
        max_seq_length: Tokens at most, all included; default 512, or the decoder's positions if they are fewer.
        document_max_length: Cut the text alone first, word by word; default: what the checkpoint says, else 400 for
            adapters on a decoder, as LLM2Vec publishes them, and no cut for others.
        include_prompt: Pool BOS, template and prompt, too; default False.
        attention: "bidirectional" or "causal" (the ordinary decoder); default: as it was saved, else bidirectional.
        prompts: Texts to put before others, by name; "query" and "document" are those of `encode_query` and
            `encode_document`. Default: those that were saved.
        dtype: On a CPU, one that is given also prepacks the weights for the processor. Default float32
            on a CPU, the checkpoint's own elsewhere and where its weights are int8.
        quantize: "int8" rounds the weights, on a CPU, if the vectors stay close to those of float32; the
            rest, which may be the first layers, is in `dtype`, by default float32.
        packing: Run texts without padding where that is proven to give the same vectors; False pads every batch.
        compile: Compile the layers, for packed texts, with `torch.compile` (`compilation.compile_layers`): faster, the
            same vectors; loading takes seconds longer, and on a CPU needs a C++ compiler. Said where it cannot be done.
        device: "cpu", "cuda", "mps"; default: the best there is.
        model_kwargs: As for `SentenceTransformer`: device_map, attn_implementation, quantization_config, ...;
            "gguf_file" names a GGUF file in the folder or repository `name`.
        revision: Branch, tag or commit of `name` on the hub.
        local_files_only: Touch no network.
        cache_folder: Where downloads are kept; default: the hub's own cache.
        token: For private and gated repositories; default: the one that `hf auth login` stored.

    Raises:
        InvalidInputError: A setting of the wrong type, or one that is not known; before anything is fetched.
        ModelNotFoundError, InvalidCheckpointError, UnsupportedArchitectureError, StillCausalError.

    Example:
        >>> model = st_llm2vec.load("llm2vec-tiny", max_seq_length=128)
        >>> model.encode("how bears sleep").shape
        (256,)
    """
    asked = EncoderSettings(
        pooling_mode, template, max_seq_length, document_max_length, include_prompt, attention, prompts
    )
    runtime = Runtime(dtype, quantize, packing, compile, device, {} if model_kwargs is None else model_kwargs)
    place = _path("name", name, required=True)
    stages = {"adapter": _path("adapter", adapter), "base": _path("base", base)}
    hub = Hub(cache_folder, token, local_files_only)
    revision = _path("revision", revision)
    named = alias_folder(place, revision, hub) or place
    with gguf_files.opened(named, stages["base"], revision, hub, runtime) as opened:
        stages["base"] = opened.base
        revision = revision if opened.name == named else None  # a file of that revision was opened
        checkpoint = resolve(opened.name, **stages, revision=revision, **vars(hub))
        with opening(checkpoint.decoder):
            model = _build(checkpoint, asked, opened.runtime)
        opened.label(model)
    return accelerate(model, runtime)


def convert(
    name: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_folder: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    provenance: dict[str, Any] | None = None,
    **settings: Any,
) -> LLM2Vec:
    """As `load(...).save_pretrained(folder)`, in the memory of one shard: reads, merges and writes file by file.

    Before the folder appears, its encoder is opened and compared with the decoder without adapters on probe texts.

    Args:
        name: A folder, hub id or GGUF file, as for `load`, but no alias.
        adapter, base, revision, local_files_only, cache_folder, token: As for `load`.
        folder: Folder to write; it appears complete or not at all.
        dtype: Of the weights; default: as they are stored.
        device: Where the probe texts run; default: the CPU.
        provenance: What llm2vec_config.json shall say of the encoder's origin besides decoder, adapters and commits.
        **settings: `prompts`, and `pooling_mode`, `template`, ... as for `load`.

    Raises:
        As `load`; also OSError where the disk is full.
    """
    asked = EncoderSettings.of(settings)
    folder = _path("folder", folder, required=True)
    runtime = Runtime(dtype=as_torch_dtype(dtype), device=device or "cpu")
    place = _path("name", name, required=True)
    stages = {"adapter": _path("adapter", adapter), "base": _path("base", base)}
    hub = Hub(cache_folder, token, local_files_only)
    revision, named = _path("revision", revision), place
    with gguf_files.opened(named, stages["base"], revision, hub, runtime) as opened:
        stages["base"] = opened.base
        revision = revision if opened.name == named else None  # a file of that revision was opened
        checkpoint = resolve(opened.name, **stages, revision=revision, **vars(hub))
        told = opened.provenance | (provenance or {})
        return _convert(checkpoint, place, Path(folder), asked, runtime, told)


def _convert(
    checkpoint: Checkpoint, name: str, folder: Path, asked: EncoderSettings, written: Runtime, told: dict[str, Any]
) -> LLM2Vec:
    runtime = replace(written, dtype=AUTO)
    before = None
    if checkpoint.adapters:
        with opening(checkpoint.decoder):
            before = _probe(_build(replace(checkpoint, adapters=()), asked, runtime))
    with published_weights(folder) as new, tempfile.TemporaryDirectory(dir=new) as temporary:
        merged = Path(temporary)
        with opening(checkpoint.decoder):
            sample = merge_to_folder(checkpoint, merged, dtype=as_torch_dtype(written.dtype))
            model = _build(checkpoint, asked, runtime, merged=(merged, sample))
        after = _probe(model)
        if before is not None and np.allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max()):
            raise InvalidCheckpointError(f"Merging {name!r} changes no vector: the adapters are without effect.")
        model.provenance |= told
        write_folder(model, new, portable_copy(model), with_weights=False)
        for file in merged.glob("*.safetensors*"):  # the model goes on reading them under their new names
            os.replace(file, new / file.name)
    model[0].model.name_or_path = os.fspath(folder)
    return model


def alias_folder(name: str, revision: str | None = None, hub: Hub | None = None) -> str | None:
    """Return the folder of an alias, made from what it stands for at its first use; None if `name` is no alias.

    Raises:
        ModelNotFoundError: Not kept yet, and what it stands for cannot be reached.
        CacheError, and what `load` raises.
    """
    alias = aliases.find(name)
    if alias is None:
        return None
    if revision is not None:
        raise InvalidInputError(
            f"revision must be left out for {name!r}, which stands for {alias}, got {revision!r}. Give that revision a "
            f"name of its own: st_llm2vec.register_alias(..., revision={revision!r})."
        )
    return str(aliases.folder_of(name, alias, lambda folder: write_alias(name, alias, folder, hub)))


def write_alias(name: str, alias: aliases.Alias, folder: Path, hub: Hub | None = None) -> None:
    """Merge what an alias stands for, in the dtype of its decoder, and write the portable folder."""
    try:
        convert(
            alias.model,
            folder,
            adapter=alias.adapter,
            base=alias.base,
            revision=alias.revision,
            provenance={"alias": name},
            prompts=dict(alias.prompts),
            **vars(hub or Hub()),
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


def _build(
    checkpoint: Checkpoint,
    asked: EncoderSettings,
    runtime: Runtime,
    *,
    merged: tuple[Path, Sample] | None = None,
) -> LLM2Vec:
    """The encoder of a checkpoint, its adapters merged here, or in the folder `merged` already."""
    folder, sample = merged or (checkpoint.decoder, None)
    if runtime.model_kwargs.get("quantization_config") and checkpoint.adapters and not merged:
        raise InvalidInputError(
            "model_kwargs['quantization_config'] must be left out where adapters are merged. Merge first, `st-llm2vec "
            "convert ... FOLDER`, then load that folder quantized."
        )
    config = read_config(folder)
    plan = plan_encoder(checkpoint, asked, config)
    settings, host = plan.settings, plan.host
    try:
        transformer = LLM2VecTransformer(
            str(folder),
            # Adapters come before attention, whose audit is of what will run, and the tokenizer before the template.
            **{name: getattr(settings, name) for name in KEPT} | {"attention": None, "template": None},
            tokenizer_folder=str(checkpoint.tokenizer),
            model_kwargs={"dtype": _dtype(runtime, config), "use_safetensors": True, **runtime.model_kwargs},
            processor_kwargs={"model_max_length": settings.max_seq_length} if settings.max_seq_length else {},
            **(host.transformer if host else {}),
        )
    except (TypeError, ValueError, AttributeError, OSError) as error:
        of_files = isinstance(error, LLM2VecError) or getattr(error, "errno", None)
        if not runtime.model_kwargs or of_files:
            raise
        unknown = [name for name in runtime.model_kwargs if f"'{name}'" in str(error)]
        if unknown and isinstance(error, TypeError):
            raise InvalidInputError(
                f"model_kwargs must be arguments that transformers has for model_type {config.model_type!r}, got "
                f"{unknown[0]!r}. Leave it out."
            ) from error
        raise InvalidInputError(
            f"{folder} cannot be opened with model_kwargs={dict(runtime.model_kwargs)!r}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:500]}"
        ) from error
    transformer.text_template = template_of(settings, checkpoint, config, transformer.tokenizer)
    pooling = LLM2VecPooling(
        transformer.get_embedding_dimension(), POOLING_MODES[str(settings.pooling_mode)], bool(settings.include_prompt)
    )
    if plan.proves and host:
        require_same_tokens(host, transformer, pooling, dict(settings.prompts or {}))
    if checkpoint.adapters and sample is None:
        sample = merge_adapters(transformer.model, checkpoint.adapters)
        # A next stage's adapter names its base. On the raw decoder, that would lose these stages without a word.
        transformer.model.name_or_path = f"{checkpoint.adapters[-1].name}{NOT_SAVED}"
    transformer.attention = settings.attention or transformer.attention
    if settings.attention is None and transformer.attention == "causal":
        log.warning("%s is causal, as it was saved; attention='bidirectional' changes that.", checkpoint.folders[0])
    require_merged(transformer.model, sample or {})
    return _assembled(checkpoint, transformer, pooling, plan, runtime)


def _assembled(
    checkpoint: Checkpoint, transformer: LLM2VecTransformer, pooling: LLM2VecPooling, plan: Plan, runtime: Runtime
) -> LLM2Vec:
    """The modules as one encoder, which knows where it comes from."""
    device, host = runtime.device, plan.host
    if runtime.model_kwargs.keys() & {"device_map", "quantization_config"}:
        device = str(transformer.model.device)  # the weights are where they were asked to be
    modules = [transformer, pooling, *(host.further_modules() if host else ())]
    prompts = dict(plan.settings.prompts or {})
    model = LLM2Vec(modules=modules, device=device, prompts=prompts or None, **(host.model if host else {}))
    model.provenance = checkpoint.settings.get("provenance") or {
        "base_model": checkpoint.original_name or checkpoint.sources[0]["name"],
        "checkpoints": list(checkpoint.sources),
        "license": _license(checkpoint.decoder),
    }
    model.model_card_data.license = model.provenance.get("license")
    return model


def _dtype(runtime: Runtime, config: Any) -> torch.dtype | str:
    """The dtype that the weights are read in."""
    if runtime.stored_dtype is not None:
        return runtime.stored_dtype
    on_cpu = runtime.device == "cpu" or (runtime.device is None and not torch.accelerator.is_available())
    return torch.float32 if on_cpu and not getattr(config, "quantization_config", None) else AUTO


def _path(name: str, value: Any, *, required: bool = False) -> Any:
    """A name, folder or revision as a text."""
    if value is None and not required:
        return None
    if not isinstance(value, str | os.PathLike):
        raise InvalidInputError(f"{name} must be a name or a folder, got {value!r} ({type(value).__name__}).")
    path = os.fspath(value)
    if not path:
        raise InvalidInputError(f"{name} must be a name or a folder, got {value!r}.")
    if not can_be_path(path):
        raise InvalidInputError(f"{name} must be a name that a file can have, got {path!r:.80}.")
    return path


def _probe(model: LLM2Vec) -> np.ndarray:
    vectors: np.ndarray = model.encode(PROBES, show_progress_bar=False)
    if not np.isfinite(vectors).all():
        raise InvalidCheckpointError("Vectors of probe texts are not finite; the weights are damaged.")
    return vectors


def _license(folder: Path) -> str | None:
    """The licence that the decoder's model card states."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:  # it comes first, and the rest is prose in any encoding
        found = re.search(r"^license: *([\w.+-]{1,64}) *$", file.read(1 << 16), re.M)
    return found.group(1) if found else None
