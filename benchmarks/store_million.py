"""A store of 1,000,000 x 256 vectors: building, disk, memory, exact filtered search, and changing it.

    python benchmarks/store_million.py                             # flat; minutes, 3 GB of disk, 6 GB of memory
    python benchmarks/store_million.py --kind ivf --count 200000
    python benchmarks/store_million.py --peers peers/bin/python        # see store_add.py; 10 GB of memory

Prints recall against brute force, and latencies as medians of queries that take turns (unfiltered, 1 %, 0.1 %), so
that their ratio holds on a busy machine. Of other steps it prints the seconds and, in brackets, those of the processor:
on an idle machine the two are close. `--peers` adds what LangChain's own FAISS store finds under the same filters
with its default fetch of 20 candidates, and what LlamaIndex's own says about filters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

DIMENSION, K, QUERIES, BATCH, CHANGED = 256, 10, 20, 100_000, 10_000
# The bucket of document i is i % 1000.
FILTERS = {"unfiltered": None, "1 %": {"bucket": {"$lt": 10}}, "0.1 %": {"bucket": 0}}
SHARES = {"unfiltered": 1000, "1 %": 10, "0.1 %": 1}  # buckets below this match


def vectors_of(count, seed):
    """Unit vectors in clusters, as embeddings have them."""
    centers = np.random.default_rng(0).standard_normal((1000, DIMENSION), dtype="f4")
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, DIMENSION), dtype="f4")
    vectors += centers[rng.integers(0, 1000, count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def memory():
    """MB that this process holds, and MB of files mapped into it."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile")]


def best(vectors, query, below):
    """Row numbers of the true top k among documents of buckets below `below`."""
    rows = np.flatnonzero(np.arange(len(vectors)) % 1000 < below)
    scores = (vectors if below == 1000 else vectors[rows]) @ query
    return rows[np.argsort(-scores)[:K]]


def measured(vectors, queries, search):
    """Per filter, (median ms, recall@k); `search(query, where)` returns row numbers."""
    times, right = {name: [] for name in FILTERS}, dict.fromkeys(FILTERS, 0)
    search(queries[0], None)  # warm-up
    for query in queries:
        for name, where in FILTERS.items():
            start = time.perf_counter()
            found = search(query, where)
            times[name].append(1000 * (time.perf_counter() - start))
            right[name] += len(set(found) & set(best(vectors, query, SHARES[name]).tolist()))
    return {name: (statistics.median(times[name]), right[name] / K / len(queries)) for name in FILTERS}


def show(results):
    base = results["unfiltered"][0]
    for name, (ms, recall) in results.items():
        print(f"  search, {name:22s}{ms:9.2f} ms ({ms / base:.2f} x unfiltered), recall@{K} {recall:.3f}", flush=True)


@contextmanager
def step(name):
    wall, processor = time.perf_counter(), time.process_time()
    yield
    print(f"  {name:30s}{time.perf_counter() - wall:9.2f} s ({time.process_time() - processor:.2f})", flush=True)


# -- ours ------------------------------------------------------------------------------------------------------------


def ours(folder, kind, vectors, queries):
    from faiss_llm2vec import FaissStore

    count = len(vectors)
    print(f"FaissStore, kind {kind}: {count} x {DIMENSION}")
    with FaissStore.create(folder, None, kind=kind) as store:
        with step(f"add, {BATCH} at a time"):
            for first in range(0, count, BATCH):
                rows = range(first, min(first + BATCH, count))
                store.add(
                    [f"document {i}" for i in rows],
                    ids=[str(i) for i in rows],
                    metadata=[{"bucket": i % 1000} for i in rows],
                    vectors=vectors[rows.start : rows.stop],
                )
        with step("compact"):
            store.compact()
        stats = store.stats()
        print(
            f"  on disk                       {stats['bytes_on_disk'] / 1e6:9.0f} MB "
            f"(the float vectors are {vectors.nbytes / 1e6:.0f})"
        )
    command = [sys.executable, __file__, "--open", str(folder)]
    opened = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    print(
        f"  open, mmap                    {opened['seconds']:9.2f} s, {opened['held']:.0f} MB of memory held "
        f"(+ {opened['mapped']:.0f} MB of mapped files after {QUERIES} searches, which the system may take back)"
    )
    with FaissStore.open(folder, mmap=kind != "flat") as store:

        def search(query, where):
            return [int(hit.id) for hit in store.search(query, K, where=where)]

        show(measured(vectors, queries, search))
        ids = [str(i) for i in np.random.default_rng(3).choice(count, CHANGED, replace=False)]
        fresh = vectors_of(CHANGED, seed=4)
        # Half of the documents are deleted and come back; the other half is replaced.
        with step(f"delete {CHANGED // 2}, upsert {CHANGED}"):
            assert store.delete(ids[: CHANGED // 2]) == CHANGED // 2
            store.upsert(
                [f"new {id}" for id in ids], ids=ids, metadata=[{"bucket": int(id) % 1000} for id in ids], vectors=fresh
            )
        vectors[[int(id) for id in ids]] = fresh
        show(measured(vectors, queries, search))
        with step("verify"):
            assert store.verify() == []


def opened(folder, queries):
    """A process that maps the store and searches; prints what that costs."""
    from faiss_llm2vec import FaissStore

    before = memory()[0]
    start = time.perf_counter()
    with FaissStore.open(folder, mmap=True) as store:
        seconds = time.perf_counter() - start
        for query in queries:
            store.search(query, K)
        held, mapped = memory()
    print(json.dumps({"seconds": seconds, "held": held - before, "mapped": mapped}))


# -- the frameworks' own ---------------------------------------------------------------------------------------------


def peers(count):
    import faiss
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import MetadataFilters, VectorStoreQuery
    from llama_index.vector_stores.faiss import FaissVectorStore

    vectors, queries = vectors_of(count, seed=1), vectors_of(QUERIES, seed=2)
    before = memory()[0]
    print(f"LangChain's own FAISS store, in memory: {count} x {DIMENSION}")
    store = FAISS(None, faiss.IndexFlatIP(DIMENSION), InMemoryDocstore(), {})
    with step("add, 20000 at a time"):
        for first in range(0, count, 20_000):
            rows = range(first, min(first + 20_000, count))
            pairs = [(f"document {i}", vector) for i, vector in zip(rows, vectors[rows.start : rows.stop], strict=True)]
            store.add_embeddings(pairs, [{"bucket": i % 1000} for i in rows], ids=[str(i) for i in rows])
    print(f"  memory                        {memory()[0] - before:9.0f} MB held", flush=True)

    def search(query, where):
        hits = store.similarity_search_with_score_by_vector(query.tolist(), k=K, filter=where)
        return [int(document.id) for document, _ in hits]

    show(measured(vectors, queries, search))

    llama = FaissVectorStore(faiss.IndexFlatIP(DIMENSION))
    llama.add([TextNode(text="document", embedding=vectors[0].tolist(), metadata={"bucket": 0})])
    query = VectorStoreQuery(queries[0].tolist(), similarity_top_k=K, filters=MetadataFilters.from_dict({"bucket": 0}))
    print(f"LlamaIndex's own FAISS store: filters {outcome(lambda: llama.query(query))}")
    print(f"LlamaIndex's own FAISS store: delete {outcome(lambda: llama.delete('document'))}")


def outcome(call):
    try:
        call()
    except Exception as error:  # whatever it says is the finding
        return f"raise {type(error).__name__}: {str(error)[:90]}"
    return "work"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--kind", default="flat")
    parser.add_argument("--folder", type=Path, help="where the store goes; a temporary folder by default")
    parser.add_argument("--peers", help="python of an environment with the frameworks' own stores")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peers-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    queries = vectors_of(QUERIES, seed=2)
    if arguments.open:
        opened(arguments.open, queries)
    elif arguments.peers_only:
        peers(arguments.count)
    else:
        with tempfile.TemporaryDirectory() as folder:
            ours(arguments.folder or Path(folder) / "store", arguments.kind, vectors_of(arguments.count, 1), queries)
        if arguments.peers:
            command = [arguments.peers, __file__, "--peers-only", "--count", str(arguments.count)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
