"""FaissVectorStore where LangChain's suite does not look: filters, scores, mmr, retrievers, indexing, reopening."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import Field

from faiss_llm2vec import FaissStore
from faiss_llm2vec.diversity import diverse
from langchain_llm2vec import FaissVectorStore, LLM2VecEmbeddings
from st_llm2vec.errors import InvalidInputError, StoreExistsError, StoreLockedError, StoreMismatchError

DOCUMENTS = [
    Document(id=f"d{i}", page_content=f"text {i}", metadata={"n": i, "even": i % 2 == 0, "tags": ["a", "b"][: i % 3]})
    for i in range(20)
]


@pytest.fixture
def embeddings(encoder):
    return LLM2VecEmbeddings(encoder, query_encode_kwargs={"prompt": ""})  # queries find their own text


@pytest.fixture
def store(embeddings, tmp_path):
    store = FaissVectorStore.from_documents(DOCUMENTS, embeddings, path=tmp_path / "store")
    yield store
    store.close()


def numbers(documents):
    return {document.metadata["n"] for document in documents}


def test_documents_come_back_as_they_were(store):
    assert store.similarity_search("text 7", k=1) == [DOCUMENTS[7]]
    assert store.get_by_ids(["d3", "nothing", "d1"]) == [DOCUMENTS[3], DOCUMENTS[1]]


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"n": 3}, {3}),
        ({"n": {"$gte": 18}}, {18, 19}),
        ({"even": True, "n": {"$lt": 4}}, {0, 2}),
        ({"$or": [{"n": 1}, {"$not": {"n": {"$lt": 19}}}]}, {1, 19}),
        ({"tags": "b", "n": {"$in": [1, 2, 5]}}, {2, 5}),
        ({"missing": {"$exists": True}}, set()),
    ],
    ids=str,
)
def test_filters_hold_in_every_kind_of_search(store, embeddings, filter, expected):
    vector = embeddings.embed_query("text 7")
    assert numbers(store.similarity_search("text 7", k=20, filter=filter)) == expected
    assert numbers(store.similarity_search_by_vector(vector, k=20, filter=filter)) == expected
    assert numbers(store.max_marginal_relevance_search("text 7", k=20, filter=filter)) == expected
    assert (
        numbers(document for document, _ in store.similarity_search_with_score("text 7", k=20, filter=filter))
        == expected
    )
    retriever = store.as_retriever(search_kwargs={"k": 20, "filter": filter})
    assert numbers(retriever.invoke("text 7")) == expected


def test_retrievers(store):
    assert store.as_retriever(search_kwargs={"k": 3}).invoke("text 7")[0] == DOCUMENTS[7]
    strict = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99})
    assert strict.invoke("text 7") == [DOCUMENTS[7]]
    diverse = store.as_retriever(search_type="mmr", search_kwargs={"k": 4, "fetch_k": 10, "lambda_mult": 0.3})
    found = diverse.invoke("text 7")
    assert found[0] == DOCUMENTS[7]
    assert len(found) == 4


async def test_the_async_twins_agree(store):
    threshold = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99})
    assert await threshold.ainvoke("text 7") == [DOCUMENTS[7]]
    assert await store.as_retriever(search_type="mmr").ainvoke("text 7") == store.max_marginal_relevance_search(
        "text 7"
    )
    assert await store.asimilarity_search_with_score("text 7") == store.similarity_search_with_score("text 7")


def test_mmr_prefers_what_differs(tmp_path, encoder):
    with_vectors = [("near", [1.0, 0.0]), ("near again", [1.0, 0.01]), ("far", [0.6, 0.8])]
    store = FaissVectorStore(LLM2VecEmbeddings(encoder), tmp_path / "store")
    store.add_embeddings(with_vectors)
    search = store.max_marginal_relevance_search_by_vector
    assert [d.page_content for d in search([1.0, 0.0], k=2, lambda_mult=0.3)] == ["near", "far"]
    assert [d.page_content for d in search([1.0, 0.0], k=2, lambda_mult=1.0)] == ["near", "near again"]
    assert [d.page_content for d in search([1.0, 0.0], k=2, fetch_k=2, lambda_mult=0.3)] == ["near", "near again"]
    store.close()


@pytest.mark.parametrize("relevance", [0.0, 0.3, 0.7, 1.0])
def test_mmr_picks_what_langchains_own_picks(relevance):
    generator = np.random.default_rng(0)
    query, vectors = generator.standard_normal(8), generator.standard_normal((30, 8))
    # From the third pick on, the most similar of all that were picked counts, not the last one.
    expected = maximal_marginal_relevance(query, list(vectors), relevance, 10)
    assert diverse(query, vectors, 10, relevance) == expected


@pytest.mark.parametrize(
    ("metric", "score", "relevance"),
    [("cosine", [1.0, 0.6, -1.0], [1.0, 0.6, 0.0]), ("l2", [0.0, -(0.8**0.5), -2.0], [1.0, 1 / (1 + 0.8**0.5), 1 / 3])],
)
def test_scores_and_relevance(tmp_path, encoder, metric, score, relevance):
    store = FaissVectorStore(LLM2VecEmbeddings(encoder), tmp_path / "store", metric=metric)
    same, near, opposite = [1.0] + [0.0] * 15, [0.6, 0.8] + [0.0] * 14, [-1.0] + [0.0] * 15
    store.add_embeddings([("same", same), ("near", near), ("opposite", opposite)], [{"n": 0}, None, {"n": 1}])
    assert [s for _, s in store.similarity_search_with_score_by_vector(same)] == pytest.approx(score)
    encoder.encode_query = lambda texts, **options: __import__("numpy").array([same], "f4")
    found = store.similarity_search_with_relevance_scores("anything")
    assert [s for _, s in found] == pytest.approx(relevance)
    store.close()


def test_inner_products_are_no_relevance(tmp_path, embeddings):
    store = FaissVectorStore.from_texts(["a"], embeddings, path=tmp_path / "store", metric="dot")
    assert store.similarity_search_with_score("a")[0][1] == pytest.approx(
        sum(x * x for x in embeddings.embed_query("a"))
    )
    with pytest.raises(InvalidInputError, match="no bounds"):
        store.similarity_search_with_relevance_scores("a")
    store.close()


def test_delete_by_ids_by_filter_and_everything(store):
    assert store.delete(["d0", "nothing"])
    assert store.delete(filter={"n": {"$gte": 2}})
    assert numbers(store.similarity_search("text 1", k=20)) == {1}
    store.delete()
    assert store.similarity_search("text 1") == []


def test_an_existing_id_is_replaced_and_missing_ids_are_made(store):
    ids = store.add_texts(["new", "newer"], [{"n": 100}, {"n": 101}], ids=["d0", None])
    assert ids[0] == "d0"
    assert len(ids[1]) == 32
    assert store.get_by_ids(ids) == [
        Document(id="d0", page_content="new", metadata={"n": 100}),
        Document(id=ids[1], page_content="newer", metadata={"n": 101}),
    ]
    assert store.similarity_search("text 0", k=20, filter={"n": 0}) == []


def test_indexing_writes_only_what_changed(store, encoder):
    store.delete()
    manager = InMemoryRecordManager("test")
    manager.create_schema()

    def run(documents):
        result = index(documents, manager, store, cleanup="full", source_id_key="n", key_encoder="sha256")
        return result["num_added"], result["num_skipped"], result["num_deleted"]

    assert run(DOCUMENTS) == (20, 0, 0)
    encoded = len(encoder.calls)
    assert run(DOCUMENTS) == (0, 20, 0)
    assert len(encoder.calls) == encoded
    changed = Document(page_content="other", metadata={"n": 19})
    assert run([*DOCUMENTS[:5], changed]) == (1, 5, 15)
    assert numbers(store.similarity_search("other", k=50)) == {0, 1, 2, 3, 4, 19}


def test_a_folder_can_be_opened_again_with_its_model_only(store, encoder, embeddings, tmp_path):
    store.close()
    again = FaissVectorStore(embeddings, tmp_path / "store")
    assert again.similarity_search("text 7", k=1) == [DOCUMENTS[7]]
    again.close()
    with FaissStore.open(tmp_path / "store", encoder) as raw:  # the model itself has the same fingerprint
        assert raw.count() == 20
    with pytest.raises(StoreMismatchError, match="DeterministicFakeEmbedding"):
        FaissVectorStore(DeterministicFakeEmbedding(size=16), tmp_path / "store")
    with pytest.raises(StoreMismatchError, match=r"metric must be 'cosine', .* got 'l2'"):
        FaissVectorStore(embeddings, tmp_path / "store", metric="l2")
    with pytest.raises(StoreExistsError, match="20 documents"):
        FaissVectorStore.from_texts(["a"], embeddings, path=tmp_path / "store")


def test_without_a_fingerprint_class_and_model_name_stand_in(tmp_path):
    class HostedEmbeddings(DeterministicFakeEmbedding):
        model: str = "text-1"

    FaissVectorStore.from_texts(["a"], HostedEmbeddings(size=8), path=tmp_path / "store").close()
    with pytest.raises(StoreMismatchError, match=r"HostedEmbeddings text-1.*HostedEmbeddings text-2"):
        FaissVectorStore(HostedEmbeddings(size=8, model="text-2"), tmp_path / "store")
    other_size = FaissVectorStore(HostedEmbeddings(size=9), tmp_path / "store")
    with pytest.raises(StoreMismatchError, match="dimension 8, got 9"):
        other_size.similarity_search("a")
    other_size.close()


def test_misspelt_arguments_are_refused(store):
    with pytest.raises(InvalidInputError, match="no option 'filters'"):
        store.similarity_search("a", filters={"n": 1})
    for call in (
        lambda: store.add_texts(["a"], metadata=[{"n": 1}]),
        lambda: store.delete(id=["d1"]),
    ):
        with pytest.raises(TypeError, match="unexpected"):
            call()
    assert store.store.count() == 20


def test_nested_metadata_is_refused_as_a_whole(store):
    with pytest.raises(InvalidInputError, match="flatten"):
        store.add_texts(["fine", "not"], [{"n": 1}, {"n": {"deep": 1}}])
    assert store.store.count() == 20


# -- embeddings in wrappers --------------------------------------------------------------------------------------------


class CacheBacked(Embeddings):
    """As LangChain's CacheBackedEmbeddings, which langchain_core does not have."""

    def __init__(self, embeddings):
        self.underlying_embeddings = embeddings

    def embed_documents(self, texts):
        return self.underlying_embeddings.embed_documents(texts)

    def embed_query(self, text):
        return self.underlying_embeddings.embed_query(text)


def test_a_cache_has_the_fingerprint_of_the_embeddings_under_it(store, embeddings, make_encoder, tmp_path):
    store.close()
    cached = FaissVectorStore(CacheBacked(embeddings), tmp_path / "store")
    assert cached.similarity_search("text 7", k=1) == [DOCUMENTS[7]]
    cached.close()
    other = make_encoder()
    other.fingerprint = "fake-2"
    with pytest.raises(StoreMismatchError, match=r"'fake-1'.*'fake-2'"):
        FaissVectorStore(CacheBacked(LLM2VecEmbeddings(other)), tmp_path / "store")
    same = FaissVectorStore(CacheBacked(LLM2VecEmbeddings(other)), tmp_path / "store", fingerprint="fake-1")
    same.add_texts(["one more"])
    same.close()


def test_a_prompt_before_documents_makes_another_model(encoder, tmp_path):
    prompted = LLM2VecEmbeddings(encoder, encode_kwargs={"prompt": "passage: "})
    FaissVectorStore.from_texts(["a"], prompted, path=tmp_path / "store").close()
    FaissVectorStore(prompted, tmp_path / "store").close()
    with pytest.raises(StoreMismatchError, match="passage: "):
        FaissVectorStore(LLM2VecEmbeddings(encoder), tmp_path / "store")


# -- without blocking the event loop -----------------------------------------------------------------------------------


class AsyncOnly(DeterministicFakeEmbedding):
    """Embeddings of a server that is asked by the async methods only, and only on the event loop."""

    fingerprint: str = "async"
    asked: list = Field(default_factory=list)

    def embed_documents(self, texts):
        raise AssertionError("the sync method was called")

    embed_query = embed_documents

    async def aembed_documents(self, texts):
        assert asyncio.get_running_loop()
        self.asked.append(list(texts))
        return [DeterministicFakeEmbedding.embed_query(self, text) for text in texts]

    async def aembed_query(self, text):
        self.asked.append(text)
        return DeterministicFakeEmbedding.embed_query(self, text)


async def test_async_methods_await_those_of_the_embeddings(tmp_path):
    embeddings = AsyncOnly(size=8)
    store = await FaissVectorStore.afrom_documents(DOCUMENTS, embeddings, path=tmp_path / "store")
    assert embeddings.asked == [[document.page_content for document in DOCUMENTS]]
    assert await store.aadd_texts(["new", "newer"], [None, {"n": 21}], ids=["new", None]) != ["new", None]
    assert [d.metadata for d in store.get_by_ids(["new"])] == [{}]
    assert await store.aadd_documents(DOCUMENTS[:1]) == ["d0"]
    assert await store.asimilarity_search("text 7", k=1) == [DOCUMENTS[7]]
    assert numbers(await store.asimilarity_search("text 7", k=np.int64(2), filter={"n": {"$lt": 2}})) == {0, 1}
    ((found, score),) = await store.asimilarity_search_with_score("text 7", k=1)
    assert (found, score) == (DOCUMENTS[7], pytest.approx(1))
    assert (await store.asimilarity_search_with_relevance_scores("text 7", k=1))[0][0] == DOCUMENTS[7]
    assert len(await store.amax_marginal_relevance_search("text 7", k=3, fetch_k=9, lambda_mult=0.2)) == 3
    for search_type in ("similarity", "mmr", "similarity_score_threshold"):
        options = {"search_kwargs": {"score_threshold": 0.9}} if "score" in search_type else {}
        retriever = store.as_retriever(search_type=search_type, **options)
        assert (await retriever.ainvoke("text 7"))[0] == DOCUMENTS[7]
    assert await store.aadd_texts([]) == []
    store.close()


async def test_many_async_calls_at_once(tmp_path, encoder):
    store = FaissVectorStore(LLM2VecEmbeddings(encoder, query_encode_kwargs={"prompt": ""}), tmp_path / "store")
    await asyncio.gather(*(store.aadd_texts([f"t{i}"], ids=[f"{i}"]) for i in range(40)))
    found = await asyncio.gather(*(store.asimilarity_search(f"t{i}", k=1) for i in range(40)))
    assert [document.id for (document,) in found] == [f"{i}" for i in range(40)]
    store.close()


async def test_async_methods_refuse_before_anything_is_embedded(tmp_path):
    embeddings = AsyncOnly(size=8)
    store = FaissVectorStore(embeddings, tmp_path / "store")
    embeddings.asked.clear()
    for texts, options in (
        (["a"], {"ids": ["x", "y"]}),
        (["a", "b"], {"ids": ["x", "x"]}),
        (["a"], {"metadatas": [{"n": {"deep": 1}}]}),
        ("bare", {}),
    ):
        with pytest.raises(InvalidInputError):
            await store.aadd_texts(texts, **options)
    with pytest.raises(TypeError, match="unexpected"):
        await store.aadd_texts(["a"], metadata=[{}])
    with pytest.raises(InvalidInputError, match="must have text"):
        await store.asimilarity_search(" ")
    with FaissStore.open(tmp_path / "store") as writer:
        writer.delete(where={})
        with pytest.raises(StoreLockedError):
            await store.aadd_texts(["a"])
    assert embeddings.asked == []
    with pytest.raises(InvalidInputError, match="deep"):
        await FaissVectorStore.afrom_texts(["a"], embeddings, [{"n": {"deep": 1}}], path=tmp_path / "other")
    store.close()


# -- odd input ---------------------------------------------------------------------------------------------------------


def test_texts_without_metadata_among_others(store):
    ids = store.add_texts(["x", "y"], [None, {"n": np.int64(30)}])
    assert [document.metadata for document in store.get_by_ids(ids)] == [{}, {"n": 30}]
    assert numbers(store.similarity_search("y", filter={"n": np.int32(30)})) == {30}


def test_an_empty_list_is_no_missing_one(store):
    store.delete([])
    store.delete([], filter={"n": 1})
    assert store.get_by_ids([]) == []
    assert store.add_texts([], [], ids=[]) == []
    assert store.store.count() == 20


def test_a_bare_string_is_no_list_of_its_letters(store):
    for call in (
        lambda: store.add_texts("ab"),
        lambda: store.get_by_ids("d1"),
        lambda: store.delete("d1"),
        lambda: store.add_texts(["a"], ids="x"),
    ):
        with pytest.raises(InvalidInputError, match="list"):
            call()
    assert store.store.count() == 20


# -- words and rerankers -----------------------------------------------------------------------------------------------


class _ByLength:
    def predict(self, pairs):
        return [float(len(text)) for _, text in pairs]


async def test_hybrid_search_and_rerankers_go_through_every_search(tmp_path, encoder):
    texts = ["error E4217 in a module", "Bears hibernate in winter.", "Rates rose again."]
    embeddings = LLM2VecEmbeddings(encoder)
    store = FaissVectorStore.from_texts(texts, embeddings, [{"n": i} for i in range(3)], path=tmp_path / "words")
    for options in ({"mode": "bm25"}, {"mode": "hybrid"}):
        (best, score), *_ = store.similarity_search_with_score("E4217", k=1, **options)
        assert store.similarity_search("E4217", k=1, **options)[0].page_content == best.page_content
        assert await store.asimilarity_search_with_score("E4217", k=1, **options) == [(best, score)]
        assert store.as_retriever(search_kwargs={"k": 1, **options}).invoke("E4217") == [best]
        assert all(
            document.metadata["n"] > 0 for document in store.similarity_search("E4217", filter={"n": {"$gt": 0}})
        )
        for search in (store.similarity_search_with_relevance_scores,):
            with pytest.raises(InvalidInputError, match="no relevance from 0 to 1"):
                search("E4217", **options)
        with pytest.raises(InvalidInputError, match="no relevance from 0 to 1"):
            await store.asimilarity_search_with_relevance_scores("E4217", **options)
    assert store.similarity_search("E4217", mode="bm25")[0].page_content == texts[0]
    assert len(store.similarity_search("E4217", mode="bm25")) == 1
    assert store.similarity_search("winter", k=1, rerank=_ByLength())[0].page_content == max(texts, key=len)
    store.close()
