"""What our framework stores cost over the raw store, and LangChain's and LlamaIndex's own FAISS stores beside them.

    make .venv-databases/.ready
    .venv-databases/bin/python benchmarks/frameworks.py [ROUNDS]

Each store adds the same texts with the same vectors, given as frameworks give them (lists of floats), one store after
the other in each round; the ratios are medians over the rounds of the ratio within a round. Ours is on the disk,
flushed, when its call returns; the stores of LangChain and LlamaIndex are in memory only.

Recall is over the ten nearest among the 1 % of documents that match a filter. LlamaIndex's FAISS stores refuse filters.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import ExactMatchFilter, MetadataFilters
from llama_index.core.vector_stores.types import VectorStoreQuery

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from stdlib_docs import passages

from faiss_llm2vec import FaissStore

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 7
COUNT, DIMENSION, GROUPS, K = 20_000, 256, 100, 10
EMBEDDINGS = DeterministicFakeEmbedding(size=DIMENSION)  # names the model; it is never asked

real = [passage.text for passage in passages()]
TEXTS = [real[n % len(real)] for n in range(COUNT)]
IDS = [f"doc-{n}" for n in range(COUNT)]
METADATA = [{"n": n, "group": n % GROUPS} for n in range(COUNT)]
ARRAY = np.random.default_rng(0).standard_normal((COUNT, DIMENSION), dtype=np.float32)
ARRAY /= np.linalg.norm(ARRAY, axis=1, keepdims=True)
VECTORS = ARRAY.tolist()
QUERIES = ARRAY[::1999]


def raw(folder: Path) -> Any:
    store = FaissStore.create(folder / "store", None)
    store.add(TEXTS, ids=IDS, metadata=METADATA, vectors=VECTORS)
    return store


def langchain_ours(folder: Path) -> Any:
    from langchain_llm2vec import FaissVectorStore

    store = FaissVectorStore(EMBEDDINGS, folder / "store")
    store.add_embeddings(zip(TEXTS, VECTORS, strict=True), METADATA, ids=IDS)
    return store


def langchain_faiss(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its package says that it will not be maintained
        from langchain_community.docstore.in_memory import InMemoryDocstore
        from langchain_community.vectorstores import FAISS

    store = FAISS(EMBEDDINGS, faiss.IndexFlatIP(DIMENSION), InMemoryDocstore(), {})
    store.add_embeddings(zip(TEXTS, VECTORS, strict=True), METADATA, ids=IDS)
    return store


def _nodes() -> list[TextNode]:
    return [
        TextNode(id_=id, text=text, metadata=fields, embedding=vector)
        for id, text, fields, vector in zip(IDS, TEXTS, METADATA, VECTORS, strict=True)
    ]


def llama_index_ours(folder: Path) -> Any:
    from llama_index_llm2vec import FaissVectorStore

    store = FaissVectorStore(folder / "store")
    store.add(NODES)
    return store


def llama_index_faiss(folder: Path) -> Any:
    from llama_index.vector_stores.faiss import FaissVectorStore

    store = FaissVectorStore(faiss.IndexFlatIP(DIMENSION))
    store.add(NODES)
    return store


def llama_index_faiss_map(folder: Path) -> Any:
    from llama_index.vector_stores.faiss import FaissMapVectorStore

    store = FaissMapVectorStore(faiss.IndexIDMap2(faiss.IndexFlatIP(DIMENSION)))
    store.add(NODES)
    return store


def _among(group: int) -> MetadataFilters:
    return MetadataFilters(filters=[ExactMatchFilter(key="group", value=group)])


def found_by_raw(store: Any, query: Any, group: int) -> list[str]:
    return [hit.id for hit in store.search(query, K, where={"group": group})]


def found_by_langchain(store: Any, query: Any, group: int) -> list[str]:
    return [d.id for d in store.similarity_search_by_vector(query.tolist(), k=K, filter={"group": group})]


def found_by_llama_index(store: Any, query: Any, group: int) -> list[str]:
    request = VectorStoreQuery(query_embedding=query.tolist(), similarity_top_k=K, filters=_among(group))
    return list(store.query(request).ids)


Found = Callable[[Any, Any, int], list[str]]
STORES: dict[str, tuple[Callable[[Path], Any], Found]] = {
    "FaissStore": (raw, found_by_raw),
    "langchain_llm2vec": (langchain_ours, found_by_langchain),
    "LangChain's FAISS": (langchain_faiss, found_by_langchain),
    "llama_index_llm2vec": (llama_index_ours, found_by_llama_index),
    "LlamaIndex's Faiss": (llama_index_faiss, found_by_llama_index),
    "LlamaIndex's FaissMap": (llama_index_faiss_map, found_by_llama_index),
}
NODES = _nodes()


def recall(store: Any, found: Found) -> str:
    """Share of the true ten nearest among the documents of one group, over all queries."""
    right = 0
    for number, query in enumerate(QUERIES):
        group = np.arange(number, COUNT, GROUPS)
        true = {IDS[row] for row in group[np.argsort(-(ARRAY[group] @ query))[:K]]}
        try:
            right += len(true & set(found(store, query, number)))
        except ValueError:  # how LlamaIndex's own say that they cannot filter
            return "cannot"
    return f"{right / (K * len(QUERIES)):.3f}"


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in STORES}
    recalls = {}
    for number in range(ROUNDS):
        for name, (build, found) in STORES.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                store = build(Path(folder))
                seconds[name].append(time.perf_counter() - started)
                if name not in recalls:
                    recalls[name] = recall(store, found)
                if hasattr(store, "close"):
                    store.close()
        print(f"round {number + 1}: " + ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items()))

    def ratio(name: str, base: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))

    print(f"\n{COUNT} texts of the standard library with vectors of {DIMENSION}, {ROUNDS} rounds, medians\n")
    print(f"{'store':24}{'add, s':>9}{'/ FaissStore':>14}{'/ LangChain':>13}{'recall under filter':>21}")
    for name, times in seconds.items():
        against = ratio(name, "FaissStore"), ratio(name, "LangChain's FAISS")
        print(f"{name:24}{statistics.median(times):9.2f}{against[0]:14.2f}{against[1]:13.2f}{recalls[name]:>21}")


if __name__ == "__main__":
    main()
