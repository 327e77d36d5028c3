"""How far hidden states move, layer by layer, when the causal mask is removed (paper, section 5.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import InvalidInputError
from ..loading import load

FILE = "layers.json"


@torch.no_grad()
def layer_cosines(name: str, texts: Sequence[str], *, dtype: str | None = None) -> list[float]:
    """Compare a model's hidden states under causal and under bidirectional attention.

    Args:
        name: As `load` takes it.
        texts: Natural ones; of each the first 128 tokens.
        dtype: As `load` takes it.

    Returns:
        The mean cosine similarity over all tokens but the first, of the input embeddings and after each layer. The last
        token sees the same under both, but in a network of many layers its neighbours do not.

    Raises:
        InvalidInputError: No text of two tokens.
    """
    causal, bidirectional = (
        load(name, attention=each, dtype=dtype, packing=False) for each in ("causal", "bidirectional")
    )
    sums: list[float] = []
    count = 0
    for text in texts:
        ids = causal.tokenizer(text, return_tensors="pt", truncation=True, max_length=128)["input_ids"]
        if ids.shape[1] < 2:
            continue
        states = [
            model[0].model(input_ids=ids.to(model.device), output_hidden_states=True, use_cache=False).hidden_states
            for model in (causal, bidirectional)
        ]
        found = [
            float(torch.cosine_similarity(a[0, 1:].float(), b[0, 1:].float(), dim=-1).sum())
            for a, b in zip(*states, strict=True)
        ]
        sums = [a + b for a, b in zip(sums or [0.0] * len(found), found, strict=True)]
        count += ids.shape[1] - 1
    if not count:
        raise InvalidInputError("texts must have one of two tokens at least.")
    return [total / count for total in sums]
