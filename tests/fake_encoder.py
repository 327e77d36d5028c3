"""An encoder without a model: a token is a word, a vector is made of a text's hash. Milliseconds, and exact."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


class Tokenizer:
    """A token is a word."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text.split())))}


class FakeEncoder:
    """What `encode_corpus` and the stores need; `texts` is what was encoded."""

    dimension = 8
    dtype = "float32"

    def __init__(self, fingerprint: str = "one", max_seq_length: int = 20) -> None:
        self.fingerprint, self.max_seq_length = fingerprint, max_seq_length
        self.prompts: dict[str, str] = {"query": "", "document": ""}
        self.tokenizer = Tokenizer()
        self.texts: list[str] = []
        self.options: dict[str, Any] = {}

    def get_embedding_dimension(self) -> int:
        return self.dimension

    def encode_document(self, inputs: Any, **options: Any) -> Any:
        self.options = options
        self.texts += [inputs] if isinstance(inputs, str) else inputs
        return vectors([inputs])[0] if isinstance(inputs, str) else vectors(inputs)

    encode_query = encode_document


def vectors(texts: list[str]) -> Any:
    """The vectors of texts, float32 (texts, 8), of unit length."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") for text in texts]
    found = np.stack([np.random.default_rng(seed).standard_normal(8).astype("f4") for seed in seeds])
    return found / np.linalg.norm(found, axis=1, keepdims=True)
