"""A soup: one encoder whose weights are the mean of several encoders', such as a decoder's stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import NOT_SAVED
from ..errors import InvalidInputError
from ..loading import load
from ..model import LLM2Vec


def soup(models: Sequence[str | Path], weights: Sequence[float] | None = None, **options: Any) -> LLM2Vec:
    """Average the weights of encoders that were trained from one decoder.

    Sums are taken in float32 and rounded once to the first encoder's dtype. Choose the weights on a dev split.

    Args:
        models: Aliases, folders or hub ids, at least two; the first gives settings, prompts and tokenizer.
        weights: One for each, of sum 1. Default: all the same.
        options: Of `load`, such as device and dtype.

    Returns:
        An encoder of its own, which `save_pretrained` saves.

    Raises:
        InvalidInputError: Weights that are no shares, or encoders of other shapes, tokenizers or settings.

    Source: Wortsman et al. 2022, "Model soups".

    Example:
        >>> soup(["llm2vec-tiny", "llm2vec-tiny"], [0.2, 0.8]).get_embedding_dimension()
        256
    """
    if len(models) < 2:
        raise InvalidInputError(f"models must be at least two, got {len(models)}.")
    shares = [1 / len(models)] * len(models) if weights is None else list(weights)
    if len(shares) != len(models) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise InvalidInputError(f"weights must be {len(models)} numbers of sum 1, got {weights}.")
    made: LLM2Vec = load(str(models[0]), **options).train()  # prepacked layers hold their weights elsewhere
    total = {name: shares[0] * weight.detach().float() for name, weight in made.named_parameters()}
    for name, share in zip(models[1:], shares[1:], strict=True):
        other = load(str(name), **options).train()
        _require_alike(made, other, str(name))
        for key, weight in other.named_parameters():
            total[key] += share * weight.detach().float().to(total[key].device)
    with torch.no_grad():
        for key, weight in made.named_parameters():
            weight.copy_(total[key])
    made.provenance["soup"] = [
        {"model": Path(str(name)).name, "weight": w} for name, w in zip(models, shares, strict=True)
    ]
    made[0].model.name_or_path = f"soup{NOT_SAVED}"
    made.eval()
    return made


def _require_alike(made: LLM2Vec, other: LLM2Vec, name: str) -> None:
    settings, others = ({**model.settings(), "prompts": None} for model in (made, other))
    if odd := [key for key in settings if settings[key] != others.get(key)]:
        raise InvalidInputError(
            f"models must have the same settings; {name} has {odd[0]}={others.get(odd[0])!r}, the first "
            f"{settings[odd[0]]!r}. Say {odd[0]}=... for all."
        )
    shapes, theirs = ({key: weight.shape for key, weight in model.named_parameters()} for model in (made, other))
    if shapes != theirs or made.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise InvalidInputError(f"models must come from one decoder; {name} has other shapes or tokens than the first.")
