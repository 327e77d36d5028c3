"""The stores that the conformance suite runs against, and what it asks of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# What a test of the suite `needs`, in the words of the table in docs/frameworks.md.
ABILITIES = {
    "empty": "a search of an empty store finds nothing",
    "ranking": "ids of the nearest nodes, nearest first",
    "scores": "similarities are cosines",
    "filters": "every filter operator, and `k` counts what passes",
    "nested": "filters in filters",
    "node_ids": "search among given node ids",
    "mmr": "maximal marginal relevance",
    "delete": "delete a source document",
    "delete_nodes": "delete nodes by id, by filter, by both",
    "reuse": "a node added after a delete is found as itself",
    "replace": "a node with an existing id replaces it",
    "clear": "clear",
    "nodes": "a search returns whole nodes",
    "get_nodes": "get nodes by id, by filter, by both",
    "reopen": "persist, and open again in another object",
    "async": "the async twins",
}
# Lacks of LlamaIndex's in-memory store; differences.py fails if one of these is none.
SIMPLE_LACKS = {"nested", "nodes", "get_nodes"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(ability): what a vector store must be able to do to pass")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stores", help="run all of the conformance suite against these, separated by commas")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "open_store" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--stores")
    mark = metafunc.definition.get_closest_marker("needs")
    if chosen is None:
        lacks = mark is not None and mark.args[0] in SIMPLE_LACKS
        chosen = "ours" if lacks else "ours,simple"
    metafunc.parametrize("opener", chosen.split(","))


def _ours(folder: Path) -> Any:
    from llama_index_llm2vec import FaissVectorStore

    return FaissVectorStore(path=folder / "store")


def _simple(folder: Path) -> Any:
    from llama_index.core.vector_stores import SimpleVectorStore

    file = folder / "persisted"
    return SimpleVectorStore.from_persist_path(str(file)) if file.exists() else SimpleVectorStore()


def _faiss(folder: Path) -> Any:
    import faiss

    theirs = importlib.import_module("llama_index.vector_stores.faiss")
    file = folder / "persisted"
    if file.exists():
        return theirs.FaissVectorStore.from_persist_path(str(file))
    return theirs.FaissVectorStore(faiss.IndexFlatL2(2))


def _faiss_map(folder: Path) -> Any:
    import faiss

    theirs = importlib.import_module("llama_index.vector_stores.faiss")
    file = folder / "persisted"
    if file.exists():
        return theirs.FaissMapVectorStore.from_persist_path(str(file))
    return theirs.FaissMapVectorStore(faiss.IndexIDMap2(faiss.IndexFlatL2(2)))


OPENERS: dict[str, Callable[[Path], Any]] = {
    "ours": _ours,
    "simple": _simple,
    "faiss": _faiss,
    "faiss-map": _faiss_map,
}


@pytest.fixture
def open_store(opener: str, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Opens the store of this test; again, it finds what was persisted to `persisted` beside it."""
    opened = []

    def open_it() -> Any:
        opened.append(OPENERS[opener](tmp_path))
        return opened[-1]

    yield open_it
    for store in opened:
        if hasattr(store, "close"):
            store.close()


@pytest.fixture
def store(open_store: Callable[[], Any]) -> Any:
    return open_store()
