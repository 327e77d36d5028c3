"""What callers hand to a store: numbers of numpy, missing metadata, and searches that ask for nothing or too much."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from faiss_llm2vec import FaissStore, recommend_kind
from st_llm2vec.errors import InvalidInputError


def ids(hits):
    return [hit.id for hit in hits]


@pytest.fixture
def filled(store):
    texts = [f"text {i}" for i in range(30)]
    store.add(texts, ids=texts, metadata=[{"n": i} for i in range(30)])
    return store


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("three", [np.int64(3), np.int8(3), np.uint16(3), np.array(3), torch.tensor(3)], ids=repr)
def test_whole_numbers_of_numpy_are_whole_numbers(filled, three):
    assert ids(filled.search("text 1", k=three)) == ids(filled.search("text 1", k=3))
    expected = ids(filled.search("text 1", k=2, mmr=0.5, fetch_k=3))
    assert ids(filled.search("text 1", k=2, mmr=0.5, fetch_k=three)) == expected
    assert len(filled.get(where={}, limit=three)) == 3


@pytest.mark.parametrize("half", [np.float32(0.5), np.float16(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)])
def test_real_numbers_of_numpy_are_real_numbers(filled, half):
    for option in ("mmr", "score_threshold", "effort"):
        assert ids(filled.search("text 1", **{option: half})) == ids(filled.search("text 1", **{option: 0.5}))


@pytest.mark.parametrize(
    "wrong", [0, -1, True, np.bool_(True), 1.0, np.float32(2), "3", None, [3], np.array([3])], ids=repr
)
def test_what_is_no_whole_number_is_refused(filled, wrong):
    with pytest.raises(InvalidInputError, match="k must be a whole number of at least 1, got"):
        filled.search("text 1", k=wrong)
    if wrong is not None:
        with pytest.raises(InvalidInputError, match="fetch_k must be"):
            filled.search("text 1", mmr=0.5, fetch_k=wrong)
        with pytest.raises(InvalidInputError, match="limit must be"):
            filled.get(where={}, limit=wrong)


@pytest.mark.parametrize("option", ["mmr", "score_threshold", "effort"])
@pytest.mark.parametrize(
    "wrong", [math.nan, "0.5", True, [0.5], 1j, np.array([0.5, 0.5]), np.float32(np.nan)], ids=repr
)
def test_what_is_no_real_number_is_refused(filled, option, wrong):
    with pytest.raises(InvalidInputError, match=f"{option} must be a"):
        filled.search("text 1", **{option: wrong})


def test_an_unknown_option_is_refused_and_the_nearest_named(filled):
    for search in (filled.search, lambda query, **options: filled.search_batch([query], **options)):
        with pytest.raises(InvalidInputError, match=r"no option 'wher'\. Did you mean 'where'\? Options: where"):
            search("bears", wher={})


def test_an_effort_beyond_all_bounds_searches_everything(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((4200, 8)).astype("f4")
    best = set(np.argsort(-vectors @ vectors[7] / np.linalg.norm(vectors, axis=1))[:10].tolist())
    for kind in ("hnsw", "ivf"):
        with FaissStore.create(tmp_path / kind, None, kind=kind) as store:
            store.add([str(i) for i in range(4200)], ids=[str(i) for i in range(4200)], vectors=vectors)
            for effort in (1e9, np.finfo("f8").max):
                assert {int(id) for id in ids(store.search(vectors[7], k=10, effort=effort))} == best
            with pytest.raises(InvalidInputError, match="effort must be a positive number"):
                store.search(vectors[7], effort=math.inf)


def test_counts_of_numpy_do_not_overflow():
    assert recommend_kind(np.int32(1_000_000), np.int32(1024)) == "hnsw"


def test_truncate_dim_of_numpy_is_kept_in_the_manifest(tmp_path, encoder):
    with FaissStore.create(tmp_path / "s", encoder, truncate_dim=np.int64(8)) as store:
        store.add(["a"])
    with FaissStore.open(tmp_path / "s", encoder) as store:
        assert store.stats()["dimension"] == 8


# -- metadata and filters ----------------------------------------------------------------------------------------------

OF_NUMPY = {
    "int": np.int64(3),
    "small": np.uint8(200),
    "float": np.float32(0.1),
    "double": np.float64(0.25),
    "half": np.float16(0.5),
    "yes": np.bool_(True),
    "text": np.str_("word"),
    "array": np.array(7),
    "list": [np.int32(1), np.float32(2.5), np.bool_(False), "plain"],
}


def test_metadata_of_numpy_is_that_of_python(store, now_and_later):
    store.add(["a", "b"], ids=["a", "b"], metadata=[OF_NUMPY, {"yes": 1}])
    for now in now_and_later(store):
        (record,) = now.get(["a"])
        expected = {
            k: [i.item() if hasattr(i, "item") else i for i in v] if k == "list" else v.item()
            for k, v in OF_NUMPY.items()
        }
        assert record.metadata == expected
        assert json.dumps(record.metadata) == json.dumps(expected)  # True is not 1
        for name, value in OF_NUMPY.items():
            for operand in value if name == "list" else [value]:
                assert ids(now.get(where={name: operand})) == ["a"]
                assert ids(now.get(where={name: {"$in": np.array([operand])}})) == ["a"]
        assert ids(now.get(where={"int": {"$gte": np.float32(2.5)}})) == ["a"]
        assert ids(now.get(where={"int": {"$exists": np.bool_(False)}})) == ["b"]
        assert now.verify() == []


@pytest.mark.parametrize(
    "wrong", [np.float32("nan"), np.datetime64("2026-01-01"), np.complex64(1), np.arange(2), np.bytes_(b"x")], ids=repr
)
def test_other_values_of_numpy_are_refused_with_a_reason(store, wrong):
    with pytest.raises(InvalidInputError, match="metadata of 'a': field 'x' must be"):
        store.add(["a"], ids=["a"], metadata=[{"x": wrong}])
    with pytest.raises(InvalidInputError, match="field 'x' must be"):
        store.count({"x": wrong})


def test_operands_of_numpy_that_are_no_lists_are_refused(store):
    for wrong in (np.array(1), np.int64(1), np.str_("ab")):
        with pytest.raises(InvalidInputError, match="list of values"):
            store.count({"n": {"$in": wrong}})


def test_a_document_without_metadata_among_others(store):
    store.add(["a", "b", "c"], ids=["a", "b", "c"], metadata=[None, {"n": 1}, None])
    assert [record.metadata for record in store.get(["a", "b", "c"])] == [{}, {"n": 1}, {}]
    assert ids(store.get(where={"n": {"$exists": False}})) == ["a", "c"]
    store.index(["a", "b"], ids=["a", "b"], metadata=[{"n": 2}, None])
    assert [record.metadata for record in store.get(["a", "b"])] == [{"n": 2}, {}]
    for wrong in (5, "n"):
        with pytest.raises(InvalidInputError, match="metadata must be a list"):
            store.add(["d"], metadata=wrong)


def test_complex_vectors_are_refused(tmp_path):
    with FaissStore.create(tmp_path / "s", None) as store, pytest.raises(InvalidInputError, match="complex"):
        store.add(["a"], vectors=np.ones((1, 4), dtype=complex))


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_vectors_come_with_documents_and_hits_if_they_are_asked_for(filled):
    wanted = ["text 9", "text 2", "text 4"]
    records = filled.get(wanted, with_vectors=True)
    np.testing.assert_array_equal([record.vector for record in records], filled.vectors(wanted))
    hits = filled.search("text 4", k=5, with_vectors=True)
    np.testing.assert_array_equal([hit.vector for hit in hits], filled.vectors(ids(hits)))
    batch = filled.search_batch(["text 4", "text 9"], k=2, with_vectors=True)
    np.testing.assert_array_equal(batch[1][0].vector, records[0].vector)
    assert hits == filled.search("text 4", k=5)  # equal, with or without
    assert filled.search("text 4")[0].vector is None
    assert filled.get(["text 4"])[0].vector is None


def test_a_hit_as_json_has_a_vector_where_it_was_asked_for(filled):
    (plain,), (full,) = (filled.search("bears", k=1, with_vectors=asked) for asked in (False, True))
    told = {"id": plain.id, "text": plain.text, "score": plain.score, "metadata": plain.metadata}
    assert json.loads(json.dumps(plain.as_dict())) == told
    assert json.loads(json.dumps(full.as_dict())) == {**told, "vector": full.vector.tolist()}


def test_limit_stops_after_the_oldest(filled):
    assert ids(filled.get(where={"n": {"$gte": 10}}, limit=3)) == ["text 10", "text 11", "text 12"]
    assert ids(filled.get(["text 3", "text 1", "text 2"], limit=2)) == ["text 3", "text 1"]
    assert len(filled.get(where={}, limit=10**12)) == 30


@pytest.mark.parametrize("truncate_dim", [None, 8])
@pytest.mark.parametrize("model", ["none", "with dimension", "without"])
def test_mmr_of_a_store_without_documents_finds_nothing(tmp_path, encoder, model, truncate_dim):
    if model == "without":
        encoder.get_embedding_dimension = lambda: None
    given = None if model == "none" else encoder
    with FaissStore.create(tmp_path / "s", given, truncate_dim=truncate_dim) as store:
        query = np.ones(16)
        assert store.search(query, mmr=0.5) == []
        assert store.search_batch(np.ones((2, 16)), mmr=0.5) == [[], []]
        store.add(["a"], ids=["a"], vectors=np.ones((1, 16)))
        assert store.search(query, mmr=0.5, where={"n": 1}) == []
        assert store.search(query, mmr=0.5, score_threshold=2) == []
        assert ids(store.search(query, mmr=0.5)) == ["a"]
        store.delete(where={})
        assert store.search(query, mmr=0.5) == []
