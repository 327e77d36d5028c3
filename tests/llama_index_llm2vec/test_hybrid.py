"""LlamaIndex's query modes for words, rerankers, and an index that knows what its store holds."""

from __future__ import annotations

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from llama_index_llm2vec import FaissVectorStore, LLM2VecEmbedding
from st_llm2vec.errors import InvalidInputError

TEXTS = {"code": "error E4217 in a module", "bears": "Bears hibernate in winter.", "rates": "Rates rose again."}


@pytest.fixture
def counted(encoder):
    """An encoder that remembers the documents it encoded."""
    encode, encoder.documents = encoder.encode_document, []

    def encode_document(texts, **options):
        encoder.documents += texts
        return encode(texts, **options)

    encoder.encode_document = encode_document
    return encoder


@pytest.fixture
def index(tmp_path, counted):
    store = FaissVectorStore(tmp_path / "words")
    index = store.as_index(LLM2VecEmbedding(counted))
    for name, text in TEXTS.items():
        index.insert(Document(text=text, id_=name, metadata={"name": name}, excluded_embed_metadata_keys=["name"]))
    yield index
    store.close()


@pytest.mark.parametrize("mode", ["hybrid", "text_search", "sparse"])
def test_words_are_found_through_a_retriever(index, mode):
    retriever = index.as_retriever(similarity_top_k=1, vector_store_query_mode=mode)
    best = retriever.retrieve("E4217")
    if mode != "hybrid":
        assert [node.get_content() for node in best] == [TEXTS["code"]]
    filters = MetadataFilters(filters=[MetadataFilter(key="name", value="rates")])
    retriever = index.as_retriever(similarity_top_k=3, vector_store_query_mode=mode, filters=filters)
    assert {node.get_content() for node in retriever.retrieve("E4217 rates")} == {TEXTS["rates"]}


def test_hybrid_search_counts_both_halves(index, counted):
    query = VectorStoreQuery(
        query_embedding=counted.encode_query([TEXTS["code"]])[0].tolist(),
        query_str="E4217",
        similarity_top_k=3,
        hybrid_top_k=2,
        mode=VectorStoreQueryMode.HYBRID,
    )
    result = index.vector_store.query(query)
    assert len(result.ids) == 2
    assert result.nodes[0].get_content() == TEXTS["code"] or result.similarities[0] > 1 / 61


def test_a_reranker_orders_nodes(index, counted):
    class ByLength:
        def predict(self, pairs):
            return [float(len(text)) for _, text in pairs]

    query = VectorStoreQuery(query_embedding=counted.encode_query(["x"])[0].tolist(), query_str="x", similarity_top_k=1)
    result = index.vector_store.query(query, rerank=ByLength())
    assert result.nodes[0].get_content() == max(TEXTS.values(), key=len)


@pytest.mark.parametrize("option", [{"alpha": 0.5}, {"sparse_top_k": 5}])
def test_what_has_no_meaning_here_is_refused(index, option):
    query = VectorStoreQuery(query_str="x", query_embedding=[1.0], mode=VectorStoreQueryMode.HYBRID, **option)
    with pytest.raises(InvalidInputError, match=next(iter(option))):
        index.vector_store.query(query)


def test_a_mode_that_is_not_known_names_those_that_are(index):
    query = VectorStoreQuery(query_str="x", query_embedding=[1.0], mode=VectorStoreQueryMode.SVM)
    with pytest.raises(InvalidInputError, match=r"'default', 'mmr', 'hybrid', 'text_search', 'sparse', got 'svm'"):
        index.vector_store.query(query)


@pytest.mark.parametrize("how", ["refresh", "arefresh"])
async def test_refreshing_embeds_only_what_changed(index, counted, how):
    again = index.vector_store.as_index(LLM2VecEmbedding(counted))
    documents = [
        Document(text=text, id_=name, metadata={"name": name}, excluded_embed_metadata_keys=["name"])
        for name, text in {**TEXTS, "rates": "Rates fell.", "new": "New."}.items()
    ]
    counted.documents.clear()
    refresh = again.refresh_ref_docs if how == "refresh" else again.arefresh_ref_docs
    found = refresh(documents)
    assert (found if how == "refresh" else await found) == [False, False, True, True]
    assert counted.documents == ["Rates fell.", "New."]
    texts = sorted(node.get_content() for node in index.vector_store.get_nodes())
    assert texts == sorted([TEXTS["code"], TEXTS["bears"], "Rates fell.", "New."])
    assert isinstance(again, VectorStoreIndex)
