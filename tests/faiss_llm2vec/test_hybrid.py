"""Hybrid search, BM25, rerankers, and the word index: filters hold, and every change keeps the index up."""

from __future__ import annotations

import os
import shutil
import sqlite3

import numpy as np
import pytest
from crash import forked

from faiss_llm2vec import FaissStore, lexical
from faiss_llm2vec.searching import _fused
from st_llm2vec.errors import InvalidInputError, StoreError, StoreLockedError

TEXTS = {
    "bears": "Bears hibernate in winter.",
    "rates": "The bank raised its rates in winter.",
    "cafe": "A Café on the bank of the river, open all winter",
    "code": "error E4217 in module foo_bar",
    "long": "winter " + "padding " * 40,
}


@pytest.fixture
def filled(store):
    metadata = [{"n": i, "even": i % 2 == 0} for i in range(len(TEXTS))]
    store.add(list(TEXTS.values()), ids=list(TEXTS), metadata=metadata)
    return store


def ids(hits):
    return [hit.id for hit in hits]


# -- what is found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("bears", ["bears"]),
        ("BEAR", ["bears"]),  # case and endings
        ("hibernating", ["bears"]),
        ("cafe", ["cafe"]),  # accents
        ("E4217", ["code"]),
        ("foo_bar", ["code"]),
        ("bank", ["rates", "cafe"]),
        ("winter", ["bears", "rates", "cafe", "long"]),  # the shorter the text, the more a word says of it
        ("nothing of that", ["cafe"]),  # "of"
        ("?!", []),
        ('"bears" AND NOT', ["bears"]),  # operators are words
        ("bears NEAR(rates*) ^x -winter text:y OR", ["bears", "rates", "cafe", "long"]),
        ("a\0b 'bears'); DROP TABLE docs", ["bears", "cafe"]),
    ],
)
def test_bm25_finds_words(filled, query, expected):
    assert set(ids(filled.search(query, mode="bm25"))) == set(expected)
    if len(expected) < 3 or query == "winter":
        assert ids(filled.search(query, mode="bm25")) == expected
    assert filled.verify() == []


def test_bm25_scores_are_those_of_the_formula(filled):
    lengths = {id: len(text.replace("_", " ").split()) for id, text in TEXTS.items()}
    average = np.mean(list(lengths.values()))
    (hit,) = filled.search("bears", mode="bm25")
    idf = np.log((len(TEXTS) - 1 + 0.5) / (1 + 0.5))
    expected = idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * lengths["bears"] / average))
    assert hit.score == pytest.approx(expected, rel=1e-5)


def test_ranks_are_fused_as_the_formula_says():
    halves = [
        (np.array([9.0, 8, 7], dtype="f4"), np.array([5, 3, 1])),
        (np.array([0.5, 0.4], dtype="f4"), np.array([3, 4])),
    ]
    scores, docids = _fused(halves, 10)
    assert docids.tolist() == [3, 5, 4, 1]
    np.testing.assert_allclose(scores, [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63], rtol=1e-6)
    assert _fused(halves, 2)[1].tolist() == [3, 5]
    assert _fused(halves[:1], 2)[0].tolist() == [9, 8]  # a single ranking keeps its scores


def test_hybrid_finds_what_either_half_finds(filled):
    """The vectors of these tests know a text only by all of its letters; words know the rest."""
    exact = filled.search(TEXTS["rates"], k=2, mode="hybrid")
    assert exact[0].id == "rates"
    assert exact[0].score == pytest.approx(2 / 61)
    assert set(ids(filled.search("E4217", k=5, mode="hybrid"))) == set(TEXTS)
    code = next(hit for hit in filled.search("E4217", k=5, mode="hybrid") if hit.id == "code")
    assert code.score > 1 / 61


MODES = ["dense", "bm25", "hybrid"]


@pytest.mark.parametrize("mode", MODES)
def test_no_hit_violates_its_filter(filled, mode):
    class Reversed:
        def predict(self, pairs):
            return [-len(text) for _, text in pairs]

    for where in ({"even": True}, {"n": {"$gt": 2}}, {"n": 99}, {}):
        allowed = {record.id for record in filled.get(where=where)}
        for options in ({}, {"rerank": Reversed()}):
            found = ids(filled.search("bank in winter", k=5, where=where, mode=mode, **options))
            assert set(found) <= allowed
            assert mode == "bm25" or set(found) == allowed


def test_a_vector_may_come_with_the_text(tmp_path, encoder):
    """As frameworks do it, which encode by themselves."""
    with FaissStore.create(tmp_path / "bare", None) as bare:
        bare.add(list(TEXTS.values()), ids=list(TEXTS), vectors=encoder.encode_document(list(TEXTS.values())))
        vectors = encoder.encode_query([TEXTS["code"], "x"])
        assert bare.search("bears", k=3, mode="hybrid", vector=vectors[0])[0].id in ("bears", "code")
        both = bare.search_batch(["bears", "rates"], k=3, mode="hybrid", vectors=vectors)
        assert both[0] == bare.search("bears", k=3, mode="hybrid", vector=vectors[0])
        assert ids(bare.search("bears", mode="bm25")) == ["bears"]  # which needs no model
        assert ids(bare.search("bears", k=1, vector=vectors[0])) == ["code"]  # dense: the vector counts


BAD = {
    "mode": ({"mode": "sparse"}, r"mode must be one of dense, hybrid, bm25, got mode='sparse'"),
    "mode of another type": ({"mode": ["hybrid"]}, "mode must be one of"),
    "mmr of words": ({"mode": "bm25", "mmr": 0.5}, "mode='hybrid'"),
    "mmr and rerank": ({"mmr": 0.5, "rerank": "any"}, "Give one of them"),
    "rerank": ({"rerank": 7}, r"one with predict\(pairs\), got a int"),
    "vector": ({"vector": np.ones((2, 16))}, "vector must be of shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused_before_anything_is_encoded(filled, encoder, name):
    options, message = BAD[name]
    encoder.encoded.clear()
    with pytest.raises(InvalidInputError, match=message):
        filled.search("bears", **options)
    assert encoder.encoded == []
    assert not filled.stats()["word_index"]


@pytest.mark.parametrize("options", [{"mode": "hybrid"}, {"mode": "bm25"}, {"vector": np.ones(16)}])
def test_words_need_a_text(filled, options):
    with pytest.raises(InvalidInputError, match="go with texts"):
        filled.search(np.ones(16), **options)


def test_nothing_is_found_in_an_empty_store(store):
    for mode in MODES:
        assert store.search("bears", mode=mode) == []
        assert store.search_batch([], mode=mode) == []


# -- rerankers ---------------------------------------------------------------------------------------------------------


class ByLength:
    """Reads both texts, as cross-encoders do; the longer, the better."""

    def __init__(self):
        self.pairs = []

    def predict(self, pairs):
        self.pairs += pairs
        return np.array([len(text) for _, text in pairs], dtype="f4")


@pytest.mark.parametrize("mode", MODES)
def test_a_reranker_puts_its_candidates_into_its_own_order(filled, mode):
    reranker = ByLength()
    hits = filled.search("bank in winter", k=2, mode=mode, rerank=reranker)
    assert ids(hits) == ["long", "cafe"]
    assert [hit.score for hit in hits] == [len(hit.text) for hit in hits]
    assert {query for query, _ in reranker.pairs} == {"bank in winter"}
    assert ids(filled.search("bank in winter", k=5, mode=mode, rerank=reranker, score_threshold=40)) == ["long", "cafe"]
    few = filled.search("bank in winter", k=1, fetch_k=2, mode=mode, rerank=reranker)
    assert few[0].id == max(filled.search("bank in winter", k=2, mode=mode), key=lambda hit: len(hit.text)).id


def test_a_reranker_reads_a_batch_at_once(filled):
    class Once(ByLength):
        calls = 0

        def predict(self, pairs):
            self.calls += 1
            return super().predict(pairs)

    reranker = Once()
    batch = filled.search_batch(["bears", "nothing alike", "bank"], k=2, mode="bm25", rerank=reranker)
    assert [ids(hits) for hits in batch] == [["bears"], [], ["cafe", "rates"]]
    assert reranker.calls == 1
    assert filled.search("nothing alike", mode="bm25", rerank=reranker) == []


@pytest.mark.parametrize("scores", [[[1.0, 2.0]], [float("nan")], [], [1.0, 2.0]])
def test_a_reranker_that_returns_nonsense_is_refused(filled, scores):
    class Nonsense:
        def predict(self, pairs):
            return scores

    with pytest.raises(InvalidInputError, match="one finite number per pair"):
        filled.search("bears", k=1, fetch_k=1, rerank=Nonsense())


# -- the word index ----------------------------------------------------------------------------------------------------


def words_of(path):
    """Documents that have the word, by a new store object: the index is read from the disk."""
    with FaissStore.open(path) as store:
        assert store.stats()["word_index"]
        assert store.verify() == []
        return ids(store.search("winter", mode="bm25", k=99))


def test_every_change_keeps_the_index_up(filled, encoder):
    assert not filled.stats()["word_index"]  # a store that is never searched by words has none
    assert len(filled.search("winter", mode="bm25")) == 4
    filled.add(["winter again"], ids=["new"], metadata=[{"n": 7}])
    filled.upsert(["summer"], ids=["bears"])
    filled.delete(["rates"])
    assert set(words_of(filled.path)) == {"new", "cafe", "long"}
    filled.index(["winter", "summer"], ids=["cafe", "bears"], metadata=[{"n": 1}, {"n": 2}])  # text and labels change
    assert words_of(filled.path) == ["cafe"]
    filled.compact()
    assert words_of(filled.path) == ["cafe"]
    filled.delete(where={})
    assert words_of(filled.path) == []


def test_a_reader_makes_the_index_and_gives_the_lock_back(filled, encoder):
    filled.close()
    with FaissStore.open(filled.path, encoder) as reader, FaissStore.open(filled.path, encoder) as other:
        assert ids(reader.search("bears", mode="bm25")) == ["bears"]
        assert not reader.stats()["writer"]
        other.add(["more bears"], ids=["more"])
        reader.refresh()
        assert set(ids(reader.search("bears", mode="bm25"))) == {"bears", "more"}


def test_beside_a_writer_it_says_what_to_do(filled, encoder):
    with FaissStore.open(filled.path, encoder) as reader:
        with pytest.raises(StoreLockedError, match=r"no word index yet.*mode='hybrid' once.*refresh\(\)"):
            reader.search("bears", mode="hybrid")
        filled.search("bears", mode="hybrid")
        assert filled.stats()["writer"]  # it was one before
        reader.refresh()
        assert ids(reader.search("bears", mode="bm25")) == ["bears"]


def test_a_folder_that_cannot_be_written_gets_an_index_in_a_copy(filled, encoder, monkeypatch):
    filled.close()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: False if mode == os.W_OK else real(path, mode))
    with FaissStore.open(filled.path, encoder) as reader:
        assert ids(reader.search("bears", mode="bm25")) == ["bears"]
        assert reader.search("bears", k=1, mode="hybrid")
    monkeypatch.undo()
    with FaissStore.open(filled.path, encoder) as reader:
        assert not reader.stats()["word_index"]


def test_what_was_recovered_is_searched_as_well(filled, encoder):
    filled.search("bears", mode="bm25")
    filled.close()
    with sqlite3.connect(filled.path / "store.db") as sql:
        sql.execute("UPDATE docs SET text = 'edited' WHERE id = 'rates'")
    sql.close()
    with FaissStore.open(filled.path, encoder, recover=True) as store:
        assert ids(store.search("bank", mode="bm25")) == ["cafe"]
        assert store.search("bank", k=1, mode="hybrid")


def test_a_child_that_was_forked_searches_by_words(filled):
    filled.search("bears", mode="bm25")
    child, read = forked(lambda told: print(*ids(filled.search("winter", k=9, mode="bm25")), file=told))
    with os.fdopen(read) as stream:
        assert len(stream.read().split()) == 4
    assert os.waitpid(child, 0)[1] == 0


def test_an_index_that_is_not_over_the_texts_is_found_by_verify(filled):
    filled.search("bears", mode="bm25")
    filled.close()
    for number, statement in enumerate(
        (
            "INSERT INTO words(words, rowid, text) VALUES ('delete', 0, 'Bears hibernate in winter.')",
            "INSERT INTO words(rowid, text) VALUES (77, 'more')",
            "INSERT INTO words(words, rowid, text) VALUES ('delete', 0, 'Bears'); INSERT INTO words(rowid, text) "
            "VALUES (0, 'wolves hibernate in winter')",
        )
    ):
        path = filled.path.with_name(f"copy-{number}")
        shutil.copytree(filled.path, path)
        sql = sqlite3.connect(path / "store.db", isolation_level=None)
        sql.executescript(statement)
        sql.close()
        with FaissStore.open(path) as store:
            assert any("word index" in problem for problem in store.verify()), statement


def test_an_index_of_a_stranger_defines_nothing_else(filled):
    from faiss_llm2vec.connections import SCHEMA

    filled.close()
    sql = sqlite3.connect(filled.path / "store.db", isolation_level=None)
    sql.execute(lexical.SCHEMA.replace("content='docs'", "content='manifest'"))
    sql.close()
    assert "words" not in SCHEMA
    with pytest.raises(StoreError, match="not the database of a store"):
        FaissStore.open(filled.path)


def test_a_row_that_the_index_names_and_the_store_lacks_is_damage(filled):
    filled.search("bears", mode="bm25")
    filled.close()
    sql = sqlite3.connect(filled.path / "store.db", isolation_level=None)
    sql.execute("INSERT INTO words(rowid, text) VALUES (77, 'unicorn')")
    sql.close()
    with FaissStore.open(filled.path) as store, pytest.raises(StoreError, match="document 77 is missing"):
        store.search("unicorn", mode="bm25")


def test_without_fts5_it_is_said(filled, monkeypatch):
    monkeypatch.setattr(lexical, "compiled_in", lambda: False)
    with pytest.raises(StoreError, match=r"built without FTS5.*mode='dense'"):
        filled.search("bears", mode="hybrid")
    assert ids(filled.search(TEXTS["bears"], k=1)) == ["bears"]
    monkeypatch.undo()
    filled.search("bears", mode="hybrid")
    monkeypatch.setattr(lexical, "compiled_in", lambda: False)
    with pytest.raises(StoreError, match="built without FTS5"):
        FaissStore.open(filled.path)


def test_a_failure_while_it_is_made_leaves_no_index(filled, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(lexical, "NAME", "no_such_table")  # the table is made, and cannot be filled
        with pytest.raises(StoreError):
            filled.search("bears", mode="bm25")
    assert not filled.stats()["word_index"]
    assert filled.verify() == []
    assert ids(filled.search("bears", mode="bm25")) == ["bears"]
