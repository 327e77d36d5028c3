"""Haystack needs nothing of ours: its SentenceTransformers components open our folder."""

from __future__ import annotations

import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.sentence_transformers import (
    SentenceTransformersDocumentEmbedder,
    SentenceTransformersTextEmbedder,
)

QUESTION = "What do animals do when it is cold?"
TEXTS = ["Bears hibernate in winter.", "The central bank raised its rates.", "Bread needs flour, water and yeast."]


@pytest.fixture
def folder(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "prompts", {"query": "find: ", "document": ""})
    encoder.save_pretrained(str(tmp_path / "encoder"))
    return str(tmp_path / "encoder")


def test_its_components_give_our_vectors_and_find(folder, encoder):
    options = {"model": folder, "device": ComponentDevice.from_str("cpu"), "progress_bar": False}
    documents = SentenceTransformersDocumentEmbedder(**options, encode_kwargs={"prompt_name": "document"})
    query = SentenceTransformersTextEmbedder(**options, encode_kwargs={"prompt_name": "query"})

    embedded = documents.run([Document(content=text) for text in TEXTS])["documents"]
    expected = encoder.encode_document(TEXTS)
    for document, vector in zip(embedded, expected, strict=True):
        assert document.embedding == pytest.approx(vector.tolist(), abs=1e-5)

    store = InMemoryDocumentStore(embedding_similarity_function="dot_product")
    store.write_documents(embedded)
    pipeline = Pipeline()
    pipeline.add_component("query", query)
    pipeline.add_component("find", InMemoryEmbeddingRetriever(store))
    pipeline.connect("query.embedding", "find.query_embedding")
    found = pipeline.run({"query": {"text": QUESTION}})["find"]["documents"]
    ranked = (expected @ encoder.encode_query([QUESTION])[0]).argsort()[::-1]
    assert [document.content for document in found] == [TEXTS[row] for row in ranked]
