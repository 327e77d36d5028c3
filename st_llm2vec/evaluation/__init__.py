"""Offline evaluation from plain files: semantic similarity and retrieval, scored by sentence-transformers' evaluators.

A task is a folder of `<split>.jsonl` or `<split>.jsonl.xz` files: for similarity `sentence1, sentence2, score`; for
retrieval `corpus` (`_id, title, text`), `queries` (`_id, text`) and `qrels-<split>` (`query_id, corpus_id, score`).
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from torch import nn

from ..errors import InvalidInputError


@dataclass(frozen=True)
class Score:
    """One figure: `value` is Spearman's rank correlation or nDCG@10, over `n` pairs or queries."""

    task: str
    metric: str
    value: float
    n: int


def read_rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Rows of `name.jsonl`, `name.jsonl.xz`, or of `name-00.jsonl.xz` and its following shards."""
    files = sorted(
        file
        for file in (*folder.glob(f"{name}*.jsonl"), *folder.glob(f"{name}*.jsonl.xz"))
        if file.name.removesuffix(".xz").removesuffix(".jsonl").removeprefix(name).lstrip("-").isdigit()
        or file.name.removesuffix(".xz") == f"{name}.jsonl"
    )
    if not files:
        raise InvalidInputError(
            f"There is no {name}.jsonl or {name}.jsonl.xz in {folder}. Give the data folder: --data DIR."
        )
    for file in files:
        with lzma.open(file, "rt", encoding="utf-8") if file.suffix == ".xz" else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)
                except ValueError as error:  # noqa: PERF203 - the line is what the error is about
                    raise InvalidInputError(f"{file}, line {number}: not valid JSON ({error}).") from error


def sts_evaluator(folder: Path, split: str) -> EmbeddingSimilarityEvaluator:
    """Spearman correlation of cosine similarity with human scores."""
    rows = list(read_rows(folder, split))
    return EmbeddingSimilarityEvaluator(
        [row["sentence1"] for row in rows],
        [row["sentence2"] for row in rows],
        [float(row["score"]) for row in rows],
        main_similarity="cosine",
        similarity_fn_names=["cosine"],
        name=f"{folder.name}-{split}",
        write_csv=False,
    )


def retrieval_evaluator(folder: Path, split: str) -> InformationRetrievalEvaluator:
    """nDCG@10 of the queries that the split judges, against the whole corpus (title and text, as BEIR joins them)."""
    relevant: dict[str, set[str]] = {}
    for row in read_rows(folder, f"qrels-{split}"):
        if int(row["score"]) > 0:
            relevant.setdefault(str(row["query_id"]), set()).add(str(row["corpus_id"]))
    queries = {str(row["_id"]): row["text"] for row in read_rows(folder, "queries") if str(row["_id"]) in relevant}
    corpus = {str(row["_id"]): f"{row.get('title') or ''} {row['text']}".strip() for row in read_rows(folder, "corpus")}
    return InformationRetrievalEvaluator(
        queries, corpus, relevant, ndcg_at_k=[10], name=f"{folder.name}-{split}", write_csv=False
    )


@dataclass(frozen=True)
class Task:
    """How a task is read, and the name of its figure in the evaluator's result."""

    evaluator: Callable[[Path, str], Any]
    metric: str
    key: str


STS = Task(sts_evaluator, "Spearman", "spearman_cosine")
RETRIEVAL = Task(retrieval_evaluator, "nDCG@10", "cosine_ndcg@10")
TASKS: dict[str, Task] = {"stsb": STS, "scifact": RETRIEVAL, "cranfield": RETRIEVAL, "cisi": RETRIEVAL}


def evaluate(
    model: SentenceTransformer, tasks: list[str], data: str | Path, *, split: str = "test", static_floor: bool = False
) -> list[Score]:
    """Scores a model on tasks that lie under `data`.

    Args:
        tasks: Names of `TASKS`; each is a folder of `data`.
        split: "test" to report, "dev" to choose.
        static_floor: Also score the mean of the model's own input embeddings, which no layer has touched: what the
            layers add is the difference.

    Raises:
        InvalidInputError: An unknown task, or files that are not there.
    """
    unknown = [name for name in tasks if name not in TASKS]
    if unknown or not tasks:
        raise InvalidInputError(
            f"There is no task {unknown[0] if unknown else ''!r}. Known: {', '.join(sorted(TASKS))}."
        )
    rivals = [("", model)] + ([(" (static floor)", static_model(model))] if static_floor else [])
    scores = []
    for name in tasks:
        task = TASKS[name]
        evaluator = task.evaluator(Path(data) / name, split)
        for suffix, rival in rivals:
            value = float(evaluator(rival)[f"{name}-{split}_{task.key}"])
            n = len(getattr(evaluator, "scores", None) or evaluator.queries)
            scores.append(Score(name + suffix, task.metric, value, n))
    return scores


def static_model(model: SentenceTransformer) -> SentenceTransformer:
    """The same tokens and pooling, with the input embeddings in place of the last hidden states."""
    return SentenceTransformer(modules=[_StaticTransformer(model), *list(model)[1:]], device=str(model.device))


class _StaticTransformer(nn.Module):
    """Embeds tokens without the decoder's layers."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.embeddings = model[0].model.get_input_embeddings()
        self.preprocess = model.preprocess
        self.tokenizer = model.tokenizer

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            features["token_embeddings"] = self.embeddings(features["input_ids"])
        return features
