"""FaissVectorStore as LlamaIndex uses it, and what only it does."""

from __future__ import annotations

import numpy as np
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import ImageNode, IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from llama_index_llm2vec import FaissVectorStore, LLM2VecEmbedding
from st_llm2vec.errors import InvalidInputError, StoreMismatchError


@pytest.fixture
def store(tmp_path):
    store = FaissVectorStore(path=tmp_path / "store")
    yield store
    store.close()


def test_an_index_is_rebuilt_from_the_store_alone(store, encoder, tmp_path):
    embed_model = LLM2VecEmbedding(encoder, query_instruction="")
    context = StorageContext.from_defaults(vector_store=store)
    documents = [Document(text=f"text {i}", id_=f"doc-{i}", metadata={"n": i}) for i in range(5)]
    index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=embed_model)
    context.persist(persist_dir=str(tmp_path / "context"))
    index.delete_ref_doc("doc-1")
    store.close()

    again = FaissVectorStore(path=tmp_path / "store")
    index = VectorStoreIndex.from_vector_store(again, embed_model)
    # LlamaIndex puts the metadata into the text that it embeds.
    (hit,) = index.as_retriever(similarity_top_k=1).retrieve("n: 3\n\ntext 3")
    assert (hit.text, hit.metadata, hit.node.ref_doc_id) == ("text 3", {"n": 3}, "doc-3")
    assert hit.score == pytest.approx(1)
    assert len(index.as_retriever(similarity_top_k=10).retrieve("text")) == 4
    index.insert(Document(text="late", id_="doc-9"))
    assert [n.text for n in again.get_nodes()][-1] == "late"
    again.close()


@pytest.mark.parametrize(
    "node",
    [
        TextNode(text="", metadata={"empty": [], "none": None, "list": [1, "two", 3.0, True]}, embedding=[1.0, 0.0]),
        IndexNode(text="index", index_id="other", embedding=[1.0, 0.0]),
        ImageNode(text="image", image="aGk=", embedding=[1.0, 0.0]),
    ],
    ids=lambda node: node.class_name(),
)
def test_nodes_of_every_class_come_back_whole(store, node):
    store.add([node])
    (found,) = store.get_nodes([node.node_id])
    assert found.to_dict() == node.to_dict()  # its vector, too: it can be added again


def test_arguments_hold_for_the_store_that_is_there(tmp_path):
    store = FaissVectorStore(path=tmp_path / "store", metric="l2")
    store.add([TextNode(text="a", embedding=[1.0, 0.0])])
    result = store.query(VectorStoreQuery(query_embedding=[1.0, 2.0]))
    assert result.similarities == pytest.approx([-2.0])
    with pytest.raises(StoreMismatchError, match="dimension 2, got 3"):
        store.add([TextNode(text="b", embedding=[1.0, 0.0, 0.0])])
    store.close()
    FaissVectorStore(path=tmp_path / "store").close()
    with pytest.raises(StoreMismatchError, match=r"metric must be 'l2', .* got 'cosine'"):
        FaissVectorStore(path=tmp_path / "store", metric="cosine")


def test_bad_input_is_refused_and_nothing_lost(store):
    store.add([TextNode(text="a", embedding=[1.0, 0.0])])
    with pytest.raises(InvalidInputError, match="flatten"):
        store.add([TextNode(text="b", embedding=[1.0, 0.0], metadata={"deep": {"er": 1}})])
    with pytest.raises(ValueError, match="embedding not set"):
        store.add([TextNode(text="b")])
    with pytest.raises(InvalidInputError, match="clear"):
        store.delete_nodes(filters=MetadataFilters(filters=[]))
    with pytest.raises(InvalidInputError, match="'hybrid' and rerank need the text"):
        store.query(VectorStoreQuery(query_embedding=[1.0, 0.0], mode=VectorStoreQueryMode.HYBRID))
    with pytest.raises(InvalidInputError, match="no query_embedding"):
        store.query(VectorStoreQuery(query_str="text"))
    assert store.client.count() == 1


async def test_nodes_are_got_without_blocking_the_event_loop(store):
    store.add([TextNode(id_="a", text="a", embedding=[1.0, 0.0])])
    assert [node.node_id for node in await store.aget_nodes(["a"])] == ["a"]


# -- an empty list is not a missing one --------------------------------------------------------------------------------


def test_empty_lists_of_ids_find_nothing(store):
    store.add([TextNode(id_=i, text=i, embedding=[1.0, 0.0]) for i in "ab"])
    for given in ({"doc_ids": []}, {"node_ids": []}, {"doc_ids": [], "query_str": "text"}):
        assert store.query(VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=9, **given)).ids == []
    assert store.get_nodes([]) == []
    store.delete_nodes([])
    assert len(store.get_nodes()) == 2


def test_an_index_finds_among_all_nodes_and_among_no_documents(store, encoder):
    index = VectorStoreIndex.from_vector_store(store, LLM2VecEmbedding(encoder))
    index.insert(Document(text="one", id_="doc-1"))
    assert len(index.as_retriever(similarity_top_k=np.int64(5)).retrieve("one")) == 1  # which asks with node_ids=[]
    assert index.as_retriever(doc_ids=[]).retrieve("one") == []
    assert len(index.as_retriever(doc_ids=["doc-1"]).retrieve("one")) == 1


# -- queries -----------------------------------------------------------------------------------------------------------


def test_mmr_of_an_empty_store(store, encoder):
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=3, mode=VectorStoreQueryMode.MMR)
    assert store.query(query).ids == []
    index = VectorStoreIndex.from_vector_store(store, LLM2VecEmbedding(encoder))
    assert index.as_retriever(vector_store_query_mode="mmr").retrieve("text") == []


def test_a_query_without_text_returns_the_first_that_pass_its_filters(store, encoder):
    store.add([TextNode(id_=f"n{i}", text="t", metadata={"n": i}, embedding=[1.0, float(i)]) for i in range(9)])
    filters = MetadataFilters(filters=[MetadataFilter(key="n", operator=">", value=2)])
    result = store.query(VectorStoreQuery(query_str="", similarity_top_k=3, filters=filters))
    assert (result.ids, result.similarities) == (["n3", "n4", "n5"], None)
    assert [node.node_id for node in result.nodes] == result.ids
    # AutoRetriever asks an index so, if the model that writes its queries wrote none.
    index = VectorStoreIndex.from_vector_store(store, LLM2VecEmbedding(encoder))
    hits = index.as_retriever(similarity_top_k=2, filters=filters).retrieve("")
    assert [(hit.node.node_id, hit.score) for hit in hits] == [("n3", None), ("n4", None)]
    for bare in ({}, {"query_str": ""}, {"query_str": "text", "filters": filters}):
        with pytest.raises(InvalidInputError, match="no query_embedding"):
            store.query(VectorStoreQuery(**bare))


def test_options_of_a_query(store):
    store.add([TextNode(id_=n, text=n, embedding=v) for n, v in (("a", [1, 0]), ("b", [1, 0.01]), ("c", [0.6, 0.8]))])
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=2, mode=VectorStoreQueryMode.MMR)
    assert store.query(query, mmr_threshold=0.3, mmr_prefetch_factor=1.5).ids == ["a", "c"]
    assert store.query(query, mmr_threshold=0.3, mmr_prefetch_factor=1.0).ids == ["a", "b"]
    assert store.query(query, mmr_threshold=0.3, mmr_prefetch_k=np.int64(2)).ids == ["a", "b"]
    with pytest.raises(InvalidInputError, match="unexpected mmr_treshold"):
        store.query(query, mmr_treshold=0.3)
    with pytest.raises(InvalidInputError, match="'hybrid' and rerank need the text"):
        store.query(VectorStoreQuery(query_embedding=[1.0, 0.0], mode="hybrid"))


# -- nodes -------------------------------------------------------------------------------------------------------------


def test_nodes_can_be_added_again_elsewhere(store, tmp_path):
    store.add([TextNode(id_=f"n{i}", text=f"t{i}", embedding=[1.0, float(i)]) for i in range(5)])
    query = VectorStoreQuery(query_embedding=[1.0, 2.0], similarity_top_k=3)
    other = FaissVectorStore(path=tmp_path / "other")
    for nodes in (store.query(query).nodes, store.get_nodes(), store.get_nodes(["n1"])):
        other.add(nodes)
    assert other.query(query).ids == store.query(query).ids
    assert other.query(query).similarities == pytest.approx(store.query(query).similarities)
    (node,) = store.get_nodes(["n1"])
    assert node.get_embedding() == pytest.approx([0.5**0.5] * 2)
    other.close()


def test_metadata_of_numpy_is_stored(store):
    odd = {"int": np.int64(3), "float": np.float32(0.5), "yes": np.bool_(True), "list": [np.int8(1), "x"]}
    source = RelatedNodeInfo(node_id="d", metadata=odd)
    node = TextNode(id_="a", text="t", metadata=odd, relationships={NodeRelationship.SOURCE: source}, embedding=[1, 0])
    store.add([node])
    (found,) = store.get_nodes(["a"], MetadataFilters(filters=[MetadataFilter(key="int", value=3)]))
    assert found.metadata == found.source_node.metadata == {"int": 3, "float": 0.5, "yes": True, "list": [1, "x"]}
    assert node.metadata is not found.metadata
    assert isinstance(node.metadata["int"], np.int64)  # the caller's node is left alone


# -- an index without its document store -------------------------------------------------------------------------------


def document(number, text=None):
    return Document(text=text or f"Text {number}. " + "A sentence. " * 60, id_=f"doc-{number}", metadata={"n": number})


@pytest.mark.parametrize("how", ["refresh", "arefresh", "insert"])
async def test_a_document_that_is_there_is_not_doubled(store, encoder, how):
    model, parts = LLM2VecEmbedding(encoder), [SentenceSplitter(chunk_size=60, chunk_overlap=0)]
    context = StorageContext.from_defaults(vector_store=store)
    documents = [document(i) for i in range(3)]
    VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=model, transformations=parts)
    before = [node.get_content() for node in store.get_nodes()]
    assert len(before) > 6
    index = VectorStoreIndex.from_vector_store(store, model, transformations=parts)
    if how == "refresh":
        index.refresh_ref_docs([*documents, document(3)])
        assert index.refresh_ref_docs([*documents, document(3)]) == [False] * 4
    elif how == "arefresh":
        await index.arefresh_ref_docs([*documents, document(3)])
    else:
        for one in [*documents, document(3)]:
            index.insert(one)
    after = [node.get_content() for node in store.get_nodes() if node.ref_doc_id != "doc-3"]
    assert sorted(after) == sorted(before)
    ids = {node.node_id for node in store.get_nodes()}
    for node in store.get_nodes():  # the neighbours are the new ones
        assert {part.node_id for part in (node.prev_node, node.next_node) if part} <= ids


def test_a_document_in_batches_keeps_all_its_parts(store, encoder):
    text = "\n\n".join(f"Part {i}." for i in range(40))
    splitter = SentenceSplitter(chunk_size=12, chunk_overlap=0, include_prev_next_rel=False)
    index = VectorStoreIndex.from_vector_store(
        store, LLM2VecEmbedding(encoder), transformations=[splitter], insert_batch_size=3
    )
    plain = Document(text=text, id_="long")
    index.insert(plain)
    assert len(store.get_nodes()) == len(splitter([plain])) > 9


def test_another_version_that_stays_is_told(store, encoder):
    model = LLM2VecEmbedding(encoder)
    VectorStoreIndex.from_vector_store(store, model).insert(document(1))
    index = VectorStoreIndex.from_vector_store(store, model)
    with pytest.warns(UserWarning, match=r"older versions of 'doc-1' .*update_ref_doc"):
        index.refresh_ref_docs([document(1, "changed")])
    index.update_ref_doc(document(1, "again"))  # without a warning
    assert [node.get_content() for node in store.get_nodes()] == ["again"]


# -- the embedding model -----------------------------------------------------------------------------------------------


def test_a_store_refuses_another_embedding_model(tmp_path, make_encoder):
    path, other = tmp_path / "store", make_encoder()
    other.fingerprint = "fake-2"
    FaissVectorStore(path, embed_model=LLM2VecEmbedding(make_encoder())).close()
    again = FaissVectorStore(path, embed_model=LLM2VecEmbedding(make_encoder()))
    again.close()
    FaissVectorStore.from_dict(again.to_dict()).close()
    FaissVectorStore(path).close()
    with pytest.raises(StoreMismatchError, match=r"LLM2VecEmbedding\(fake-1\).*LLM2VecEmbedding\(fake-2\)"):
        FaissVectorStore(path, embed_model=LLM2VecEmbedding(other))
    with pytest.raises(StoreMismatchError, match="doc: "):
        FaissVectorStore(path, embed_model=LLM2VecEmbedding(make_encoder(), text_instruction="doc: "))
    FaissVectorStore(path, embed_model=LLM2VecEmbedding(other), fingerprint="LLM2VecEmbedding(fake-1)").close()


def test_a_node_of_no_document_is_not_of_one_called_none(store):
    node = TextNode(text="alone", embedding=[1.0] + [0.0] * 15)
    store.add([node])
    (record,) = store.client.get(where={})
    assert [record.metadata.get(name) for name in ("document_id", "doc_id", "ref_doc_id")] == [None] * 3
