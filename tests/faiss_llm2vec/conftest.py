"""A ten-line encoder and a store of it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from faiss_llm2vec import FaissStore


class FakeEncoder:
    """Vectors that depend on the text alone; counts what it encodes."""

    def __init__(self, dimension=16, fingerprint="fake-1"):
        self.dimension, self.fingerprint = dimension, fingerprint
        self.prompts = {"query": "search: ", "document": ""}
        self.encoded = []

    def get_embedding_dimension(self):
        return self.dimension

    def encode_document(self, texts, **kwargs):
        self.encoded += texts
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        return np.stack([np.random.default_rng(seed).standard_normal(self.dimension) for seed in seeds]).astype("f4")

    def encode_query(self, texts, **kwargs):
        return self.encode_document(texts)


@pytest.fixture
def encoder():
    return FakeEncoder()


@pytest.fixture
def make_encoder():
    return FakeEncoder


@pytest.fixture
def store(tmp_path, encoder):
    with FaissStore.create(tmp_path / "store", encoder) as store:
        yield store


@pytest.fixture
def reopen(encoder):
    """Closes a store and opens it again, as a new process would."""
    opened = []

    def reopen(store, **options):
        store.close()
        opened.append(FaissStore.open(store.path, encoder, **options))
        return opened[-1]

    yield reopen
    for store in opened:
        store.close()


@pytest.fixture
def now_and_later(reopen):
    """Yields the store as it is, then opened again, then opened again by mmap."""

    def stages(store):
        yield store
        yield reopen(store)
        yield reopen(store, mmap=True)

    return stages
