"""Fixtures that every folder of tests may use; no test touches the network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
from tiny_models import save_decoder, tiny_tokenizer


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama without BOS: a row of the table that stock classes serve."""
    return save_decoder(tmp_path_factory.mktemp("decoder") / "tiny-llama", tie_word_embeddings=False)


@pytest.fixture(scope="session")
def bos_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose tokenizer puts a BOS token first: stock mean pooling would pool it."""
    return save_decoder(tmp_path_factory.mktemp("decoder") / "bos-llama", tokenizer=tiny_tokenizer(bos=True))
