"""nDCG@10 of dense, word and hybrid search: FaissStore over the corpora of SciFact and Cranfield.

    python benchmarks/hybrid.py --data DIR                                  # llm2vec-tiny
    python benchmarks/hybrid.py --data DIR --model all-MiniLM-L6-v2 --rerank cross-encoder/ms-marco-MiniLM-L6-v2

DIR has a folder for each task, in the files that `st-llm2vec eval` reads; the figure is the one that it prints, the
mean over the queries of the test split.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

import st_llm2vec  # noqa: F401  (its names open)
from faiss_llm2vec import FaissStore
from faiss_llm2vec.searching import MODES
from st_llm2vec.evaluation import retrieval, tasks

K = 10


def ndcg(judged: Any, store: FaissStore, vectors: Any, **options: Any) -> float:
    """nDCG@10 of a way of searching."""
    batch = store.search_batch(list(judged.queries.values()), K, vectors=vectors, **options)
    rankings = zip(judged.queries, ([hit.id for hit in hits] for hits in batch), strict=True)
    return float(np.mean([retrieval.ndcg(ranking, judged.grades[query]) for query, ranking in rankings]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["scifact", "cranfield"])
    parser.add_argument("--model", default="llm2vec-tiny")
    parser.add_argument("--rerank", help="a cross-encoder, for a row of its own")
    arguments = parser.parse_args()
    model = SentenceTransformer(arguments.model, device="cpu")
    print("| task | queries | documents | model | " + " | ".join(MODES) + " |", flush=True)
    print("| --- " * (4 + len(MODES)) + "|", flush=True)
    for task in tasks.find(arguments.data, arguments.tasks):
        judged = retrieval.read(task.source)
        with tempfile.TemporaryDirectory() as folder, FaissStore.create(Path(folder) / "store", model) as store:
            store.add(list(judged.corpus.values()), ids=list(judged.corpus))
            vectors = model.encode_query(list(judged.queries.values()))
            ways = {Path(arguments.model).name: {}}
            if arguments.rerank:
                ways[f"... reranked by {Path(arguments.rerank).name}"] = {"rerank": arguments.rerank}
            for name, options in ways.items():
                scores = [
                    ndcg(judged, store, vectors if MODES[mode][0] else None, mode=mode, **options) for mode in MODES
                ]
                row = [task.name, len(judged.queries), len(judged.corpus), name, *(f"{score:.3f}" for score in scores)]
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
