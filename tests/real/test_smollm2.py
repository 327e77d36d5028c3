"""llm2vec-smollm2, the encoder of models/smollm2, made from its adapters and the decoder of `make model`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_llm2vec import LLM2Vec
from st_llm2vec.templates import TEMPLATES
from st_llm2vec_smollm2.decoder import decoder, fetched_file

QUESTIONS = [
    "how do bees make honey",
    "why did the stock market fall",
    "symptoms of the flu",
    "who wrote Hamlet",
    "how to boil an egg",
]
PASSAGES = [
    "Worker bees collect nectar from flowers and evaporate its water in the hive.",
    "Shares dropped sharply on Monday after the central bank raised interest rates.",
    "Influenza usually begins with fever, a dry cough, headache and aching muscles.",
    "The tragedy of the prince of Denmark is a play by William Shakespeare.",
    "Put it into hot water and let it simmer for seven minutes, then cool and peel it.",
]


@pytest.fixture(scope="module")
def model(gguf_file: Path) -> SentenceTransformer:
    fetched_file().parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(gguf_file, fetched_file())
    assert decoder() == str(fetched_file())
    return SentenceTransformer("llm2vec-smollm2", device="cpu")


def test_questions_find_their_passages(model: SentenceTransformer) -> None:
    for dimensions in (576, 64):
        options = {"truncate_dim": dimensions, "normalize_embeddings": True}
        scores = model.encode_query(QUESTIONS, **options) @ model.encode_document(PASSAGES, **options).T
        assert scores.argmax(1).tolist() == [0, 1, 2, 3, 4], f"{dimensions} dimensions: {scores.round(2)}"


def test_it_is_what_it_says(model: SentenceTransformer) -> None:
    assert isinstance(model, LLM2Vec)
    assert model[0].attention == "bidirectional"
    assert [source["name"] for source in model.provenance["checkpoints"]][:2] == ["mntp", "supervised"]
    assert model.provenance["license"] == "apache-2.0"
    assert model[0].status["packed"]
    mntp = SentenceTransformer("llm2vec-smollm2-mntp", device="cpu")
    first, second = (each.encode(PASSAGES, normalize_embeddings=True) for each in (mntp, model))
    assert np.abs(first @ first.T - np.eye(5)).mean() > 2 * np.abs(second @ second.T - np.eye(5)).mean()


def test_without_labels_it_is_causal_and_asked_for_one_word(model: SentenceTransformer) -> None:
    unsup = SentenceTransformer("llm2vec-smollm2-unsup", device="cpu")
    assert isinstance(unsup, LLM2Vec)
    assert (unsup[0].attention, unsup.pooling_mode) == ("causal", "last_token")
    assert unsup[0].text_template == TEMPLATES["prompt-eol"]
    sides = [
        ["A man plays a guitar.", "The market fell.", "It rains."],
        ["Someone is making music.", "Shares lost value.", "The weather is wet."],
    ]
    left, right = (unsup.encode(side, normalize_embeddings=True) for side in sides)
    assert (left @ right.T).argmax(1).tolist() == [0, 1, 2]
