"""Index kinds: by name, by FAISS factory string, quantised by sentence-transformers, and the one to take."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from sentence_transformers import quantize_embeddings

from faiss_llm2vec import FaissStore, recommend_kind
from faiss_llm2vec.kinds import INDEX_FROM, KINDS, build, kind_of, nearest
from st_llm2vec.errors import InvalidInputError, StoreCorruptedError, StoreMismatchError

ROWS = INDEX_FROM + 200
NAMES = [str(i) for i in range(ROWS)]


def clustered(rows, dimension=32, seed=0):
    """50 clusters, as embeddings have: without any, no inverted list is better than another."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(9).standard_normal((50, dimension))
    vectors = centers[np.arange(rows) % 50] + rng.standard_normal((rows, dimension)) / 2
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("f4")


@pytest.fixture(scope="module")
def vectors():
    return clustered(ROWS)


def recall(store, vectors, mask, where=None, **options):
    queries = clustered(20, seed=1)
    scores = np.where(mask, queries @ vectors.T, -2)
    best = np.argsort(-scores, axis=1)[:, :10].tolist()
    hits = store.search_batch(queries, k=10, where=where, **options)
    for row, found in zip(scores, hits, strict=True):
        np.testing.assert_allclose([hit.score for hit in found], [row[int(hit.id)] for hit in found], atol=1e-5)
    return np.mean([len({int(hit.id) for hit in found} & set(row)) for found, row in zip(hits, best, strict=True)]) / 10


@pytest.mark.parametrize("kind", ["int8", "binary", "rabitq", "IVF32,PQ8", "HNSW8", "PCA16,IVF8,SQ4", "BHNSW16"])
def test_a_kind_finds_most_with_exact_scores_and_never_violates_a_filter(tmp_path, vectors, kind, monkeypatch):
    third = np.arange(ROWS) % 3 == 0
    with FaissStore.create(tmp_path / "s", None, kind=kind) as store:
        store.add(NAMES, ids=NAMES, vectors=vectors, metadata=[{"third": bool(yes)} for yes in third])
        assert store.stats()["segments"] == len(list((store.path / "segments").glob("*.index.faiss"))) == 1
    monkeypatch.setattr("faiss_llm2vec.segments.INDEX_FROM", 100)  # else so few matches would be scanned
    with FaissStore.open(tmp_path / "s", mmap=True) as store:
        assert recall(store, vectors, True) >= 0.7
        assert recall(store, vectors, third, {"third": True}) >= 0.7
        assert recall(store, vectors, True, effort=50) >= 0.9
        assert store.search(vectors[7], k=1)[0].id == "7"
        assert store.verify() == []


def test_where_an_index_cannot_reach_k_documents_all_are_compared(tmp_path, vectors, monkeypatch):
    """A graph that is not connected finds some of them only, and marks the others as -1."""

    def reaching_two(*arguments):
        found = nearest(*arguments)
        found[:, 2:] = -1
        return found

    with FaissStore.create(tmp_path / "s", None, kind="HNSW8") as store:
        store.add(NAMES, ids=NAMES, vectors=vectors)
        monkeypatch.setattr("faiss_llm2vec.segments.nearest", reaching_two)
        assert recall(store, vectors, True) == 1


def test_int8_and_binary_are_the_codes_of_sentence_transformers(vectors):
    int8 = build(KINDS["int8"], vectors, "cosine")
    codes = faiss.vector_to_array(int8.codes).reshape(ROWS, -1)
    ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    assert np.array_equal(codes.astype("i2") - 128, quantize_embeddings(vectors, "int8", ranges=ranges))
    trained = faiss.vector_to_array(int8.sq.trained).reshape(2, -1)  # the ranges, kept in the index file
    np.testing.assert_allclose([trained[0], trained[0] + trained[1]], ranges, atol=1e-6)

    binary = build(KINDS["binary"], vectors, "cosine")
    assert np.array_equal(faiss.vector_to_array(binary.xb).reshape(ROWS, -1), quantize_embeddings(vectors, "ubinary"))
    assert nearest(binary, vectors[:3], 1, None, 1.0).ravel().tolist() == [0, 1, 2]  # queries are packed the same way


def test_an_index_saves_memory_and_stats_shows_it(tmp_path, vectors):
    sizes = {}
    for kind in ("flat", "int8", "binary"):
        with FaissStore.create(tmp_path / kind, None, kind=kind) as store:
            store.add(NAMES, ids=NAMES, vectors=vectors)
        with FaissStore.open(tmp_path / kind) as store:
            sizes[kind] = store.stats()["bytes_in_memory"] - 8 * ROWS  # their ids
        with FaissStore.open(tmp_path / kind, mmap=True) as store:
            assert store.stats()["bytes_in_memory"] == 8 * ROWS
    assert sizes["flat"] >= 4 * 32 * ROWS
    assert sizes["int8"] == pytest.approx(32 * ROWS, rel=0.01)
    assert sizes["binary"] == pytest.approx(4 * ROWS, rel=0.01)


def test_vectors_that_are_quantised_already_are_refused(tmp_path, vectors):
    with FaissStore.create(tmp_path / "s", None) as store:
        for precision in ("int8", "ubinary"):
            with pytest.raises(InvalidInputError, match=r"quantised embeddings.*kind='int8'"):
                store.add(NAMES[:200], vectors=quantize_embeddings(vectors[:200], precision))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("best", "kind must be one of flat, fp16"),
        ("IVF16", "kind must be one of flat, fp16"),
        ("IDMap,Flat", "IndexIDMap, which cannot be filtered"),
        ("PQ16x4fs", "IndexPQFastScan, which cannot be filtered"),
        ("IVF16,PQ16,RFlat", "IndexRefineFlat, which cannot be filtered"),
        ("BIVF16", "IndexBinaryIVF, which cannot be filtered"),
        (7, "kind must be one of flat, fp16"),
    ],
)
def test_a_kind_that_cannot_be_is_refused_before_anything_is_made(tmp_path, kind, reason):
    with pytest.raises(InvalidInputError, match=reason):
        FaissStore.create(tmp_path / "s", None, kind=kind)
    assert not any(tmp_path.iterdir())


def test_a_kind_that_does_not_fit_the_dimension_or_the_metric_is_refused(tmp_path, make_encoder, vectors):
    with pytest.raises(InvalidInputError, match="PQ5"):
        FaissStore.create(tmp_path / "s", make_encoder(dimension=16), kind="PQ5")
    with pytest.raises(InvalidInputError, match="metric must be 'cosine'"):
        FaissStore.create(tmp_path / "s", None, kind="binary", metric="l2")
    with FaissStore.create(tmp_path / "s", None, kind="PQ5") as store:
        with pytest.raises(InvalidInputError, match="PQ5"):
            store.add(NAMES, ids=NAMES, vectors=vectors)
        assert store.count() == 0
        assert store.verify() == []


def test_a_segment_too_small_to_train_is_scanned_until_compact(tmp_path, vectors):
    kind = f"IVF{ROWS // 39 + 1},Flat"
    with FaissStore.create(tmp_path / "s", None, kind=kind) as store:
        store.add(NAMES, ids=NAMES, vectors=vectors)
        assert not list((store.path / "segments").glob("*.index.faiss"))
        store.add([f"more {i}" for i in range(100)], vectors=vectors[:100])
        store.compact()
        assert len(list((store.path / "segments").glob("*.index.faiss"))) == 1


def test_a_damaged_index_is_named_and_recover_scans_the_vectors(tmp_path, vectors):
    with FaissStore.create(tmp_path / "s", None, kind="sq8") as store:
        store.add(NAMES, ids=NAMES, vectors=vectors)
    (index,) = (tmp_path / "s" / "segments").glob("*.index.faiss")
    index.write_bytes(index.read_bytes()[:-1])
    for mmap in (False, True):
        with pytest.raises(StoreCorruptedError, match=index.name):
            FaissStore.open(tmp_path / "s", mmap=mmap)
    with FaissStore.open(tmp_path / "s", recover=True) as store:
        assert [index.name in line for line in store.missing] == [True]
        assert recall(store, vectors, True) == 1


def test_recommend_kind_goes_from_exact_to_small():
    assert recommend_kind(100_000, 256) == "flat"
    assert recommend_kind(100_000, 256, memory_budget=60e6) == "hnsw"
    assert recommend_kind(1_000_000, 256) == "hnsw"
    assert recommend_kind(1_000_000, 256, memory_budget=300e6) == "ivf"
    assert recommend_kind(1_000_000, 256, memory_budget=60e6) == "rabitq"
    with pytest.raises(InvalidInputError, match=r"48000000 bytes.*'rabitq'"):
        recommend_kind(1_000_000, 256, memory_budget=10e6)
    for kind in {recommend_kind(10**6, 256, budget) for budget in (60e6, 300e6, 1e12)}:
        assert kind_of(kind) is KINDS[kind]


# -- Matryoshka --------------------------------------------------------------------------------------------------------


def test_truncate_dim_keeps_the_first_numbers_of_documents_and_queries(tmp_path, encoder):
    texts = [f"text {i}" for i in range(40)]
    full, query = encoder.encode_document(texts), encoder.encode_query(["text 7 again"])
    with FaissStore.create(tmp_path / "s", encoder, truncate_dim=8) as store:
        store.add(texts, ids=texts)
        assert (store.stats()["dimension"], store.stats()["model_dimension"]) == (8, 16)
    cut, short = full[:, :8], query[:, :8]
    cosine = (cut @ short[0]) / np.linalg.norm(cut, axis=1) / np.linalg.norm(short)
    with FaissStore.open(tmp_path / "s", encoder) as store:
        for given in ("text 7 again", query[0], short[0]):
            hits = store.search(given, k=40)
            assert [hit.id for hit in hits] == [texts[i] for i in np.argsort(-cosine)]
            np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosine)[::-1], atol=1e-6)
        with pytest.raises(StoreMismatchError, match=r"dimension 8 \(cut from 16\), got 12"):
            store.search(np.ones(12))


def test_truncate_dim_of_a_store_without_a_model(tmp_path, encoder):
    with FaissStore.create(tmp_path / "s", None, truncate_dim=8) as store:
        with pytest.raises(InvalidInputError, match="must be of dimension truncate_dim=8 or more"):
            store.add(["a"], vectors=np.ones((1, 4)))
        store.add(["a"], vectors=np.ones((1, 16)))
        with pytest.raises(StoreMismatchError, match="got 32"):
            store.add(["b"], vectors=np.ones((1, 32)))
    FaissStore.open(tmp_path / "s", encoder).close()
    for wrong in (17, 0, 1.5):
        with pytest.raises(InvalidInputError, match="truncate_dim"):
            FaissStore.create(tmp_path / "t", encoder, truncate_dim=wrong)


# -- rescoring and training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
def test_candidates_of_an_index_are_rescored_with_the_float_vectors(tmp_path, metric):
    rng = np.random.default_rng(3)
    vectors, queries = rng.standard_normal((ROWS, 16)).astype("f4"), rng.standard_normal((5, 16)).astype("f4")
    exact = {
        "l2": -np.linalg.norm(queries[:, None] - vectors, axis=2),
        "dot": queries @ vectors.T,
        "cosine": queries @ vectors.T / np.linalg.norm(vectors, axis=1) / np.linalg.norm(queries, axis=1)[:, None],
    }[metric]
    with FaissStore.create(tmp_path / "s", None, kind="sq8", metric=metric) as store:
        store.add(NAMES, ids=NAMES, vectors=vectors)
        assert len(list((store.path / "segments").glob("*.index.faiss"))) == 1  # not scanned
        for hits, scores in zip(store.search_batch(queries, k=10), exact, strict=True):
            assert [int(hit.id) for hit in hits] == np.argsort(-scores)[:10].tolist()
            np.testing.assert_allclose([hit.score for hit in hits], np.sort(-scores)[:10] * -1, atol=1e-5)


@pytest.mark.parametrize("kind", ["PQ8", "IVF8,PQ8", "PCA16,PQ8", "HNSW8_PQ8"])
def test_product_quantizers_train_no_polysemous_codes(vectors, kind):
    assert polysemous(faiss.index_factory(32, kind, faiss.METRIC_INNER_PRODUCT)) == {True}
    # A search never asks for them, and making them takes most of the time.
    assert polysemous(build(kind_of(kind, 32), vectors, "cosine")) == {False}


def polysemous(index):
    """Whether the product quantizers in an index train polysemous codes, looked for wherever FAISS keeps an index."""
    found = {index.do_polysemous_training} if hasattr(index, "do_polysemous_training") else set()
    for name in ("index", "storage", "quantizer"):
        if isinstance(part := getattr(index, name, None), faiss.Index):
            found |= polysemous(faiss.downcast_index(part))
    return found
