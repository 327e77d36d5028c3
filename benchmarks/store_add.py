"""Seconds to add texts with precomputed vectors: FaissStore, our LangChain store, and the frameworks' own FAISS stores.

    python -m venv peers && peers/bin/pip install langchain-community==0.4.2 llama-index-vector-stores-faiss==0.7.0 \\
        faiss-cpu==1.15.1
    python benchmarks/store_add.py --peers peers/bin/python

Each store runs in a process of its own; they take turns, so that what else the machine does hits all of them alike.
Ours are durable when `add` returns. The frameworks' own keep everything in memory, so their time is given twice: in
memory only, and with the files written (not flushed) by `save_local` or `persist`, which write everything again.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TEXTS, DIMENSION = 20_000, 256


def documents():
    vectors = np.random.default_rng(0).standard_normal((TEXTS, DIMENSION)).astype("f4")
    texts = [f"Document {i}. " + "The quick brown fox jumps over the lazy dog. " * 6 for i in range(TEXTS)]
    metadata = [{"source": f"file-{i % 100}.md", "year": 2000 + i % 25} for i in range(TEXTS)]
    return texts, metadata, vectors


def timed(*steps):
    seconds = []
    for step in steps:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


# -- the stores: a function that adds everything to a new store in `folder` and returns seconds, per step -----------


def raw(folder, texts, metadata, vectors):
    from faiss_llm2vec import FaissStore

    with FaissStore.create(folder / "store", None) as store:
        return timed(lambda: store.add(texts, metadata=metadata, vectors=vectors))


class NoEmbeddings:
    """Stands in where a framework wants a model that is never called."""

    def embed_documents(self, texts):
        raise NotImplementedError

    embed_query = embed_documents


def langchain_ours(folder, texts, metadata, vectors):
    from langchain_llm2vec import FaissVectorStore

    store = FaissVectorStore(NoEmbeddings(), folder / "store")
    pairs = list(zip(texts, vectors.tolist(), strict=True))
    return timed(lambda: store.add_embeddings(pairs, metadata))


def langchain_own(folder, texts, metadata, vectors):
    import faiss
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS

    store = FAISS(NoEmbeddings(), faiss.IndexFlatL2(DIMENSION), InMemoryDocstore(), {})
    pairs = list(zip(texts, vectors.tolist(), strict=True))
    return timed(lambda: store.add_embeddings(pairs, metadata), lambda: store.save_local(str(folder / "store")))


def llama_index_own(folder, texts, metadata, vectors):
    import faiss
    from llama_index.core.schema import TextNode
    from llama_index.core.storage.docstore import SimpleDocumentStore
    from llama_index.vector_stores.faiss import FaissVectorStore

    store, texts_too = FaissVectorStore(faiss.IndexFlatL2(DIMENSION)), SimpleDocumentStore()
    nodes = [
        TextNode(text=text, metadata=labels, embedding=vector)
        for text, labels, vector in zip(texts, metadata, vectors.tolist(), strict=True)
    ]

    def add():  # the vector store keeps no texts; its index puts them into a document store
        store.add(nodes)
        texts_too.add_documents(nodes)

    def save():
        store.persist(str(folder / "vectors"))
        texts_too.persist(str(folder / "docs.json"))

    return timed(add, save)


OURS = {"FaissStore": raw, "our LangChain store": langchain_ours}
PEERS = {"LangChain's own": langchain_own, "LlamaIndex's own": llama_index_own}


# -- taking turns ----------------------------------------------------------------------------------------------------


def worker(name):
    data = documents()
    run = {**OURS, **PEERS}[name]
    for _ in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            print(*run(Path(folder), *data), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="python of an environment with the frameworks' own stores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.worker)
    pythons = dict.fromkeys(OURS, sys.executable) | (dict.fromkeys(PEERS, arguments.peers) if arguments.peers else {})
    workers = {
        name: subprocess.Popen(
            [python, __file__, "--worker", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name, python in pythons.items()
    }
    rounds = {name: [] for name in workers}
    for number in range(arguments.rounds + 1):
        for name, process in workers.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            seconds = [float(word) for word in process.stdout.readline().split()]
            if number:  # the first is warm-up
                rounds[name].append((seconds[0], sum(seconds)))
    for process in workers.values():
        process.stdin.close()
        process.wait()
    base = statistics.median(total for _, total in rounds["FaissStore"])
    print(f"{TEXTS} texts, dimension {DIMENSION}, median of {arguments.rounds} rounds (fastest, slowest)")
    for name, times in rounds.items():
        for column, what in enumerate(("in memory", "on disk")):
            chosen = [row[column] for row in times]
            if name in OURS and column == 0:
                continue
            print(
                f"  {name:22s}{what:12s}{statistics.median(chosen):7.3f} s ({min(chosen):.3f}, {max(chosen):.3f})"
                f"{statistics.median(chosen) / base:8.2f} x FaissStore"
            )
    return None


if __name__ == "__main__":
    main()
