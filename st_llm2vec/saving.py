"""What a saved folder holds: stock sentence-transformers classes wherever they give the same vectors, else ours."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from transformers import PreTrainedModel

from .backend.equivalence import LIMITS, precision
from .bidirectional import needs_module_flags
from .cards import complete_card
from .checkpoints import SETTINGS_FILE, weight_files
from .errors import InvalidCheckpointError, InvalidInputError
from .merging import merged_copy
from .pooling import LLM2VecPooling
from .runtime import as_torch_dtype
from .settings import KEPT
from .templates import special_counts
from .vetting import read_json

if TYPE_CHECKING:
    from .model import LLM2Vec

log = logging.getLogger(__name__)

PROBES = ["a", "The quick brown fox jumps over the lazy dog.", "x = [3.14159, 1e-05]  # ≤ 100%", "naïve café 编码器"]


# Byte-level tokenizers read a prompt's last blank together with the first word of the text.
_BLANK_END = "Find what answers: "
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def write_folder(
    model: LLM2Vec,
    folder: Path,
    saved: LLM2Vec,
    *args: Any,
    with_weights: bool = True,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> None:
    """Writes `saved`, a copy of the model in the classes that the folder is to name, and the settings of the model.

    Args:
        with_weights: False where the weights lie in the folder already.
        dtype: Of the weights; None takes that of the files that they come from, wherever it loses nothing.
    """
    if saved is not model:
        decoder = saved[0].model
        stored = dtype or _stored_dtype(model)
        weights = _weights(decoder, stored, rounded=dtype is not None) if with_weights else {}
        if weights is not None:
            saved[0].model = _Saved(decoder, weights, dtype)
    with warnings.catch_warnings():  # peft looks for a config.json in the decoder's folder, which may be a GGUF file
        warnings.filterwarnings("ignore", "Could not find a config file in")
        SentenceTransformer.save(saved, str(folder), *args, **kwargs)
    for file in ("config.json", "tokenizer_config.json", "processor_config.json", "sentence_bert_config.json"):
        _tidy(folder / file)
    complete_card(folder, model)
    settings = {"format": 1, **model.settings(), "provenance": model.provenance}
    if audit := model[0].audit:
        settings["audit"] = {"bidirectional": bool(audit), "layers": [asdict(row) for row in audit.rows]}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")


def _stored_dtype(model: LLM2Vec) -> torch.dtype | None:
    """The one dtype of the files that the weights were read from; None if it is not known, or there are several."""
    folder = Path(model[0].model.name_or_path)
    kinds = set()
    try:
        for path in weight_files(folder) if folder.is_dir() else ():
            with safe_open(path, "pt") as file:
                kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no dict
    except (InvalidCheckpointError, SafetensorError, OSError):  # changed or removed meanwhile
        return None
    if folder.suffix == ".gguf":
        return as_torch_dtype(model.provenance.get("gguf", {}).get("dtype"))
    return _FLOATS.get(kinds.pop()) if len(kinds) == 1 else None


def _weights(decoder: PreTrainedModel, dtype: torch.dtype | None, *, rounded: bool) -> dict[str, Tensor] | None:
    """The weights in another dtype; None where they are to be written as they are.

    Args:
        rounded: Whether weights may change; if not, the dtype has to be a smaller one that holds each of them exactly.
    """
    own = decoder.dtype
    if not rounded and (dtype is None or dtype.itemsize >= own.itemsize):
        dtype = own
    # One dtype already? bfloat16 decoders have a few vectors in float32 here (backend/residual.py).
    if dtype is None or all(p.dtype == dtype for p in decoder.parameters() if p.is_floating_point()):
        return None
    if getattr(decoder, "is_quantized", False):
        if rounded:
            raise InvalidInputError(f"dtype={dtype} is for float weights, and these are quantized. Leave it out.")
        return None
    cast: dict[str, Tensor] = {}
    for name, tensor in decoder.state_dict().items():
        cast[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if not rounded and not torch.equal(cast[name].to(tensor.dtype), tensor):
            return None
        if not cast[name].isfinite().all():
            raise InvalidInputError(f"{name!r} has no finite value in dtype={dtype}. Use bfloat16 or float32.")
    return cast


def _tidy(path: Path) -> None:
    """Takes out of a config what sends its reader elsewhere: to code that is not there, to padding not asked for."""
    if not path.is_file():
        return
    content = _without(read_json(path), {"auto_map", "unpad_inputs"})
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without(content: Any, names: set[str]) -> Any:
    if isinstance(content, dict):
        return {key: _without(value, names) for key, value in content.items() if key not in names}
    return [_without(value, names) for value in content] if isinstance(content, list) else content


def portable_copy(model: LLM2Vec) -> LLM2Vec:
    """A shallow copy to be saved: adapters merged, modules under stock names where probes show the same vectors."""
    ours = copy.copy(model)
    ours._modules = dict(model._modules)
    names = list(ours._modules)
    transformer = copy.copy(model[0])
    transformer._modules = dict(transformer._modules)
    transformer.model = merged_copy(model[0].model)
    ours._modules[names[0]] = transformer
    if not _stock_may_suffice(model):
        return ours
    stock = copy.copy(ours)
    stock._modules = dict(ours._modules)
    plain = copy.copy(transformer)
    plain.__class__ = Transformer
    stock._modules[names[0]] = plain
    pooling: LLM2VecPooling = model[1]
    stock._modules[names[1]] = Pooling(pooling.embedding_dimension, pooling.pooling_mode, pooling.include_prompt)
    # Both pad their batches here: packed, the same tokens would differ by rounding (bfloat16: by far more than 1e-5).
    padded = copy.copy(ours)
    padded._modules = dict(ours._modules)
    probed = copy.copy(transformer)
    probed.__dict__["_packing"] = False
    padded._modules[names[0]] = probed
    for prompt in {"", "Find what answers:", *filter(None, model.prompts.values())}:
        if _smallest_cosine(padded, stock, prompt) is not None:
            return ours
    if (cosine := _smallest_cosine(padded, stock, _BLANK_END)) is not None:
        log.warning(
            "With a prompt that ends in a blank, plain sentence-transformers gives other vectors than this model "
            "(cosine down to %.3f with %r). Leave the blank out, add the prompt to model.prompts before saving, or "
            "open the folder after `import st_llm2vec`.",
            cosine,
            _BLANK_END,
        )
    return stock


def _smallest_cosine(ours: LLM2Vec, stock: LLM2Vec, prompt: str) -> float | None:
    """Between two models' vectors of the probe texts; None if the vectors are the same."""
    a, b = (SentenceTransformer.encode(m, PROBES, prompt=prompt, show_progress_bar=False) for m in (ours, stock))
    same = LIMITS[precision(ours[0].model)].text.floor  # stock pools in the dtype of the decoder
    if np.allclose(a, b, rtol=same, atol=same * max(1.0, float(np.abs(a).max()))):
        return None
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)  # 0 where stock pools no token at all
    return float((np.sum(a * b, axis=1) / np.maximum(norms, 1e-12)).min())


def _stock_may_suffice(model: LLM2Vec) -> bool:
    """The rows of the saved-folder table (docs) in which stock `Transformer` + `Pooling` read the same tokens."""
    transformer, pooling = model[0], model[1]
    own_save = type(transformer).save is not Transformer.save  # somebody's, which the stock class would drop
    if own_save or KEPT.keys() & transformer.get_config_dict().keys():  # what is not as in stock classes
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


class _Saved(nn.Module):
    """A decoder that is saved with other weights than it computes with: in another dtype, or none if it has none.

    Args:
        weights: Written in place of the decoder's own; empty where they lie in the folder already.
        dtype: What config.json shall name, and therefore what the folder computes in; None: as the decoder does.
    """

    def __init__(self, model: PreTrainedModel, weights: dict[str, Tensor], dtype: torch.dtype | None) -> None:
        super().__init__()
        self.decoder, self.weights, self.dtype = [model], weights, dtype  # in a list: no module of this one
        self.config = copy.copy(model.config)
        self.config.architectures = [type(model).__name__]
        self.config.dtype = dtype or model.dtype

    def save_pretrained(self, folder: str, **kwargs: Any) -> None:
        if self.weights:
            self.decoder[0].save_pretrained(folder, state_dict=self.weights, **kwargs)
        self.config.save_pretrained(folder)
