"""Retrieval: nDCG@10 of the queries that a split judges, against the whole corpus; BM25 on the same."""

from __future__ import annotations

import csv
from typing import Any, NamedTuple

import numpy as np
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim

from ..errors import InvalidInputError
from .bm25 import BM25
from .files import Source, number, shards, text
from .kind import Kind, run

K = 10


class Judged(NamedTuple):
    """Queries and documents by id, and for each query the grades (> 0) of the documents that answer it."""

    queries: dict[str, str]
    corpus: dict[str, str]
    grades: dict[str, dict[str, float]]


def read(source: Source) -> Judged:
    """A folder of corpus, queries and qrels; or one file of pairs: a query, and the document that answers it."""
    if source.is_file or not shards(source.path, "corpus"):
        return _pairs(source)
    grades: dict[str, dict[str, float]] = {}
    for query, document, grade in _qrels(source):
        if grade > 0:
            grades.setdefault(query, {})[document] = grade
    queries = {str(row["_id"]): text(row, "text") for row in source.rows("_id", "text", split="queries")}
    documents = source.rows("_id", "text", split="corpus", optional=("title",))
    corpus = {str(row["_id"]): f"{row['title'] or ''} {text(row, 'text')}".strip() for row in documents}
    if lost := [query for query in grades if query not in queries]:
        raise InvalidInputError(f"{source.path}: qrels judge the query {lost[0]!r}, which is not in queries.")
    if absent := [(q, d) for q, found in grades.items() for d in found if d not in corpus]:
        raise InvalidInputError(
            f"{source.path}: the document {absent[0][1]!r} of query {absent[0][0]!r} is not in corpus."
        )
    if not grades:
        raise InvalidInputError(f"{source.path}: qrels of {source.split!r} have no grade above 0.")
    return Judged({query: queries[query] for query in queries if query in grades}, corpus, grades)


def _qrels(source: Source) -> list[tuple[str, str, float]]:
    beir = source.path / "qrels" / f"{source.split}.tsv"
    if beir.is_file():  # query-id, corpus-id, score
        with beir.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        return [(row["query-id"], row["corpus-id"], float(row["score"])) for row in rows]
    name = f"qrels-{source.split}" if shards(source.path, f"qrels-{source.split}") else "qrels"
    if name == "qrels" and not shards(source.path, name):
        name = f"qrels-{source.split}"  # which the error names
    rows = source.rows("query_id", "corpus_id", "score", split=name)
    return [(str(row["query_id"]), str(row["corpus_id"]), number(row, "score")) for row in rows]


def _pairs(source: Source) -> Judged:
    """Equal texts are one query or document, however often they stand there."""
    rows = source.rows("query", "document")
    queries: dict[str, str] = {}
    corpus: dict[str, str] = {}
    grades: dict[str, dict[str, float]] = {}
    for row in rows:
        query = queries.setdefault(text(row, "query"), f"q{len(queries)}")
        document = corpus.setdefault(text(row, "document"), f"d{len(corpus)}")
        grades.setdefault(query, {})[document] = 1.0
    return Judged({name: each for each, name in queries.items()}, {name: each for each, name in corpus.items()}, grades)


class _Ranking(InformationRetrievalEvaluator):
    """The host's evaluator, which leaves its ranking as it is scored."""

    def compute_metrics(self, queries_result_list: Any) -> Any:
        self.ranking = [
            [hit["corpus_id"] for hit in sorted(hits, key=lambda hit: (-hit["score"], hit["corpus_id"]))[:K]]
            for hits in queries_result_list
        ]
        return super().compute_metrics(queries_result_list)


def rank(model: Any, judged: Judged) -> Any:
    """One column: the nDCG@10 of each query."""
    relevant = {query: set(found) for query, found in judged.grades.items()}
    queries, corpus = dict[str, Any](judged.queries), dict[str, Any](judged.corpus)  # of texts, images, ...
    evaluator = _Ranking(queries, corpus, relevant, score_functions={"cosine": cos_sim})
    run(evaluator, model)
    return _items(judged, dict(zip(evaluator.queries_ids, evaluator.ranking, strict=True)))


def rank_by_words(judged: Judged) -> Any:
    """The same of BM25."""
    ids = list(judged.corpus)
    with BM25(list(judged.corpus.values())) as index:
        found = {name: [ids[i] for i, _ in index.search(query, K)] for name, query in judged.queries.items()}
    return _items(judged, found)


def _items(judged: Judged, ranking: dict[str, list[str]]) -> Any:
    return np.array([[ndcg(ranking[query], judged.grades[query])] for query in judged.queries])


def ndcg(ranking: list[str], grades: dict[str, float]) -> float:
    """nDCG@10 with the grades as gains, as trec_eval and mteb have it; the host's takes every grade as 1."""
    discount = 1 / np.log2(np.arange(2, K + 2))
    gains = [grades.get(document, 0.0) for document in ranking[:K]]
    ideal = sorted(grades.values(), reverse=True)[:K]
    return float(np.dot(gains, discount[: len(gains)]) / np.dot(ideal, discount[: len(ideal)]))


KIND = Kind(
    name="retrieval",
    metric="nDCG@10",
    columns=("query", "document"),
    layout="corpus.*: _id, title, text; queries.*: _id, text; qrels-test.*: query_id, corpus_id, score "
    "(or BEIR's qrels/test.tsv). Or one file of pairs: query, document",
    read=read,
    measure=rank,
    statistic=lambda items: float(items.mean()),
    bm25=rank_by_words,
)
