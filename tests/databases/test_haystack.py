"""Haystack needs nothing of ours: its SentenceTransformers components open our folder."""

from __future__ import annotations

import pytest
from haystack import Document, Pipeline
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice

TEXTS = ["Bears hibernate in winter.", "The central bank raised its rates.", "Bread needs flour, water and yeast."]


@pytest.fixture
def folder(encoder, tmp_path):
    encoder.save_pretrained(str(tmp_path / "encoder"))
    return str(tmp_path / "encoder")


def test_its_components_give_our_vectors_and_find(folder, encoder):
    from haystack.components.embedders import SentenceTransformersDocumentEmbedder, SentenceTransformersTextEmbedder
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever

    device = ComponentDevice.from_str("cpu")
    documents = SentenceTransformersDocumentEmbedder(folder, device=device, progress_bar=False)
    documents.warm_up()
    embedded = documents.run([Document(content=text) for text in TEXTS])["documents"]
    expected = encoder.encode_document(TEXTS)
    for document, vector in zip(embedded, expected, strict=True):
        assert document.embedding == pytest.approx(vector.tolist(), abs=1e-5)

    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    store.write_documents(embedded)
    pipeline = Pipeline()
    query = SentenceTransformersTextEmbedder(folder, device=device, prefix=encoder.prompts.get("query") or "")
    pipeline.add_component("query", query)
    pipeline.add_component("find", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("query.embedding", "find.query_embedding")
    found = pipeline.run({"query": {"text": "What do animals do when it is cold?"}})["find"]["documents"]
    best = int((expected @ encoder.encode_query(["What do animals do when it is cold?"])[0]).argmax())
    assert found[0].content == TEXTS[best]
