"""What a saved folder holds: stock sentence-transformers classes wherever they give the same vectors, else ours."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import PreTrainedModel

from .bidirectional import needs_module_flags
from .checkpoints import SETTINGS_FILE
from .merging import merged_copy
from .modules import LLM2VecPooling
from .templates import special_counts

if TYPE_CHECKING:
    from .model import LLM2Vec

PROBES = ["a", "The quick brown fox jumps over the lazy dog.", "x = [3.14159, 1e-05]  # ≤ 100%", "naïve café 编码器"]


def write_folder(
    model: LLM2Vec, folder: Path, saved: LLM2Vec, *args: Any, with_weights: bool = True, **kwargs: Any
) -> None:
    """Writes `saved`, a copy of the model in the classes that the folder is to name, and the settings of the model."""
    if not with_weights:  # they are there already
        saved[0].model = _ConfigOnly(model[0].model)
    SentenceTransformer.save(saved, str(folder), *args, **kwargs)
    settings = {"format": 1, **model.settings(), "provenance": model.provenance}
    if audit := model[0].audit:
        settings["audit"] = {"bidirectional": bool(audit), "layers": [asdict(row) for row in audit.rows]}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")


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
    was_training = model.training
    try:
        for prompt in {"", "Find what answers:", *model.prompts.values()}:
            a, b = (
                SentenceTransformer.encode(m, PROBES, prompt=prompt, show_progress_bar=False) for m in (ours, stock)
            )
            if not np.allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(a).max()))):
                return ours
    finally:
        model.train(was_training)
    return stock


def _stock_may_suffice(model: LLM2Vec) -> bool:
    """The rows of the saved-folder table (docs) in which stock `Transformer` + `Pooling` read the same tokens."""
    transformer, pooling = model[0], model[1]
    own_save = type(transformer).save is not Transformer.save  # somebody's, which the stock class would drop
    if own_save or transformer.text_template or transformer.document_max_length or transformer.attention == "causal":
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


class _ConfigOnly(nn.Module):
    """Saves the config of a decoder whose weights lie in the folder already."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.config = copy.copy(model.config)
        self.config.architectures = [type(model).__name__]
        self.config.dtype = model.dtype

    def save_pretrained(self, folder: str, **_: Any) -> None:
        self.config.save_pretrained(folder)
