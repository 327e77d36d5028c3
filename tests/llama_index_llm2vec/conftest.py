"""A ten-line encoder."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest


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


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(abilities): what a vector store must be able to do")
