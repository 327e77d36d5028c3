"""KeyBERT and BERTopic take the model that they are given, and not another that they download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import st_llm2vec

TEXTS = ["Bears hibernate in winter.", "The bank raised its rates."]


@pytest.fixture(params=["alias", "load"])
def model(request: pytest.FixtureRequest) -> Any:
    return (SentenceTransformer if request.param == "alias" else st_llm2vec.load)("llm2vec-tiny", device="cpu")


@pytest.fixture(params=["name", "folder"])
def name(request: pytest.FixtureRequest, encoder: Any, tmp_path: Path) -> str:
    """What a library opens by itself."""
    if request.param == "name":
        return "llm2vec-tiny"
    encoder.save_pretrained(str(tmp_path / "encoder"))
    return str(tmp_path / "encoder")


def test_names_and_folders(name: str, encoder: Any) -> None:
    from bertopic.backend._utils import select_backend
    from keybert import KeyBERT

    np.testing.assert_allclose(KeyBERT(name).model.embed(TEXTS), encoder.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(select_backend(name).embed(TEXTS), encoder.encode(TEXTS), atol=1e-5)


def test_keybert(model: Any) -> None:
    from keybert import KeyBERT

    keybert = KeyBERT(model)
    assert keybert.model.embedding_model is model
    assert keybert.extract_keywords("compress a file with gzip and list the folder", top_n=2)


def test_bertopic(model: Any) -> None:
    from bertopic.backend._utils import select_backend

    assert select_backend(model).embedding_model is model
