"""FaissVectorStore as LlamaIndex uses it, and what only it does."""

from __future__ import annotations

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.schema import ImageNode, IndexNode, TextNode
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery, VectorStoreQueryMode

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
    with pytest.raises(StoreMismatchError, match="dimension 3"):
        store.add([TextNode(text="b", embedding=[1.0, 0.0, 0.0])])
    store.close()
    FaissVectorStore(path=tmp_path / "store").close()
    with pytest.raises(StoreMismatchError, match="metric='l2', not 'cosine'"):
        FaissVectorStore(path=tmp_path / "store", metric="cosine")


def test_bad_input_is_refused_and_nothing_lost(store):
    store.add([TextNode(text="a", embedding=[1.0, 0.0])])
    with pytest.raises(InvalidInputError, match="flatten"):
        store.add([TextNode(text="b", embedding=[1.0, 0.0], metadata={"deep": {"er": 1}})])
    with pytest.raises(ValueError, match="embedding not set"):
        store.add([TextNode(text="b")])
    with pytest.raises(InvalidInputError, match="clear"):
        store.delete_nodes(filters=MetadataFilters(filters=[]))
    with pytest.raises(InvalidInputError, match="'hybrid' is not vector search"):
        store.query(VectorStoreQuery(query_embedding=[1.0, 0.0], mode=VectorStoreQueryMode.HYBRID))
    with pytest.raises(InvalidInputError, match="no query_embedding"):
        store.query(VectorStoreQuery(query_str="text"))
    assert store.client.count() == 1


async def test_nodes_are_got_without_blocking_the_event_loop(store):
    store.add([TextNode(id_="a", text="a", embedding=[1.0, 0.0])])
    assert [node.node_id for node in await store.aget_nodes(["a"])] == ["a"]
