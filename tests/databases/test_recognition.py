"""KeyBERT and BERTopic take the model that they are given, and not another that they download."""

from __future__ import annotations

from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

import st_llm2vec


@pytest.fixture(params=["alias", "load"])
def model(request: pytest.FixtureRequest) -> Any:
    return (SentenceTransformer if request.param == "alias" else st_llm2vec.load)("llm2vec-tiny", device="cpu")


def test_keybert(model: Any) -> None:
    from keybert import KeyBERT

    keybert = KeyBERT(model)
    assert keybert.model.embedding_model is model
    assert keybert.extract_keywords("compress a file with gzip and list the folder", top_n=2)


def test_bertopic(model: Any) -> None:
    from bertopic.backend._utils import select_backend

    assert select_backend(model).embedding_model is model
