"""LLM2Vec's training steps as losses, collators and settings for `SentenceTransformerTrainer`.

mntp.py         step 2: masked next-token prediction
simcse.py       step 3, without labels: the same text twice under dropout
supervised.py   step 3, with pairs or triplets: in-batch and hard negatives
head.py         the causal LM's head, which MNTP predicts with
lora_linear.py  a LoRA layer that trains fast
lora.py         which weights train: LoRA, stage by stage; or all of them
"""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import MissingExtraError

if find_spec("datasets") is None or find_spec("accelerate") is None:
    raise MissingExtraError(
        'st_llm2vec.training needs datasets and accelerate. Install them with: pip install "st-llm2vec[train]"'
    )

from . import mntp, simcse, supervised
from .head import language_model_head
from .lora import add_lora, merge_lora
from .mntp import MNTPDataCollator, MNTPLoss, chunk_texts
from .simcse import attention_dropout, simcse_pairs

__all__ = [
    "MNTPDataCollator",
    "MNTPLoss",
    "add_lora",
    "attention_dropout",
    "chunk_texts",
    "language_model_head",
    "merge_lora",
    "mntp",
    "simcse",
    "simcse_pairs",
    "supervised",
]
