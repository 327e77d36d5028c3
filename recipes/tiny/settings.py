"""Every number of the llm2vec-tiny recipe, and the rows that each stage may read.

Only data under CC BY, CC BY-SA, CC0 or MIT reaches the weights. No split of STS-B and no MRPC row is used: their
sentences are in the test.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SEED = 20241

# Llama shape: 16,384 * 256 tied embeddings + 4 layers = 7.60 M parameters, 15.2 MB in float16.
MODEL = {
    "vocab_size": 16_384,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}
SPECIAL_TOKENS = ["<|pad|>", "<|eot|>", "<|mask|>"]


EMBEDDING_LR = 0.1  # of the learning rate: the token vectors start from counts over the whole corpus (words.py)


def adamw(model: torch.nn.Module, learning_rate: float, **settings: Any) -> torch.optim.AdamW:
    """AdamW whose embeddings move slowly."""
    weights = dict(model.named_parameters())
    slow = [weight for name, weight in weights.items() if "embed_tokens" in name]
    fast = [weight for name, weight in weights.items() if "embed_tokens" not in name]
    return torch.optim.AdamW(
        [{"params": fast, "lr": learning_rate}, {"params": slow, "lr": EMBEDDING_LR * learning_rate}], **settings
    )


def rows(data: Path, name: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of one split, from `<data>/<name>/<split>.jsonl.xz` or its numbered shards."""
    files = sorted(
        f for f in (data / name).glob(f"{split}*.jsonl.xz") if re.fullmatch(rf"{split}(-\d\d)?", f.name[:-9])
    )
    if not files:
        raise SystemExit(f"no file {split}.jsonl.xz in {data / name}; give the data folder with --data")
    for file in files:
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)
