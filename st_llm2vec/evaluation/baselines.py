"""The ladder below a model: what it must beat before its layers, or its training, have given anything."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from ..errors import InvalidInputError
from ..loading import load
from ..model import LLM2Vec


def static_model(model: SentenceTransformer) -> SentenceTransformer:
    """Make the static-embedding baseline: the same tokens and pooling on the input embeddings, without any layer.

    Raises:
        InvalidInputError: The model has no input embeddings that could be taken.

    Example:
        >>> static_model(model).encode("how bears sleep").shape
        (256,)
    """
    if not hasattr(getattr(model[0], "model", None), "get_input_embeddings"):
        raise InvalidInputError(f"{type(model[0]).__name__} has no input embeddings for a static-embedding baseline.")
    modules = [_StaticTransformer(model), *list(model)[1:]]
    prompts = {name: prompt or "" for name, prompt in model.prompts.items()}
    return SentenceTransformer(modules=modules, device=str(model.device), prompts=prompts)


class _StaticTransformer(nn.Module):
    """Embeds tokens without the decoder's layers."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        decoder: Any = model[0].model
        self.embeddings = decoder.get_input_embeddings()
        self.preprocess = model.preprocess
        self.tokenizer = model.tokenizer
        self.text_template = getattr(model[0], "text_template", None)  # which pooling asks for

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            features["token_embeddings"] = self.embeddings(features["input_ids"])
        return features


def prompt_eol(name: str, **options: Any) -> LLM2Vec:
    """Load a decoder as it is, causal and untrained, that is asked for each text in one word (PromptEOL).

    Args:
        name: Folder or hub id of the decoder.
        options: Of `load`: dtype, device and so on.
    """
    return load(name, attention="causal", pooling_mode="last_token", template="prompt-eol", **options)
