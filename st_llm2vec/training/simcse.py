"""Step 3 of LLM2Vec without labels: SimCSE (paper section 2.3; tests/parity/kit/README.md, 3.12).

A text is its own positive: two forward passes under different dropout, the rest of the batch as negatives. The loss is
sentence-transformers' `MultipleNegativesRankingLoss(model, scale=20)`. What it lacks is dropout, which decoders switch
off: without it the two passes are identical and nothing is learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from datasets import Dataset

from ..errors import InvalidInputError, UnsupportedArchitectureError
from ..model import LLM2Vec
from ..presets import DEFAULTS, trainer_arguments
from ..settings import as_share, as_texts

SCALE: float = DEFAULTS["simcse"]["scale"]
DROPOUT: float = DEFAULTS["simcse"]["attention_dropout"]

# The paper's settings (train_configs/simcse of the original package), for SentenceTransformerTrainingArguments.
PRESET = trainer_arguments("simcse") | {"logging_steps": 50}


def simcse_pairs(texts: Iterable[str]) -> Dataset:
    """Make columns `anchor` and `positive`, the same text in both; empty lines are dropped.

    Example:
        >>> simcse_pairs(["Bears sleep through the winter.", ""])[0]["positive"]
        'Bears sleep through the winter.'
    """
    lines = [stripped for text in as_texts("texts", texts) if (stripped := text.strip())]
    if not lines:
        raise InvalidInputError("There is no text to train on: all lines are empty.")
    return Dataset.from_dict({"anchor": lines, "positive": lines})


@contextmanager
def attention_dropout(model: LLM2Vec, probability: float = DROPOUT) -> Iterator[None]:
    """Put dropout on the attention probabilities of every layer, while the block runs and the model trains.

    Set on the modules, not in the config (which they do not read again), so nothing of it is saved.

    Raises:
        UnsupportedArchitectureError: The decoder's attention has no dropout to set.

    Example:
        >>> with attention_dropout(model, 0.1):
        ...     print(model[0].model.layers[0].self_attn.attention_dropout)
        0.1
    """
    probability = as_share("probability", probability)
    modules = [m for m in model[0].model.modules() if isinstance(m.__dict__.get("attention_dropout"), float | int)]
    if not modules:
        raise UnsupportedArchitectureError(
            f"The attention of model_type {model[0].config.model_type!r} has no dropout, and SimCSE without it learns "
            "nothing. Train with pairs instead (supervised), or use another decoder."
        )
    before = [m.attention_dropout for m in modules]
    try:
        for module in modules:
            module.attention_dropout = probability
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.attention_dropout = value
