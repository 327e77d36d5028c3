"""`LLM2VecPooling`: what is pooled of a text, and how much each position counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

from .errors import InvalidInputError

# What each position counts, from a mask of the pooled ones, both (n, length); tests/parity/kit/README.md, 3.8.
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda mask: mask,
    "weightedmean": lambda mask: mask.cumsum(1) * mask,  # 1 ... n over the span; stock counts from the text's start
    "lasttoken": lambda mask: (mask.flip(1).cumsum(1).flip(1) == 1) * mask,
    "cls": lambda mask: (mask.cumsum(1) == 1) * mask,
}


class LLM2VecPooling(Pooling):
    """Pools text and template suffix, in float32; differs from stock `Pooling` in what counts as the prompt.

    Args:
        embedding_dimension: Width of the token embeddings.
        pooling_mode: As for the stock class ("mean", "weightedmean", "lasttoken", "cls").
        include_prompt: Pool all tokens (BOS, template and prompt too), as `skip_instruction=False` did.
    """

    def __init__(self, embedding_dimension: int, pooling_mode: str = "mean", include_prompt: bool = False) -> None:
        super().__init__(embedding_dimension, pooling_mode, include_prompt)
        if self.pooling_mode not in WEIGHTS:  # the stock class can concatenate several
            raise InvalidInputError(f"pooling_mode must be one of {', '.join(WEIGHTS)}, got {pooling_mode!r:.80}.")

    @property
    def reads_span(self) -> bool:
        """Whether the value depends on where the text begins and the template's suffix ends."""
        return self.pooling_mode != "cls" and (not self.include_prompt or self.pooling_mode == "lasttoken")

    def on_model_ready(self, model: Any) -> None:
        # The last token without a template has no suffix to keep: it is cut as the stock module cuts it.
        model[0].keep_suffix = self.reads_span and (self.pooling_mode != "lasttoken" or bool(model[0].text_template))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`: float32 (n, hidden)."""
        tokens: Tensor = features["token_embeddings"].float()  # (n, length, hidden)
        names = ("pooling_mask", "attention_mask") if self.reads_span else ("token_mask", "attention_mask")
        mask = next(features[name] for name in names if name in features)
        weights = WEIGHTS[str(self.pooling_mode)](mask).to(tokens.dtype)  # (n, length)
        vectors = torch.einsum("nl,nlh->nh", weights, tokens) / weights.sum(1, keepdim=True)
        features["sentence_embedding"] = vectors
        return features


# Saved folders name the class where it has always been.
LLM2VecPooling.__module__ = "st_llm2vec.modules"
