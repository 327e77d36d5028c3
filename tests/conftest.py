"""Fixtures that every folder of tests may use; no test touches the network."""

from __future__ import annotations

import hashlib
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["ST_LLM2VEC_HOME"] = tempfile.mkdtemp()  # not the user's names, nor the user's cache

from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_decoder, tiny_tokenizer

# make test-databases and make test-mteb, with environments of their own; make test-real, with its model
collect_ignore = ["databases", "real", "with_mteb"]


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama without BOS: a row of the table that stock classes serve."""
    return save_decoder(tmp_path_factory.mktemp("decoder") / "tiny-llama", tie_word_embeddings=False)


@pytest.fixture(scope="session")
def bos_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose tokenizer puts a BOS token first: stock mean pooling would pool it."""
    return save_decoder(tmp_path_factory.mktemp("decoder") / "bos-llama", tokenizer=tiny_tokenizer(bos=True))


class FakeEncoder:
    """Vectors that depend on the prompt and the text alone; remembers what it was asked."""

    name_or_path = "fake"
    fingerprint = "fake-1"

    def __init__(self):
        self.calls = []

    def _encode(self, prompt, texts, options):
        self.calls.append((prompt, list(texts), options))
        seeds = [int.from_bytes(hashlib.sha256((prompt + text).encode()).digest()[:4], "big") for text in texts]
        return np.stack([np.random.default_rng(seed).standard_normal(16) for seed in seeds]).astype("f4")

    def encode_query(self, texts, **options):
        return self._encode(options.get("prompt", "query: "), texts, options)

    def encode_document(self, texts, **options):
        return self._encode(options.get("prompt", ""), texts, options)


@pytest.fixture
def encoder():
    return FakeEncoder()


@pytest.fixture
def make_encoder():
    return FakeEncoder
