"""What FaissStore answers: adding, changing, searching, and every input that makes no sense."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import faiss
import numpy as np
import pandas
import pytest

import faiss_llm2vec
from faiss_llm2vec import FaissStore, Hit, Record, segments
from faiss_llm2vec.kinds import INDEX_FROM, KINDS
from faiss_llm2vec.rows import row_digest
from st_llm2vec.errors import (
    InvalidInputError,
    MissingExtraError,
    StoreError,
    StoreExistsError,
    StoreMismatchError,
    StoreNotFoundError,
)

# Of the 16 numbers here, signs are too few: test_kinds.py has more.
APPROXIMATE = [kind for kind, row in KINDS.items() if row.factory and kind != "binary"]


def random_vectors(rows, dimension=16, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, dimension)).astype("f4")


def scores_by_hand(queries, vectors, metric):
    """(queries, rows): the documented score of each metric, in float64."""
    queries, vectors = queries.astype("f8"), vectors.astype("f8")
    if metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    if metric == "l2":
        return -np.linalg.norm(queries[:, None] - vectors[None], axis=2)
    return queries @ vectors.T


@pytest.mark.parametrize(
    "labels", [{}, {"a": "},\n{"}, {"a": '"},\n{"', "b": ["},", "\n{", ""]}, {"},\n{": None}, {"é\\": "\n"}]
)
def test_metadata_that_looks_like_the_end_of_another(tmp_path, labels):
    """All metadata of a call is written as one list, which is cut again between the documents."""
    given = [{"n": 0}, labels, {}, labels, {"n": 1}]
    with FaissStore.create(tmp_path / "s", None) as store:
        ids = store.add(["a"] * 5, metadata=given, vectors=random_vectors(5))
        assert [record.metadata for record in store.get(ids)] == given
        assert store.verify() == []


def test_a_row_that_is_cut_elsewhere_has_another_checksum():
    """What moves from one column to the next was edited."""
    rows = [("ab", "c", "{}"), ("a", "bc", "{}"), ("ab", "c{", "}")]
    assert len({row_digest(1, *row) for row in rows}) == len(rows)
    assert row_digest(1, *rows[0]) != row_digest(2, *rows[0])


# -- the way through ---------------------------------------------------------------------------------------------------


def test_what_was_added_is_found_now_and_after_reopening(store, now_and_later):
    ids = store.add(["bears", "rates"], metadata=[{"topic": "animals"}, {"topic": "money", "n": 1.5, "tags": ["a", 2]}])
    for opened in now_and_later(store):
        assert opened.get(ids[::-1]) == [
            Record(ids[1], "rates", {"topic": "money", "n": 1.5, "tags": ["a", 2]}),
            Record(ids[0], "bears", {"topic": "animals"}),
        ]
        (hit,) = opened.search("bears", k=1)
        assert (hit.id, hit.text, hit.metadata) == (ids[0], "bears", {"topic": "animals"})
        assert hit.score == pytest.approx(1, abs=1e-6)
        assert len(opened) == opened.count() == 2
        assert opened.verify() == []


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_search_equals_numpy_in_every_metric(tmp_path, metric):
    vectors, queries = 3 * random_vectors(300), random_vectors(7, seed=1)
    expected = scores_by_hand(queries, vectors, metric)
    with FaissStore.create(tmp_path / "s", None, metric=metric) as store:
        for part in range(0, 300, 100):  # three segments
            names = [str(i) for i in range(part, part + 100)]
            store.add(names, ids=names, vectors=vectors[part : part + 100])
        for row, hits in zip(expected, store.search_batch(queries, k=20), strict=True):
            assert [int(hit.id) for hit in hits] == np.argsort(-row)[:20].tolist()
            np.testing.assert_allclose([hit.score for hit in hits], np.sort(row)[::-1][:20], atol=1e-4)


def test_no_cosine_is_beyond_one(tmp_path):
    """Products of float32 unit vectors round to 1.0000001, of which an arccosine is no number."""
    vectors = random_vectors(300)
    with FaissStore.create(tmp_path / "s", None) as store:
        store.add([str(i) for i in range(300)], vectors=vectors)
        scores = [hits[0].score for sign in (1, -1) for hits in store.search_batch(sign * vectors, k=300)]
        lowest = [hits[-1].score for hits in store.search_batch(-vectors, k=300)]
    assert max(scores) == 1.0
    assert min(lowest) == -1.0


def test_equal_scores_come_oldest_first(tmp_path):
    with FaissStore.create(tmp_path / "s", None) as store:
        for part in "ab", "cd":  # two segments
            store.add(list(part), ids=list(part), vectors=np.ones((2, 4)))
        assert [hit.id for hit in store.search(np.ones(4), k=3)] == ["a", "b", "c"]


def test_a_query_is_a_text_or_a_vector_or_a_batch_of_them(store, encoder):
    store.add(["a", "b", "c"], ids=["a", "b", "c"])
    vectors = encoder.encode_query(["a", "b"])
    single, batch = store.search("a", k=2), store.search_batch(["a", "b"], k=2)
    assert all(isinstance(hit, Hit) for hit in single)
    assert [hits[0].id for hits in batch] == ["a", "b"]
    assert single == batch[0] == store.search(vectors[0], k=2) == store.search(vectors[0].tolist(), k=2)
    assert batch == store.search_batch(vectors, k=2)
    assert store.search_batch([]) == []


def test_queries_and_documents_go_through_their_own_encode(tmp_path):
    class TwoSided:
        def encode_query(self, texts):
            return np.tile([1.0, 0.0], (len(texts), 1))

        def encode_document(self, texts):
            return np.array([[1.0, 0.0] if text == "for queries" else [0.0, 1.0] for text in texts])

    with FaissStore.create(tmp_path / "s", TwoSided()) as store:  # no dimension until the first vector
        store.add(["for queries", "for documents"])
        assert store.search("x", k=1)[0].text == "for queries"
        assert store.stats()["dimension"] == 2


def test_texts_and_ids_come_back_letter_for_letter(store, reopen):
    texts = ["", "a\x00b", "line\r\nbreak ", "日本語 🐻", "'; DROP TABLE docs; --"]
    ids = store.add(texts, ids=[f"id {text!r}" for text in texts], metadata=[{text or "k": text} for text in texts])
    opened = reopen(store)
    assert [record.text for record in opened.get(ids)] == texts
    assert [record.metadata for record in opened.get(ids)] == [{text or "k": text} for text in texts]
    assert all(opened.count({text or "k": text}) == 1 for text in texts)
    assert opened.verify() == []


def test_numbers_that_a_database_may_write_otherwise_stay_sound(store, reopen):
    values = [-0.0, 0.0, 1e300, 5e-324, 2.0**60, 2**63 - 1, -(2**63), 1.0, 1]
    store.add(list("abcdefghi"), metadata=[{"n": value, "both": [value, "x"]} for value in values])
    opened = reopen(store)
    assert [repr(record.metadata["n"]) for record in opened.get(where={})] == [repr(value) for value in values]
    assert [opened.count({"n": value}) for value in values] == [2, 2, 1, 1, 1, 1, 1, 2, 2]
    assert opened.verify() == []


def test_upsert_replaces_text_metadata_and_vector(store, now_and_later):
    store.add(["old", "other"], ids=["a", "b"], metadata=[{"v": 1}, {"v": 1}])
    assert store.upsert(["new", "third"], ids=["a", "c"], metadata=[{"w": 2}, {}]) == ["a", "c"]
    for opened in now_and_later(store):
        assert opened.get(["a"]) == [Record("a", "new", {"w": 2})]
        assert opened.search("old", k=1)[0].score < 0.99
        assert opened.search("new", k=1)[0].id == "a"
        assert (opened.count({"v": 1}), opened.count({"w": 2}), len(opened)) == (1, 1, 3)
        assert opened.verify() == []


def test_vectors_come_in_the_order_of_get(store, encoder, now_and_later):
    for part in ("abc", "def"):  # two segments
        store.add(list(part), ids=list(part), metadata=[{"n": ord(name) % 2} for name in part])
    units = {name: encoder.encode_document([name])[0] for name in "abcdef"}
    units = {name: vector / np.linalg.norm(vector) for name, vector in units.items()}
    for opened in now_and_later(store):
        for selected in ({"ids": ["e", "a", "none", "c"]}, {"where": {"n": 1}}, {"where": {}}, {"ids": []}):
            expected = [units[record.id] for record in opened.get(**selected)]
            np.testing.assert_allclose(opened.vectors(**selected), np.reshape(expected, (-1, 16)), atol=1e-6)


def test_deleted_documents_are_gone_and_their_number_is_returned(store, now_and_later):
    store.add(list("abcdef"), ids=list("abcdef"), metadata=[{"n": i} for i in range(6)])
    assert store.delete(["a", "zzz", "a"]) == 1
    assert store.delete(where={"n": {"$gte": 4}}) == 2
    assert store.delete(["b", "c"], where={"n": 1}) == 1
    assert store.delete([]) == store.delete(where={"n": 99}) == 0
    for opened in now_and_later(store):
        assert {hit.id for hit in opened.search("a", k=99)} == {"c", "d"}
        assert opened.get(["a", "c"]) == [Record("c", "c", {"n": 2})]
        assert opened.verify() == []
    assert opened.delete(where={}) == 2
    assert opened.search("c") == []
    assert opened.stats()["segments"] == 0
    assert opened.add(["c"], ids=["c"]) == ["c"]


def test_ids_inside_are_never_reused(store, reopen):
    store.add(["a", "b"], ids=["a", "b"])
    store.delete(["a", "b"])
    opened = reopen(store)
    opened.add(["c"], ids=["c"])
    segment = faiss.read_index(str(next((opened.path / "segments").iterdir())))
    assert faiss.vector_to_array(segment.id_map).tolist() == [2]  # 0 and 1 were a and b


def test_small_changes_do_not_pile_up_segments(store):
    for i in range(60):
        store.add([f"text {i}"], ids=[str(i)])
    assert store.stats()["segments"] <= 17
    assert [store.search(f"text {i}", k=1)[0].id for i in range(60)] == [str(i) for i in range(60)]
    assert store.verify() == []


def test_compact_puts_ids_in_order(tmp_path):
    """Small segments from before and after a large one are merged first, so the parts of compact() interleave."""
    vectors = random_vectors(INDEX_FROM + 20)
    names = [str(i) for i in range(len(vectors))]
    with FaissStore.create(tmp_path / "s", None) as store:
        for start, stop in ((0, 1), (1, INDEX_FROM + 1), *((i, i + 1) for i in range(INDEX_FROM + 1, len(names)))):
            store.add(names[start:stop], ids=names[start:stop], vectors=vectors[start:stop])
        store.compact()
        sample = [0, 1, 2000, INDEX_FROM, INDEX_FROM + 1, len(names) - 1]
        assert [hits[0].id for hits in store.search_batch(vectors[sample], k=1)] == [names[i] for i in sample]
        assert store.verify() == []


@pytest.mark.parametrize("kind", KINDS)
def test_compact_merges_and_forgets_the_deleted(tmp_path, encoder, kind):
    with FaissStore.create(tmp_path / "s", encoder, kind=kind) as store:
        for i in range(5):
            store.add([f"{i} {j}" for j in range(4)], ids=[f"{i} {j}" for j in range(4)])
        store.delete(["0 0", "4 3"])
        before = store.search("2 2", k=99)
        assert store.stats()["deleted_rows"] == 2
        store.compact()
        assert (store.stats()["segments"], store.stats()["deleted_rows"]) == (1, 0)
        assert store.search("2 2", k=99) == before
        assert len(before) == 18
        assert store.verify() == []
        assert len(list((store.path / "segments").iterdir())) == 1
        generation = store.stats()["generation"]
        store.compact()
        assert store.stats()["generation"] == generation  # nothing to gain, nothing written


def test_compact_holds_no_more_than_a_segment_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "_MOST_BYTES", 10 * 16 * 4)  # ten vectors
    vectors, names = random_vectors(20), [str(i) for i in range(20)]
    with FaissStore.create(tmp_path / "s", None) as store:
        for i in range(0, 20, 4):
            store.add(names[i : i + 4], ids=names[i : i + 4], vectors=vectors[i : i + 4])
        store.delete(["0"])
        store.compact()
        assert (store.stats()["segments"], store.stats()["deleted_rows"]) == (3, 0)
        assert [hits[0].id for hits in store.search_batch(vectors[1:], k=1)] == names[1:]
        generation = store.stats()["generation"]
        store.compact()
        assert store.stats()["generation"] == generation


# -- kinds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_an_approximate_kind_finds_nearly_all_with_exact_scores_and_no_deleted_document(tmp_path, kind):
    rows = INDEX_FROM + 500
    # 50 clusters, as embeddings have: without any, no inverted list is better than another
    vectors = random_vectors(50)[np.arange(rows) % 50] + random_vectors(rows, seed=1) / 2
    queries = random_vectors(50)[:20] + random_vectors(20, seed=2) / 2
    names = [str(i) for i in range(rows)]
    with FaissStore.create(tmp_path / "s", None, kind=kind) as store:
        store.add(names, ids=names, vectors=vectors, metadata=[{"third": i % 3 == 0} for i in range(rows)])
        assert len(list((store.path / "segments").glob("*.index.faiss"))) == 1
        gone = [hits[0].id for hits in store.search_batch(queries, k=1)]
        store.delete(gone)
    scores = scores_by_hand(queries, vectors, "cosine")
    scores[:, [int(id) for id in gone]] = -2
    with FaissStore.open(tmp_path / "s", mmap=True) as store:
        for where, mask in ((None, 1.0), ({"third": True}, np.arange(rows) % 3 == 0)):
            masked = np.where(mask, scores, -2)
            best = np.argsort(-masked, axis=1)[:, :10]
            found = store.search_batch(queries, k=10, where=where)
            same = [len({int(h.id) for h in hits} & set(row)) for hits, row in zip(found, best.tolist(), strict=True)]
            assert np.mean(same) >= 9
            for row, hits in zip(masked, found, strict=True):
                np.testing.assert_allclose([h.score for h in hits], [row[int(h.id)] for h in hits], atol=1e-5)
        # few matches are scanned exactly
        few = [str(i) for i in range(0, 4000, 100)]
    with FaissStore.open(tmp_path / "s") as store:
        store.upsert(few, ids=few, vectors=vectors[::100][:40], metadata=[{"few": True}] * 40)
        expected = np.argsort(-scores_by_hand(queries, vectors[::100][:40], "cosine"), axis=1)[:, :10] * 100
        found = [[int(hit.id) for hit in hits] for hits in store.search_batch(queries, k=10, where={"few": True})]
        assert found == expected.tolist()
        assert store.verify() == []


def test_a_segment_is_a_stock_faiss_file(store, encoder):
    store.add(["a", "b"])
    index = faiss.read_index(str(next((store.path / "segments").iterdir())))
    _, ids = index.search(encoder.encode_query(["b"]), 1)
    assert ids.tolist() == [[1]]


# -- search options ----------------------------------------------------------------------------------------------------


def test_score_threshold_keeps_hits_at_or_above_it(store):
    store.add([str(i) for i in range(50)])
    hits = store.search("7", k=50)
    for threshold in (hits[3].score, 0.0, 1.5):
        assert store.search("7", k=50, score_threshold=threshold) == [h for h in hits if h.score >= threshold]


def test_mmr_trades_relevance_for_diversity(tmp_path):
    vectors = np.array([[1, 0.1, 0], [1, 0.11, 0], [1, 0, 0.6], [0, 0, 1]], dtype="f4")
    with FaissStore.create(tmp_path / "s", None) as store:
        store.add(list("abcd"), ids=list("abcd"), vectors=vectors)

        def picked(**options):
            return [hit.id for hit in store.search(np.array([1.0, 0.1, 0.2]), k=2, **options)]

        assert picked() == picked(mmr=1.0) == ["a", "b"]
        assert picked(mmr=0.7) == ["a", "c"]  # b repeats a
        assert picked(mmr=0.0) == ["a", "d"]
        assert picked(mmr=0.0, fetch_k=3) == ["a", "c"]
        assert picked(mmr=0.5, where={"x": 1}) == []


def test_k_may_exceed_the_count_and_the_store_may_be_empty(store):
    assert store.search("x") == []
    assert store.search_batch(["x", "y"], mmr=0.5) == [[], []]
    assert store.search(np.ones(16), where={"a": 1}) == []
    assert (store.count(), store.count({"a": 1}), store.get(["a"]), store.get(where={})) == (0, 0, [], [])
    store.add(["x"])
    assert len(store.search("x", k=1000)) == 1


# -- index(): the store follows a corpus -------------------------------------------------------------------------------


def test_index_encodes_what_changed_and_removes_what_vanished(store, encoder, now_and_later):
    assert store.index(["a", "b", "c"], ids=list("123")) == {"added": 3, "updated": 0, "unchanged": 0, "deleted": 0}
    encoder.encoded.clear()
    generation = store.stats()["generation"]
    assert store.index(["a", "b", "c"], ids=list("123")) == {"added": 0, "updated": 0, "unchanged": 3, "deleted": 0}
    assert (encoder.encoded, store.stats()["generation"]) == ([], generation)

    changes = store.index(["a", "B", "d"], ids=list("124"), metadata=[{"new": True}, {}, {}])
    assert changes == {"added": 1, "updated": 2, "unchanged": 0, "deleted": 1}
    assert encoder.encoded == ["B", "d"]
    for opened in now_and_later(store):
        assert opened.get(where={}) == [Record("1", "a", {"new": True}), Record("2", "B", {}), Record("4", "d", {})]
        assert [opened.search(text, k=1)[0].id for text in "aBd"] == list("124")
        assert opened.count({"new": True}) == 1
        assert opened.verify() == []
    encoder.encoded.clear()
    assert opened.index(["a"], ids=["1"], skip_unchanged=False)["updated"] == 1
    assert encoder.encoded == ["a"]
    with pytest.raises(InvalidInputError, match="delete everything"):
        opened.index([], ids=[])


def test_searching_goes_on_while_index_encodes_and_changes_meanwhile_count(store, encoder, monkeypatch):
    store.index(["a", "b"], ids=["1", "2"])
    real = encoder.encode_document

    def slow(texts, **options):
        def others():
            seen.append(store.search(np.ones(16), k=1))
            store.add(["meanwhile"], ids=["4"], vectors=np.ones((1, 16)))

        if not seen:
            thread = threading.Thread(target=others)
            thread.start()
            thread.join(timeout=30)
        return real(texts, **options)

    seen = []
    monkeypatch.setattr(encoder, "encode_document", slow)
    encoder.encoded.clear()
    assert store.index(["a", "B", "c"], ids=["1", "2", "3"]) == {"added": 1, "updated": 1, "unchanged": 1, "deleted": 1}
    assert (len(seen), encoder.encoded) == (1, ["B", "c"])
    assert [record.id for record in store.get(where={})] == ["1", "2", "3"]
    assert store.verify() == []


def test_index_encodes_no_text_that_only_moved(tmp_path, encoder):
    with FaissStore.create(tmp_path / "s", encoder, truncate_dim=8) as store:
        store.index(["a", "b", "c"], ids=["doc:1", "doc:2", "doc:3"])
        encoder.encoded.clear()
        changes = store.index(["new", "a", "b", "c"], ids=["doc:1", "doc:2", "doc:3", "doc:4"])
        assert (changes, encoder.encoded) == ({"added": 1, "updated": 3, "unchanged": 0, "deleted": 0}, ["new"])
        assert [store.search(text, k=1)[0].id for text in ("new", "a", "b", "c")] == [f"doc:{i}" for i in (1, 2, 3, 4)]
        encoder.encoded.clear()
        store.index(["c", "b"], ids=["doc:1", "doc:2"])
        assert encoder.encoded == []
        assert [(hit.id, round(hit.score, 5)) for hit in store.search("b", k=1)] == [("doc:2", 1.0)]
        assert store.verify() == []


def test_index_encodes_a_text_that_is_given_twice_once(store, encoder):
    store.index(["same", "same", "other"], ids=["1", "2", "3"])
    assert encoder.encoded == ["same", "other"]
    assert {hit.id for hit in store.search("same", k=2)} == {"1", "2"}


# -- the model ---------------------------------------------------------------------------------------------------------


def test_opening_with_another_model_names_both(store, make_encoder):
    store.add(["a"])
    store.close()
    with pytest.raises(StoreMismatchError, match=r"'fake-1'.*'fake-2'"):
        FaissStore.open(store.path, make_encoder(fingerprint="fake-2"))
    with pytest.raises(StoreMismatchError, match=r"16.*8"):
        FaissStore.open(store.path, make_encoder(dimension=8))
    with FaissStore.open(store.path) as bare:
        assert bare.search(np.ones(16))[0].text == "a"
        for call in (lambda: bare.search("a"), lambda: bare.add(["b"])):
            with pytest.raises(InvalidInputError, match="needs its model"):
                call()
        assert bare.add(["b"], vectors=np.ones((1, 16)))


def test_class_and_name_stand_in_for_a_fingerprint(tmp_path):
    class Framework:
        encode_query = encode_document = staticmethod(lambda texts: np.ones((len(texts), 4)))

        def __init__(self, model_name):
            self.model_name = model_name

    FaissStore.create(tmp_path / "s", Framework("/models/one")).close()
    FaissStore.open(tmp_path / "s", Framework("/moved/to/one")).close()
    with pytest.raises(StoreMismatchError, match=r"Framework one.*Framework two"):
        FaissStore.open(tmp_path / "s", Framework("two"))


def test_pooling_and_prompts_tell_models_without_a_fingerprint_apart(tmp_path):
    class Stock(list):  # of modules, as a SentenceTransformer is
        encode_query = encode_document = staticmethod(lambda texts: np.ones((len(texts), 4)))

        def __init__(self, pooling, prompt):
            super().__init__([object(), SimpleNamespace(pooling_mode=pooling)])
            self.prompts = {"query": prompt, "document": ""}

    with FaissStore.create(tmp_path / "s", Stock("mean", "query: ")) as store:
        assert store.stats()["pooling"] == "mean"
    FaissStore.open(tmp_path / "s", Stock("mean", "query: ")).close()
    with pytest.raises(StoreMismatchError, match=r"pooling 'mean'.*pooling 'lasttoken'"):
        FaissStore.open(tmp_path / "s", Stock("lasttoken", "query: "))
    with pytest.raises(StoreMismatchError, match=r"prompts .*'query: '.*prompts .*'find: '"):
        FaissStore.open(tmp_path / "s", Stock("mean", "find: "))


def test_a_fingerprint_may_be_a_method(tmp_path, make_encoder):
    class Method(make_encoder):
        fingerprint = property(lambda self: lambda: "from a method", lambda self, value: None)

    with FaissStore.create(tmp_path / "s", Method()) as store:
        assert store.stats()["fingerprint"] == "from a method"
        assert store.stats()["prompts"] == {"query": "search: ", "document": ""}


def test_show_progress_reaches_the_model_only_when_asked_for(tmp_path):
    recorded = []

    class Recorder:
        def encode_document(self, texts, **options):
            recorded.append(options)
            return np.ones((len(texts), 4))

        encode_query = encode_document

    with FaissStore.create(tmp_path / "s", Recorder()) as store:
        store.add(["a", "b"])
        store.add(["c"], show_progress=True)
    assert recorded == [{}, {"show_progress_bar": True}]


# -- bad input ---------------------------------------------------------------------------------------------------------

ONE = [[1.0] * 16]
BAD = {
    "bare string": (lambda s: s.add("text"), "list of strings"),
    "texts of numbers": (lambda s: s.add([1]), r"texts\[0\] must be a string, got 1 \(int\)"),
    "lone surrogate": (lambda s: s.add(["\ud800"]), "surrogate"),
    "ids twice": (lambda s: s.add(["a", "b"], ids=["x", "x"]), "ids must be different, got 'x' more than once"),
    "id exists": (lambda s: s.add(["new", "again"], ids=["new", "kept"]), "'kept' exist already"),
    "id of another type": (lambda s: s.add(["a"], ids=[1]), r"ids\[0\] must be a string, got 1 \(int\)"),
    "empty id": (lambda s: s.add(["a"], ids=[""]), r"ids\[0\] must not be empty"),
    "fewer ids": (lambda s: s.add(["a", "b"], ids=["x"]), "2 texts, 1 ids"),
    "fewer metadata": (lambda s: s.add(["a", "b"], metadata=[{}]), "1 metadata"),
    "one metadata": (lambda s: s.add(["a"], metadata={"x": 1}), "one dict per text"),
    "metadata no dict": (lambda s: s.add(["a"], metadata=["x"]), "must be a dict"),
    "nested metadata": (lambda s: s.add(["a"], metadata=[{"x": {"y": 1}}]), "flatten"),
    "nested list": (lambda s: s.add(["a"], metadata=[{"x": [[1]]}]), "flatten"),
    "metadata not JSON": (lambda s: s.add(["a"], metadata=[{"x": object()}]), "object"),
    "metadata NaN": (lambda s: s.add(["a"], metadata=[{"x": float("nan")}]), "nan"),
    "metadata huge int": (lambda s: s.add(["a"], metadata=[{"x": 2**64}]), "64 bits"),
    "field no string": (lambda s: s.add(["a"], metadata=[{1: 2}]), "must be strings"),
    "field with $": (lambda s: s.add(["a"], metadata=[{"$x": 2}]), "start with"),
    "another dimension": (lambda s: s.add(["a"], vectors=[[1.0, 2.0]]), "dimension 16, got 2"),
    "fewer vectors": (lambda s: s.add(["a", "b"], vectors=ONE), r"of shape \(2, dimension\), got \(1, 16\)"),
    "vectors beyond float32": (lambda s: s.add(["a"], vectors=[[1e39] * 16]), "huge"),
    "vectors of text": (lambda s: s.add(["a"], vectors=[["x", "y"]]), "array of floats"),
    "ragged vectors": (lambda s: s.add(["a", "b"], vectors=[[1.0], [1.0, 2.0]]), "array of floats"),
    "NaN vector": (lambda s: s.add(["a"], vectors=[[float("nan")] * 16]), "must be finite, got NaN.* at 0"),
    "infinite vector": (lambda s: s.add(["a"], vectors=[[float("inf")] * 16]), "must be finite, got NaN.* at 0"),
    "zero vector": (lambda s: s.add(["a"], vectors=[[0.0] * 16]), "must not be zero.* at 0"),
    "index without change": (lambda s: s.index(["a", "b"], ids=["x", "x"]), "more than once"),
    "delete nothing": (lambda s: s.delete(), r"delete\(where=\{\}\)"),
    "delete a bare id": (lambda s: s.delete("kept"), "list of strings"),
    "vectors of nothing": (lambda s: s.vectors(), r"vectors\(where=\{\}\)"),
    "get nothing": (lambda s: s.get(), r"get\(where=\{\}\)"),
    "k 0": (lambda s: s.search("a", k=0), "k=0"),
    "k True": (lambda s: s.search("a", k=True), "k=True"),
    "k 1.5": (lambda s: s.search("a", k=1.5), "k=1.5"),
    "mmr": (lambda s: s.search("a", mmr=2), "mmr=2"),
    "effort": (lambda s: s.search("a", effort=0), "effort=0"),
    "fetch_k": (lambda s: s.search("a", mmr=0.5, fetch_k=-1), "fetch_k=-1"),
    "empty query": (lambda s: s.search(" "), "must have text"),
    "texts of a mapping": (lambda s: s.add({"a": "b"}), "must be a list of strings"),
    "texts of a data frame": (lambda s: s.add(pandas.DataFrame({"text": ["a"]})), "must be a list of strings"),
    "ids of a data frame": (lambda s: s.delete(pandas.DataFrame({"kept": ["a"]})), "must be a list of strings"),
    "empty query in a batch": (lambda s: s.search(["a", ""]), "must have text"),
    "query of another dimension": (lambda s: s.search([1.0, 2.0]), "dimension 16, got 2"),
    "NaN query": (lambda s: s.search([float("nan")] * 16), "NaN"),
    "query is None": (lambda s: s.search(None), "array of floats.*or a query text, got None"),
    "query of three axes": (lambda s: s.search(np.ones((1, 1, 16))), "shape"),
    "unknown operator": (lambda s: s.search("a", where={"n": {"$like": "x"}}), r"must be one of .*got '\$like'"),
    "unknown logic": (lambda s: s.count({"$xor": []}), r"must be one of .*got '\$xor'"),
    "no operator": (lambda s: s.count({"n": {}}), "must name one of"),
    "where no dict": (lambda s: s.count(["n"]), "must be a dict"),
    "$in of a string": (lambda s: s.count({"n": {"$in": "abc"}}), "list of values"),
    "$gt of a list": (lambda s: s.count({"n": {"$gt": [1]}}), "must be a str"),
    "$gt of a bool": (lambda s: s.count({"n": {"$gt": True}}), "number or a string"),
    "$exists of 1": (lambda s: s.count({"n": {"$exists": 1}}), "True or False"),
    "$and of nothing": (lambda s: s.count({"$and": []}), "at least one"),
    "nested without end": (lambda s: s.count(deep(5000)), "less deeply"),
}


def deep(levels):
    where = {"a": 1}
    for _ in range(levels):
        where = {"$not": where}
    return where


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason_and_changes_nothing(store, name):
    call, message = BAD[name]
    store.add(["kept"], ids=["kept"], metadata=[{"n": 1}])
    before = store.stats()
    with pytest.raises(ValueError, match=message) as caught:
        call(store)
    assert isinstance(caught.value, (InvalidInputError, StoreMismatchError))
    assert store.stats() == before
    assert store.get(where={}) == [Record("kept", "kept", {"n": 1})]


def test_a_model_that_returns_nonsense_is_refused(tmp_path):
    class Nonsense:
        encode_query = encode_document = staticmethod(lambda texts: np.ones((1, 4)))

    with FaissStore.create(tmp_path / "s", Nonsense()) as store, pytest.raises(InvalidInputError, match="of 2 texts"):
        store.add(["a", "b"])


def test_an_empty_list_is_no_change(store):
    generation = store.stats()["generation"]
    assert store.add([]) == store.upsert([], ids=[], vectors=[]) == []
    assert store.stats()["generation"] == generation


def test_create_leaves_alone_what_exists(store, tmp_path, encoder):
    store.add(["a"])
    for path in (store.path, tmp_path):
        with pytest.raises(StoreExistsError, match="left as it is"):
            FaissStore.create(path, encoder)
    assert store.verify() == []
    (tmp_path / "empty").mkdir()
    FaissStore.create(tmp_path / "empty", encoder).close()
    FaissStore.create(tmp_path / "made" / "too", encoder).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "made", "store"]


def test_create_and_open_say_what_is_wrong(tmp_path, encoder):
    with pytest.raises(StoreNotFoundError, match=r"FaissStore\.create"):
        FaissStore.open(tmp_path / "none", encoder)
    with pytest.raises(InvalidInputError, match="flat, fp16"):
        FaissStore.create(tmp_path / "s", encoder, kind="best")
    with pytest.raises(InvalidInputError, match="cosine, dot, l2"):
        FaissStore.create(tmp_path / "s", encoder, metric="manhattan")
    with pytest.raises(InvalidInputError, match="encode_query"):
        FaissStore.create(tmp_path / "s", object())
    assert not any(tmp_path.iterdir())


def test_a_closed_store_says_so(store):
    store.close()
    store.close()
    for call in (lambda: store.search("a"), lambda: store.add(["a"]), store.count, store.verify):
        with pytest.raises(StoreError, match="was closed"):
            call()


def test_threads_share_a_store(store):
    def work(name):
        for i in range(5):
            store.add([f"{name} {i}"], ids=[f"{name} {i}"])
            results.append(store.search(f"{name} {i}", k=1)[0].id == f"{name} {i}")

    results = []
    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20
    assert store.verify() == []


# -- the package -------------------------------------------------------------------------------------------------------


def test_public_names():
    names = ["FaissStore", "Hit", "Record", "SearchOptions", "recommend_kind", "search_stores"]
    assert faiss_llm2vec.__all__ == sorted(faiss_llm2vec.__all__) == names


def test_without_faiss_the_import_says_what_to_install():
    code = "import sys; sys.modules['faiss'] = None; import faiss_llm2vec"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"{MissingExtraError.__name__}: faiss_llm2vec needs faiss." in run.stderr
    assert 'pip install "st-llm2vec[faiss]"' in run.stderr
