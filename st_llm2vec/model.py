"""`load`, and the `LLM2Vec` model: a SentenceTransformer that saves itself in stock classes wherever they suffice."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import batch_to_device, truncate_embeddings
from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import AutoConfig, PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from . import __version__, aliases, kernels
from .bidirectional import needs_module_flags, refuse_encoders
from .checkpoints import SETTINGS_FILE, Checkpoint, read_json, read_settings, require_inside, resolve
from .errors import InvalidCheckpointError, InvalidInputError, ModelNotFoundError, UnsupportedArchitectureError
from .merging import Sample, merge_adapters, merge_to_folder, published, require_adapter, require_merged
from .modules import DEFAULT_MAX_SEQ_LENGTH, POOLING_MODES, LLM2VecPooling, LLM2VecTransformer
from .packing import Row, batches, one_ahead
from .prompts import CHAT, Template, choose_template, own_template, special_counts, with_eos

# A saved folder may name the stock classes; opened by us it gets ours, which give the same numbers there.
MODULE_CLASSES: dict[str, type[nn.Module]] = {
    f"{LLM2VecTransformer.__module__}.LLM2VecTransformer": LLM2VecTransformer,
    f"{LLM2VecPooling.__module__}.LLM2VecPooling": LLM2VecPooling,
}
STOCK_CLASSES: dict[str, type[nn.Module]] = {
    f"{Transformer.__module__}.Transformer": LLM2VecTransformer,
    f"{Pooling.__module__}.Pooling": LLM2VecPooling,
}
# Ends the name of a decoder with merged stages that is in no folder; an adapter on top of it carries that name.
NOT_SAVED = "-merged-but-not-saved"
log = logging.getLogger(__name__)

CHUNK = 8192  # texts that are tokenized at once, ahead of the model
TOKENS_PER_TEXT = 64  # a batch holds batch_size times as many
CPU_TOKENS = 1024  # at most, on a CPU: what a layer makes of more leaves its cache (float32: a tenth slower)
COMPILED_CPU_TOKENS = 2048  # compiled layers make less of them, and are called less often

_PROBES = ["a", "The quick brown fox jumps over the lazy dog.", "x = [3.14159, 1e-05]  # ≤ 100%", "naïve café 编码器"]


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
        model.encode(_PROBES, show_progress_bar=False)
        if reason := model[0].unpacked_because or model[0].uncompiled_because:
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
        model._write(new, model._stock_copy(), with_weights=False)
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
    vectors: np.ndarray = model.encode(_PROBES, show_progress_bar=False)
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
        kernels.quantize(decoder, lambda: model.encode(kernels.PROBES, **probes), dtype=_dtype(dtype))
        return
    if quantize:
        log.warning("quantize='int8' was left out, as this is %s; the model encodes in float32.", missing)
    reason = kernels.prepack(decoder)
    if reason and reason == kernels.lacks("bfloat16") and decoder.dtype == torch.bfloat16:
        log.warning("bfloat16 is slower than float32 here, as this is %s. dtype='float32' is faster.", reason)
    elif reason:
        log.info("The linear layers run without prepacked weights: %s.", reason)


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


class LLM2Vec(SentenceTransformer):  # type: ignore[misc]
    """A `SentenceTransformer` whose decoder is bidirectional; made by `load`, or by opening a saved folder.

    Everything of `SentenceTransformer` works as it does there; `encode` also takes `[instruction, text]` pairs.
    """

    provenance: dict[str, Any]

    def __init__(self, model_name_or_path: str | None = None, **kwargs: Any) -> None:
        folder = Path(model_name_or_path) if model_name_or_path and os.path.isdir(model_name_or_path) else None
        if folder:
            require_inside(folder)
            _require_saved_base(folder)
        super().__init__(model_name_or_path, **kwargs)
        if folder and (folder / "adapter_config.json").is_file():
            require_adapter(self[0].model, folder)
        self.provenance = read_settings(folder).get("provenance", {}) if folder else {}
        if license_name := self.provenance.get("license"):
            self.model_card_data.license = license_name

    def _load_module_class_from_ref(self, class_ref: str, *args: Any, **kwargs: Any) -> type:
        return (
            MODULE_CLASSES.get(class_ref)
            or STOCK_CLASSES.get(class_ref)
            or super()._load_module_class_from_ref(class_ref, *args, **kwargs)
        )

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """As in `SentenceTransformer`; truncation follows what is pooled."""
        super().set_pooling_include_prompt(include_prompt)
        self[1].on_model_ready(self)

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `SentenceTransformer`; an empty list gives an array of shape (0, dimension)."""
        vectors = super().encode(inputs, *args, **kwargs)
        if isinstance(vectors, np.ndarray) and vectors.size == 0 and vectors.ndim == 1:
            return vectors.reshape(0, self.get_embedding_dimension()).astype(np.float32)
        return vectors

    def _resolve_inference_device(self, device: int | str | torch.device | None) -> torch.device:
        if device is None and not torch.accelerator.is_available() and not self._placement_is_delegated:
            return torch.device("cpu")  # there is no other; comparing every weight's takes a query milliseconds
        found: torch.device = super()._resolve_inference_device(device)
        return found

    @torch.inference_mode()
    def _inference(
        self,
        inputs: list[Any],
        *,
        prompt: str | None,
        batch_size: int,
        show_progress_bar: bool,
        output_value: str | None,
        save_to_cpu: bool,
        normalize_embeddings: bool,
        truncate_dim: int | None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in `SentenceTransformer`, in batches of tokens: read ahead in a thread, sorted by length, packed."""
        place = self._resolve_inference_device(device)
        transformer = self[0]
        ours = isinstance(transformer, LLM2VecTransformer) and transformer.packing and place.type != "hpu"
        if not ours or output_value != "sentence_embedding":
            return super()._inference(
                inputs,
                prompt=prompt,
                batch_size=batch_size,
                show_progress_bar=show_progress_bar,
                output_value=output_value,
                save_to_cpu=save_to_cpu,
                normalize_embeddings=normalize_embeddings,
                truncate_dim=truncate_dim,
                device=device,
                **kwargs,
            )
        if _is_training(self):  # eval() takes a single query milliseconds
            self.eval()
        budget = batch_size * TOKENS_PER_TEXT
        if place.type == "cpu":
            budget = min(budget, CPU_TOKENS if transformer.uncompiled_because != "" else COMPILED_CPU_TOKENS)
        starts = range(0, len(inputs), CHUNK)
        found = torch.empty(0, device="cpu" if save_to_cpu else place)
        bar = tqdm(total=len(inputs), desc="Texts", unit=" texts", disable=not show_progress_bar)

        def tokenized(first: int) -> Any:
            return transformer.tokenized(inputs[first : first + CHUNK], prompt, first=first, **kwargs)

        with bar, one_ahead(tokenized, starts) as chunks:
            for first, rows in zip(starts, chunks, strict=True):
                for batch in batches([len(row.input_ids) for row in rows], budget):
                    features = transformer.collate([rows[i] for i in batch])
                    row = Row.of(features["attention_mask"]).to(place)
                    features = {**batch_to_device(features, place), "row": row}
                    vectors = self(features, **kwargs)["sentence_embedding"]  # through __call__, for compile()
                    if truncate_dim is not None:
                        vectors = truncate_embeddings(vectors, truncate_dim)
                    if normalize_embeddings:
                        vectors = nn.functional.normalize(vectors, p=2, dim=1)
                    if not len(found):
                        found = vectors.new_empty((len(inputs), vectors.shape[1]), device=found.device)
                    found[torch.tensor(batch, device=found.device) + first] = vectors.to(found.device)
                    bar.update(len(batch))
        return found

    @property
    def pooling_mode(self) -> str:
        """The pooling mode, under the name that `load` takes (an EOS token is the last token of its template)."""
        return {v: k for k, v in reversed(POOLING_MODES.items())}[self[1].pooling_mode]

    @property
    def fingerprint(self) -> str:
        """Identifies weights, tokenizer and settings: two models with one fingerprint give the same vectors.

        A hash of every setting and of a sample of every weight; a vector store keeps it to refuse another model.
        """
        digest = hashlib.sha256()
        settings = [self._settings(), self.tokenizer.get_vocab() if self.tokenizer else None]
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.state_dict().items()):
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.astype("<f2").tobytes())
        return digest.hexdigest()[:16]

    def _settings(self) -> dict[str, Any]:
        transformer, pooling = self[0], self[1]
        return {
            "pooling_mode": self.pooling_mode,
            "include_prompt": pooling.include_prompt,
            "template": transformer.template if transformer.text_template else None,
            "max_seq_length": self.max_seq_length,
            "document_max_length": transformer.document_max_length,
            "attention": transformer.attention,
            "prompts": {key: prompt for key, prompt in self.prompts.items() if prompt},
        }

    def _get_model_config(self) -> dict[str, Any]:
        needs = {
            "transformers": {"specifier": ">=5.2", "reason": "older versions ignore is_causal=false: causal vectors"}
        }
        if self._names_our_classes():
            reason = "its pooling or truncation has no stock equivalent"
            needs["st-llm2vec"] = {"specifier": f">={__version__}", "reason": reason}
        return {**super()._get_model_config(), "requirements": needs}

    def _names_our_classes(self) -> bool:
        return any(type(module) in MODULE_CLASSES.values() for module in self._modules.values())

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """As `save_pretrained`."""
        self.save_pretrained(path, *args, **kwargs)

    def save_pretrained(self, path: str, *args: Any, merge: bool | None = None, **kwargs: Any) -> None:
        """Writes a folder that plain `SentenceTransformer(path)` opens, wherever stock classes give the same vectors.

        The folder appears complete or not at all. This model is not changed.

        Args:
            path: Folder to write; files of the same names are replaced.
            merge: Merge LoRA adapters into the weights. Default: yes, except in the trainer's `checkpoint-N` folders,
                which stay adapter + optimizer so that training resumes.
            *args, **kwargs: As in `SentenceTransformer.save_pretrained`.
        """
        if merge is None:
            merge = not re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", os.path.basename(os.path.normpath(path)))
        saved = self._stock_copy() if merge else self
        if merge and saved._names_our_classes():
            log.warning(
                "Stock modules would give other vectors for this model (BOS, template, pooling or document "
                "cut), so the folder names st_llm2vec's own; open it after `import st_llm2vec`, or with "
                "trust_remote_code=True."
            )
        with published(Path(path)) as folder:
            self._write(folder, saved, *args, **kwargs)

    def _write(self, folder: Path, saved: LLM2Vec, *args: Any, with_weights: bool = True, **kwargs: Any) -> None:
        if not with_weights:  # they are there already
            saved[0].model = _ConfigOnly(self[0].model)
        super(LLM2Vec, saved).save(str(folder), *args, **kwargs)
        settings = {"format": 1, **self._settings(), "provenance": self.provenance}
        if audit := self[0].audit:
            settings["audit"] = {"bidirectional": bool(audit), "layers": [asdict(row) for row in audit.rows]}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")

    def _stock_copy(self) -> LLM2Vec:
        """A shallow copy to be saved: adapters merged, modules under stock names where probes show the same vectors."""
        ours = copy.copy(self)
        ours._modules = dict(self._modules)
        names = list(ours._modules)
        transformer = copy.copy(self[0])
        transformer._modules = dict(transformer._modules)
        transformer.model = merged_copy(self[0].model)
        ours._modules[names[0]] = transformer
        if not self._stock_suffices():
            return ours
        stock = copy.copy(ours)
        stock._modules = dict(ours._modules)
        plain = copy.copy(transformer)
        plain.__class__ = Transformer
        stock._modules[names[0]] = plain
        pooling: LLM2VecPooling = self[1]
        stock._modules[names[1]] = Pooling(pooling.embedding_dimension, pooling.pooling_mode, pooling.include_prompt)
        was_training = self.training
        try:
            for prompt in {"", "Find what answers:", *self.prompts.values()}:
                a, b = (
                    super(LLM2Vec, m).encode(_PROBES, prompt=prompt, show_progress_bar=False) for m in (ours, stock)
                )
                if not np.allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(a).max()))):
                    return ours
        finally:
            self.train(was_training)
        return stock

    def _stock_suffices(self) -> bool:
        """The rows of the saved-folder table (docs) in which stock `Transformer` + `Pooling` read the same tokens."""
        transformer, pooling = self[0], self[1]
        if transformer.text_template or transformer.document_max_length or transformer.attention == "causal":
            return False
        if getattr(transformer.model, "is_quantized", False):  # stock transformers does not know our int8
            return False
        if needs_module_flags(transformer.model):  # stock transformers reads the config only
            return False
        if pooling.pooling_mode == "lasttoken":
            return True
        if pooling.pooling_mode != "mean":
            return False
        bos_is_excluded, _ = special_counts(transformer.tokenizer)
        return bool(pooling.include_prompt or not bos_is_excluded)


def _is_training(module: nn.Module) -> bool:
    """Whether any part of it is, in a tenth of the time that a loop over `modules()` takes."""
    left: list[nn.Module | None] = [module]
    while left:
        part = left.pop()
        if part is not None:
            if part.training:
                return True
            left.extend(part._modules.values())
    return False


class _ConfigOnly(nn.Module):
    """Saves the config of a decoder whose weights lie in the folder already."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.config = copy.copy(model.config)
        self.config.architectures = [type(model).__name__]
        self.config.dtype = model.dtype

    def save_pretrained(self, folder: str, **_: Any) -> None:
        self.config.save_pretrained(folder)


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself if it has no adapters, else a copy with them merged in float32; the model is not changed."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(model)
    for name, layer in list(merged.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            with torch.no_grad():
                for adapter in layer.active_adapters:
                    if adapter in layer.lora_A:
                        delta = layer.get_delta_weight(adapter).float()
                        base.weight.copy_((base.weight.float() + delta).to(base.weight.dtype))
            parent, _, attribute = name.rpartition(".")
            setattr(merged.get_submodule(parent), attribute, base)
    merged._hf_peft_config_loaded = False
    del merged.peft_config
    return merged


def _require_two_modules(folder: Path) -> None:
    if extra := read_json(folder / "modules.json", list)[2:]:
        raise InvalidInputError(
            f"{folder} has modules after its pooling ({', '.join(module['type'] for module in extra)}), which load() "
            "would leave out. Open it with SentenceTransformer(...) after `import st_llm2vec`."
        )


def _require_saved_base(folder: Path) -> None:
    named = str(read_json(folder / "adapter_config.json").get("base_model_name_or_path"))
    if named.endswith(NOT_SAVED):
        raise InvalidCheckpointError(
            f"The adapter in {folder} was trained on {named!r}: stages that lie in no folder together with their "
            f"decoder. Name what was merged: st_llm2vec.load({str(folder)!r}, base='<the stage below>')."
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
