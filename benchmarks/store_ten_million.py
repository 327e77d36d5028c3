"""A store of 10,000,000 x 256 vectors out of shards: building, disk, memory, recall@10 on a sample of queries.

    python benchmarks/store_ten_million.py --folder DIR                 # 30 GB of disk
    python benchmarks/store_ten_million.py --folder DIR --count 200000  # to try it out
    python benchmarks/store_ten_million.py --folder DIR                 # again, after a kill: goes on where it was

The shards are those of `encode_corpus`, with an encoder that makes up the vectors: unit vectors in clusters, as
embeddings have them, the same in every run. `st-llm2vec index --from-vectors` builds the store, in a process of its own
whose most memory is printed; another process maps it and searches. Recall is against brute force over the shards. Of
each step it prints the seconds and, in brackets, those of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

DIMENSION, CLUSTERS, K = 256, 10_000, 10
SHARD = 100_000


class Made:
    """An encoder of texts that are numbers, with no model behind it."""

    fingerprint, max_seq_length, dtype = "made up", 512, "float32"

    def __init__(self) -> None:
        self.prompts = {"query": "", "document": ""}
        self.centers = np.random.default_rng(0).standard_normal((CLUSTERS, DIMENSION), dtype="f4")

    def __getitem__(self, position: int) -> Made:
        return self

    def tokenizer(self, text: str, **options: object) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text.split())}

    def get_embedding_dimension(self) -> int:
        return DIMENSION

    def encode_document(self, texts: list[str], **options: object) -> np.ndarray:
        """The vectors of a block of numbers that follow one another."""
        return self.vectors(len(texts), seed=int(texts[0].split()[-1]) + 1)

    encode_query = encode_document

    def vectors(self, count: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        vectors = rng.standard_normal((count, DIMENSION), dtype="f4")
        vectors += self.centers[rng.integers(0, CLUSTERS, count)]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def step(name: str, command: list[str]) -> None:
    """Run a command, and say what it took."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed")
    seconds = time.perf_counter() - started
    cpu = used.ru_utime + used.ru_stime
    print(f"  {name:28s}{seconds:9.1f} s ({cpu:.1f}), at most {used.ru_maxrss / 2**20:.2f} GiB of memory", flush=True)


def make(folder: Path, count: int) -> None:
    from st_llm2vec import encode_corpus

    rows = ({"text": f"document {i}", "bucket": i % 1000} for i in range(count))
    encode_corpus(Made(), rows, folder, shard_size=SHARD)


def nearest(vectors: Path, queries: np.ndarray) -> np.ndarray:
    """The true numbers of the nearest (queries, K), by brute force over the shards."""
    from st_llm2vec.shards import embeddings

    best = np.full((len(queries), K), -np.inf, dtype="f4")
    numbers = np.zeros((len(queries), K), dtype=np.int64)
    first = 0
    for path in sorted(vectors.glob("*.parquet")):
        part = embeddings(path)
        scores = np.concatenate([best, queries @ part.T], axis=1)
        found = np.concatenate([numbers, np.broadcast_to(np.arange(first, first + len(part)), scores[:, K:].shape)], 1)
        order = np.argpartition(-scores, K, axis=1)[:, :K]
        best, numbers = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
        first += len(part)
    return numbers


def search(store: Path, vectors: Path, queries: int) -> None:
    """In a process of its own: open, search, and compare."""
    from faiss_llm2vec import FaissStore

    asked = Made().vectors(queries, seed=10**9)
    started = time.perf_counter()
    with FaissStore.open(store, mmap=True) as opened:
        print(f"  open, mapped                {time.perf_counter() - started:9.1f} s; {json.dumps(opened.stats())}")
        for effort in (0.25, 1.0, 2.0):
            times, found = [], []
            for query in asked:
                started = time.perf_counter()
                found.append({int(hit.text.split()[-1]) for hit in opened.search(query, K, effort=effort)})
                times.append(1000 * (time.perf_counter() - started))
            if effort == 0.25:
                true = nearest(vectors, asked)
            recall = np.mean([len(hits & set(row.tolist())) / K for hits, row in zip(found, true, strict=True)])
            print(f"  search, effort {effort:<13}{np.median(times):9.1f} ms, recall@{K} {recall:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for shards and store; stays")
    parser.add_argument("--count", type=int, default=10_000_000)
    parser.add_argument("--kind", default="ivf")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--step", choices=["make", "search"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    vectors, store = arguments.folder / "vectors", arguments.folder / "store"
    if arguments.step == "make":
        make(vectors, arguments.count)
    elif arguments.step == "search":
        search(store, vectors, arguments.queries)
    else:
        print(f"{arguments.count} x {DIMENSION}, kind {arguments.kind}", flush=True)
        again = [sys.executable, __file__, *sys.argv[1:], "--step"]
        step("make up and write shards", [*again, "make"])
        line = [sys.executable, "-m", "st_llm2vec", "--quiet", "index", "--from-vectors", str(vectors), str(store)]
        step("index --from-vectors", [*line, "--kind", arguments.kind])
        for name, folder in (("shards", vectors), ("store", store)):
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            print(f"  {name} on disk{size / 2**30:21.2f} GiB", flush=True)
        step("search and brute force", [*again, "search"])


if __name__ == "__main__":
    main()
