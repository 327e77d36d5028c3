"""Our embeddings in real databases, through the frameworks' own stores: the ranking is that of exact search."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from databases.stores import STORES
from stdlib_docs import passages

QUERIES = ["copy a directory tree", "parse a JSON document", "median of numbers", "wrap a long paragraph"]
MODULES = ("csv", "heapq", "json", "shutil", "statistics", "textwrap")
K = 10


@pytest.fixture(scope="session")
def documents():
    """Ids (UUIDs, since Qdrant takes no others), texts and modules."""
    found = [passage for passage in passages() if passage.module in MODULES]
    assert len(found) >= 80
    ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, passage.name)) for passage in found]
    return ids, [f"{passage.name}: {passage.text}" for passage in found], [passage.module for passage in found]


@pytest.fixture(scope="session")
def exact(encoder, documents):
    """Exact search by NumPy: the ids of the best of those allowed, best first."""
    ids, texts, modules = documents
    vectors = encoder.encode_document(texts, normalize_embeddings=True)

    def search(query, *, without=(), module=None):
        scores = vectors @ encoder.encode_query([query], normalize_embeddings=True)[0]
        order = [row for row in np.argsort(-scores) if ids[row] not in without and module in (None, modules[row])]
        return [ids[row] for row in order[:K]]

    return search


@pytest.mark.parametrize("name", STORES)
def test_add_search_filter_delete_reopen(name, documents, exact, tmp_path, request):
    if name.startswith("langchain"):
        embeddings = request.getfixturevalue("langchain_embeddings")
    else:
        embeddings = request.getfixturevalue("llama_index_embedding")
    postgres = request.getfixturevalue("postgres") if name.endswith("pgvector") else ""
    options = {"dimension": request.getfixturevalue("encoder").get_embedding_dimension(), "postgres": postgres}
    ids, texts, modules = documents

    with STORES[name](tmp_path, embeddings, **options) as database:
        database.add(ids, texts, modules)
        for query in QUERIES:
            assert database.search(query, K) == exact(query)
            assert database.search(query, K, module="json") == exact(query, module="json")
        assert database.text(QUERIES[0]) == texts[ids.index(exact(QUERIES[0])[0])]
        gone = exact(QUERIES[0])[:3]
        database.delete(gone)
        assert database.search(QUERIES[0], K) == exact(QUERIES[0], without=gone)

    with STORES[name](tmp_path, embeddings, **options) as database:
        for query in QUERIES:
            assert database.search(query, K) == exact(query, without=gone)
        database.add(gone[:1], [texts[ids.index(gone[0])]], [modules[ids.index(gone[0])]])
        assert database.search(QUERIES[0], K) == exact(QUERIES[0], without=gone[1:])
