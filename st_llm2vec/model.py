"""`LLM2Vec`: a SentenceTransformer whose decoder is bidirectional, and that saves itself in stock classes if it can."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch.nn import Module, Sequential
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from . import __version__
from .backend.accelerating import widen_residual
from .checkpoints import read_settings, require_saved_base
from .encoding import encode_texts
from .errors import InvalidInputError
from .hosts import require_hooks
from .merging import published_weights, restore_adapter
from .modules import MODULE_CLASSES, STOCK_CLASSES, LLM2VecTransformer
from .pooling import LLM2VecPooling
from .runtime import as_torch_dtype
from .saving import portable_copy, write_folder
from .settings import KEPT, OUR_POOLING_MODES, EncoderSettings
from .vetting import opening, require_finite_adapter, require_safe

log = logging.getLogger(__name__)

require_hooks()


class LLM2Vec(SentenceTransformer):
    """A `SentenceTransformer` whose decoder is bidirectional; made by `load`, or by opening a saved folder.

    Everything of `SentenceTransformer` works as it does there; `encode` also takes `[instruction, text]` pairs. The
    name of the type is the host's, too: `st_llm2vec.as_sentence_transformers.SentenceTransformer`.

    Example:
        >>> model = st_llm2vec.load("llm2vec-tiny")
        >>> model.encode([["Find a passage on animals:", "how bears sleep"]]).shape
        (1, 256)
    """

    provenance: dict[str, Any]

    if TYPE_CHECKING:  # the host says no more than "a module", "a tokenizer or none"
        tokenizer: Any
        max_seq_length: int

        def get_embedding_dimension(self) -> int: ...

        @overload
        def __getitem__(self, index: Literal[0]) -> LLM2VecTransformer: ...
        @overload
        def __getitem__(self, index: Literal[1]) -> LLM2VecPooling: ...
        @overload
        def __getitem__(self, index: slice) -> Sequential: ...
        @overload
        def __getitem__(self, index: int) -> Module: ...
        def __getitem__(self, index: Any) -> Any: ...

    def __init__(self, model_name_or_path: str | None = None, **kwargs: Any) -> None:
        folder = Path(model_name_or_path) if model_name_or_path and os.path.isdir(model_name_or_path) else None
        if folder:
            require_safe(folder)
            require_saved_base(folder)
        options = [name for name, value in kwargs.items() if value is not None and name != "device"]
        with opening(folder, options) if folder else nullcontext():
            super().__init__(model_name_or_path, **kwargs)
        if folder and (folder / "adapter_config.json").is_file():
            restore_adapter(self[0].model, folder)
        if folder and isinstance(self[0], LLM2VecTransformer):
            widen_residual(self[0].model)  # as `load` does
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
        for module in self:
            if isinstance(module, LLM2VecPooling):
                module.on_model_ready(self)

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

    def _inference(  # type: ignore[override]  # the host's has the same arguments, in **kwargs
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
        if not ours or output_value != "sentence_embedding" or not transformer.reads_as_text(**kwargs):
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
        return encode_texts(
            self,
            inputs,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            save_to_cpu=save_to_cpu,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            place=place,
            **kwargs,
        )

    @property
    def pooling_mode(self) -> str | None:
        """The pooling mode, under the name that `load` takes (an EOS token is the last token of its template)."""
        pooling = self._pooling()
        mode: Any = pooling.pooling_mode if pooling else None
        return OUR_POOLING_MODES.get(mode, mode) if isinstance(mode, str) else mode

    def _pooling(self) -> Pooling | None:
        return next((module for module in self if isinstance(module, Pooling)), None)

    @property
    def fingerprint(self) -> str:
        """Identifies weights, tokenizer and settings: two models with one fingerprint give the same vectors.

        A hash of every setting and of a sample of every weight; a vector store keeps it to refuse another model.
        """
        digest = hashlib.sha256()
        settings = [self.settings() | self._beyond_settings(), self.tokenizer.get_vocab() if self.tokenizer else None]
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for weight in sampled_weights(self):
            digest.update(weight)
        return digest.hexdigest()[:16]

    def _beyond_settings(self) -> dict[str, Any]:
        """What else changes a vector; nothing of it is there in most encoders."""
        found = {
            "modules": [repr(module) for module in self][1:] if len(self) != 2 else [],  # the two are in the settings
            "default_prompt": self.prompts.get(self.default_prompt_name or "", ""),
            "truncate_dim": self.truncate_dim,
            "adapters": self._adapters_in_use(),
        }
        return {name: value for name, value in found.items() if value}

    def _adapters_in_use(self) -> list[tuple[str, str, float]]:
        """Layer, name and scale of every LoRA adapter that takes part: their weights alone do not say which do."""
        if not getattr(self[0].model, "_hf_peft_config_loaded", False):
            return []
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = ((name, layer) for name, layer in self.named_modules() if isinstance(layer, BaseTunerLayer))
        return [
            (name, adapter, getattr(layer, "scaling", {}).get(adapter, 1.0))
            for name, layer in layers
            for adapter in ([] if layer.disable_adapters else layer.active_adapters)
        ]

    def load_adapter(self, peft_model_id: Any = None, *args: Any, **kwargs: Any) -> None:
        """As in `SentenceTransformer`, for a plain LoRA adapter in a folder, which is vetted as in `load`.

        Raises:
            InvalidCheckpointError: The folder holds something else, or numbers that are not finite.
        """
        if isinstance(peft_model_id, (str, os.PathLike)) and os.path.isdir(peft_model_id):
            folder = Path(peft_model_id)
            require_safe(folder)
            require_finite_adapter(folder)
            with opening(folder):
                super().load_adapter(str(folder), *args, **kwargs)
            return
        super().load_adapter(peft_model_id, *args, **kwargs)

    @contextmanager
    def use_adapter(self, name: str | None) -> Iterator[None]:
        """Encode with one of several LoRA adapters, for the calls within the block.

        Args:
            name: As in `load_adapter(folder, adapter_name=name)`; None for the decoder without any.

        Raises:
            InvalidInputError: No adapter has this name.

        Example:
            model.load_adapter("questions/adapter", adapter_name="questions")
            with model.use_adapter("questions"):
                model.encode(["how do I compress a file?"])
        """
        decoder = self[0].model
        known = list(getattr(decoder, "peft_config", {}))
        if name is not None and name not in known:
            raise InvalidInputError(
                f"name must be None or of {known}, got {name!r}. Add it: load_adapter(folder, adapter_name={name!r})."
            )
        before = dict.fromkeys(adapter for _, adapter, _ in self._adapters_in_use())
        try:
            self._activate([] if name is None else [name])
            yield
        finally:
            self._activate(list(before))

    def _activate(self, names: list[str]) -> None:
        if names:
            self.enable_adapters()
            self.set_adapter(names)
        elif getattr(self[0].model, "_hf_peft_config_loaded", False):
            self.disable_adapters()

    def settings(self) -> dict[str, Any]:
        """The settings of the encoder, under the names that `load` takes, and its prompts."""
        transformer = self[0]
        return EncoderSettings(
            pooling_mode=self.pooling_mode,
            include_prompt=getattr(self._pooling(), "include_prompt", None),
            max_seq_length=self.max_seq_length,
            **{name: getattr(transformer, name) for name in KEPT},
            prompts={key: prompt for key, prompt in self.prompts.items() if prompt},
        ).to_dict()

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

    def save(self, path: str | None, *args: Any, **kwargs: Any) -> None:
        """As `save_pretrained`."""
        self.save_pretrained(path, *args, **kwargs)

    def save_pretrained(
        self,
        path: str | None,
        *args: Any,
        merge: bool | None = None,
        dtype: torch.dtype | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes a folder that plain `SentenceTransformer(path)` opens, wherever stock classes give the same vectors.

        The folder appears complete or not at all. This model is not changed.

        Args:
            path: Folder to write; files of the same names are replaced. None: nothing is written, as in the host.
            merge: Merge LoRA adapters into the weights. Default: yes, except in the trainer's `checkpoint-N` folders,
                which stay adapter + optimizer so that training resumes.
            dtype: Of the weights in the folder: float32, bfloat16 or float16, in which it will then be opened. Default:
                nothing is rounded. Weights that were loaded from smaller ones (bfloat16 files, on a CPU) and have not
                changed are written as they were stored; all others (trained, merged) as they are here. Either way the
                folder is opened in the dtype that this model computes in.
            *args, **kwargs: As in `SentenceTransformer.save_pretrained`.
        """
        if path is None:
            return
        if merge is None:
            merge = not re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", os.path.basename(os.path.normpath(path)))
        weights_dtype = as_torch_dtype(dtype)
        if weights_dtype is not None and not merge:
            raise InvalidInputError(f"dtype={dtype} is for merged weights, and merge=False keeps them as they are.")
        was_training = self.training
        try:
            saved = portable_copy(self) if merge else self
            if merge and saved._names_our_classes():
                log.warning(
                    "Stock modules would give other vectors for this model (BOS, template, pooling or document "
                    "cut), so the folder names st_llm2vec's own; open it after `import st_llm2vec`, or with "
                    "trust_remote_code=True."
                )
            with published_weights(Path(path)) as folder:
                write_folder(self, folder, saved, *args, dtype=weights_dtype, **kwargs)
        finally:
            self.train(was_training)  # what is encoded on the way (probes, the model card's example) ends that


def sampled_weights(model: Module) -> Iterator[bytes]:
    """Yield of each weight, in the order of their names: name, shape and a sample of its numbers."""
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
        yield f"{name}{tuple(tensor.shape)}".encode() + sample.astype("<f2").tobytes()


# Libraries tell a SentenceTransformer by its type's name (KeyBERT, BERTopic), and open another model for what they do
# not know; and the host writes that name into model cards and on the hub. What was pickled as LLM2Vec still opens.
LLM2Vec.__module__ = f"{__package__}.as_sentence_transformers"
LLM2Vec.__name__ = LLM2Vec.__qualname__ = SentenceTransformer.__name__


def __getattr__(name: str) -> Any:
    # `load` and `convert` lived here.
    if name in ("load", "convert"):
        from . import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
