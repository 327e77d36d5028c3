"""Every number of the pre-training of llm2vec-tiny; those of the steps after it are in llm2vec-tiny.toml.

Only data under CC BY, CC BY-SA, CC0 or MIT reaches the weights. No split of STS-B and no MRPC row is used: their
sentences are in the test.
"""

from __future__ import annotations

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
