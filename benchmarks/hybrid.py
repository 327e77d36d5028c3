"""nDCG@10 of dense, word and hybrid search: FaissStore over the corpora of SciFact and Cranfield.

    python benchmarks/hybrid.py --data DIR                                  # llm2vec-tiny
    python benchmarks/hybrid.py --data DIR --model all-MiniLM-L6-v2 --rerank cross-encoder/ms-marco-MiniLM-L6-v2

DIR has a folder for each task, in the files that `st-llm2vec eval` reads; the figure is that of sentence-transformers'
`InformationRetrievalEvaluator`, over the queries of the test split.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

import st_llm2vec  # noqa: F401  (its names open)
from faiss_llm2vec import FaissStore
from faiss_llm2vec.searching import MODES
from st_llm2vec.evaluation import retrieval_evaluator

K = 10


def ndcg(evaluator: Any, store: FaissStore, vectors: Any, **options: Any) -> float:
    """nDCG@10 of a way of searching, as the evaluator works it out."""
    batch = store.search_batch(evaluator.queries, K, vectors=vectors, **options)
    found = [[{"corpus_id": hit.id, "score": hit.score} for hit in hits] for hits in batch]
    # Fused scores can be the same; hits are in the order that counts.
    for hits in found:
        for place, hit in enumerate(hits):
            hit["score"] = -place
    return float(evaluator.compute_metrics(found)["ndcg@k"][K])


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
    for task in arguments.tasks:
        evaluator = retrieval_evaluator(arguments.data / task, "test")
        with tempfile.TemporaryDirectory() as folder, FaissStore.create(Path(folder) / "store", model) as store:
            store.add(evaluator.corpus, ids=evaluator.corpus_ids)
            vectors = model.encode_query(evaluator.queries)
            ways = {Path(arguments.model).name: {}}
            if arguments.rerank:
                ways[f"... reranked by {Path(arguments.rerank).name}"] = {"rerank": arguments.rerank}
            for name, options in ways.items():
                scores = [
                    ndcg(evaluator, store, vectors if MODES[mode][0] else None, mode=mode, **options) for mode in MODES
                ]
                row = [task, len(evaluator.queries), len(evaluator.corpus), name, *(f"{score:.3f}" for score in scores)]
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
