"""Several stores searched as one, and what a notebook shows of a store."""

from __future__ import annotations

import numpy as np
import pytest

from faiss_llm2vec import FaissStore, search_stores
from st_llm2vec.errors import InvalidInputError, StoreMismatchError

TEXTS = [f"text {n}" for n in range(20)]


@pytest.fixture
def halves(tmp_path, encoder):
    """Two stores, and one that has the documents of both."""
    opened = []
    for name, texts in (("a", TEXTS[::2]), ("b", TEXTS[1::2]), ("both", TEXTS)):
        store = FaissStore.create(tmp_path / name, encoder)
        store.add(texts, ids=texts, metadata=[{"n": int(text[5:])} for text in texts])
        opened.append(store)
    yield opened
    for store in opened:
        store.close()


def ids(pairs):
    return [(store.path.name, hit.id) for store, hit in pairs]


def test_several_stores_find_what_one_of_all_documents_finds(halves, encoder):
    first, second, both = halves
    encoder.encoded.clear()
    for query in ("text 7", encoder.encode_query(["text 8"])[0]):
        for options in ({}, {"where": {"n": {"$lt": 9}}}, {"score_threshold": 0.1}):
            found = search_stores([first, second], query, 5, **options)
            assert [hit for _, hit in found] == both.search(query, 5, **options)
            assert all(store is (second if hit.metadata["n"] % 2 else first) for store, hit in found)
    encoder.encoded.clear()
    search_stores([first, second], "text 7", 5)
    assert encoder.encoded == ["text 7"]  # once


def test_words_count_where_a_reranker_decides(halves):
    class ByNumber:
        def predict(self, pairs):
            return [float(text[5:]) for _, text in pairs]

    first, second, _ = halves
    found = search_stores([first, second], "text", 3, mode="bm25", rerank=ByNumber())
    assert ids(found) == [("b", "text 19"), ("a", "text 18"), ("b", "text 17")]


def test_what_cannot_be_compared_is_refused(halves, tmp_path, make_encoder):
    first, second, _ = halves
    for options, message in (
        ({"mode": "hybrid"}, "Add rerank="),
        ({"mode": "bm25"}, "within one store only"),
        ({"mmr": 0.5}, "leave it out"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            search_stores([first, second], "text 7", **options)
    for stores in ([], first, ["a"], [first, None], "ab"):
        with pytest.raises(InvalidInputError, match="at least one open FaissStore"):
            search_stores(stores, "text 7")
    for query in (["text 7", "text 8"], np.ones((2, 16)), 5, None):
        with pytest.raises(InvalidInputError, match=r"vectors? must be"):
            search_stores([first], query)
    cut = FaissStore.create(tmp_path / "cut", make_encoder(), truncate_dim=8)
    with cut, pytest.raises(StoreMismatchError, match="different dimensions"):
        search_stores([first, cut], "text 7")
    with pytest.raises(InvalidInputError, match="must have text"):
        search_stores([first], " ")
    for name, options in (("fingerprint", {"model": make_encoder(fingerprint="x")}), ("metric", {"metric": "l2"})):
        model = options.pop("model", make_encoder())
        other = FaissStore.create(tmp_path / name, model, **options)
        with other, pytest.raises(StoreMismatchError, match=f"different {name}s"):
            search_stores([first, other], "text 7")


def test_a_notebook_shows_a_store(tmp_path):
    path = tmp_path / "<b>x"
    store = FaissStore.create(path, None, fingerprint="<script>")
    store.add(["a"], vectors=np.ones((1, 4)))
    shown = store._repr_html_()
    assert "<td>1</td>" in shown
    assert "&lt;b&gt;x" in shown
    assert "&lt;script&gt;" in shown
    assert "<b>" not in shown
    store.close()
    assert "(closed)" in store._repr_html_()
    assert str(path) in repr(store)
