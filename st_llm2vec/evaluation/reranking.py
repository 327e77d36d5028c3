"""Reranking: mean average precision of each query's own candidates; BM25 on the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from sentence_transformers.sentence_transformer.evaluation import RerankingEvaluator
from sentence_transformers.util import cos_sim
from sklearn.metrics import average_precision_score

from ..errors import InvalidInputError
from .bm25 import BM25
from .files import Source, text, texts
from .kind import Kind, run

Samples = list[dict[str, Any]]  # query, positive, negative


def read(source: Source) -> Samples:
    """Columns query, positive, negative: texts or lists of texts; rows of one query are one question.

    Queries without a positive or without a negative, which every ranking gets right or wrong, are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in source.rows("query", "positive", "negative"):
        query = text(row, "query")
        sample = found.setdefault(query, {"query": query, "positive": [], "negative": []})
        for side in ("positive", "negative"):
            sample[side] += [each for each in texts(row, side) if each not in sample[side]]
    samples = [sample for sample in found.values() if sample["positive"] and sample["negative"]]
    if not samples:
        raise InvalidInputError(f"{source.path}: no query has both a positive and a negative text.")
    return samples


def rank(model: Any, samples: Samples) -> Any:
    """One column: the average precision of each query."""
    scores: list[Any] = []

    def similarity(query: Any, documents: Any) -> Any:
        found = cos_sim(query, documents)
        scores.append(found[0].cpu().numpy())
        return found

    run(RerankingEvaluator(samples, similarity_fct=similarity), model)
    return _items(samples, scores)


def rank_by_words(samples: Samples) -> Any:
    """The same of BM25; how rare a word is counts over the candidates of all queries."""
    documents = [document for sample in samples for document in (*sample["positive"], *sample["negative"])]
    scores, first = [], 0
    with BM25(documents) as index:
        for sample in samples:
            last = first + len(sample["positive"]) + len(sample["negative"])
            own = np.zeros(last - first)
            for position, value in index.search(sample["query"], last - first, (first, last)):
                own[position - first] = value
            scores.append(own)
            first = last
    return _items(samples, scores)


def _items(samples: Samples, scores: list[Any]) -> Any:
    known = [[1] * len(sample["positive"]) + [0] * len(sample["negative"]) for sample in samples]
    return np.array([[average_precision_score(*each)] for each in zip(known, scores, strict=True)])


KIND = Kind(
    name="reranking",
    metric="MAP",
    columns=("query", "positive", "negative"),
    layout="test.*: query, positive, negative (texts or lists of texts; rows of one query belong together)",
    read=read,
    measure=rank,
    statistic=lambda items: float(items.mean()),
    bm25=rank_by_words,
)
