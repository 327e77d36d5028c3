"""Our encoders in mteb: our own figures on the same rows, every kind of its tasks, our names, instructions."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.mocks import mock_tasks

import st_llm2vec
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.evaluation import evaluate
from st_llm2vec.evaluation.on_mteb import INSTRUCTIONS, MTEBEncoder, evaluate_mteb, instruction, require_tasks

RANDOM = np.random.default_rng(0)
WORDS = ["paris", "berlin", "bread", "rain", "court", "whale", "violin", "market", "engine", "doctor", "river", "code"]


def words(n: int) -> str:
    return " ".join(RANDOM.choice(WORDS, n))


PAIRS = [{"sentence1": words(6), "sentence2": words(6), "score": float(RANDOM.integers(6))} for _ in range(60)]
CORPUS = [{"_id": f"d{i}", "title": words(2), "text": words(12)} for i in range(80)]
QUERIES = [{"_id": f"q{i}", "text": words(4)} for i in range(20)]
QRELS = [
    {"query_id": f"q{i}", "corpus_id": f"d{d}", "score": int(RANDOM.integers(1, 4))}
    for i in range(20)
    for d in RANDOM.choice(80, 3, replace=False)
]
LABELLED = [{"text": words(5), "label": int(RANDOM.integers(3))} for _ in range(120)]
GENERAL: dict[str, Any] = {
    "description": "Local rows.",
    "reference": None,
    "dataset": {"path": "local/rows", "revision": "1"},
    "category": "t2t",
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
    "date": ("2026-01-01", "2026-01-01"),
    "dialect": [],
    "domains": [],
    "task_subtypes": [],
    "license": "cc-by-4.0",
    "annotations_creators": "derived",
    "modalities": ["text"],
    "sample_creation": "found",
    "bibtex_citation": "",
}


class LocalSTS(AbsTaskSTS):
    metadata = TaskMetadata(name="LocalSTS", type="STS", main_score="cosine_spearman", **GENERAL)

    def load_data(self, **_: Any) -> None:
        self.dataset, self.data_loaded = {"test": Dataset.from_list(PAIRS)}, True


class LocalRetrieval(AbsTaskRetrieval):
    metadata = TaskMetadata(name="LocalRetrieval", type="Retrieval", main_score="ndcg_at_10", **GENERAL)

    def load_data(self, **_: Any) -> None:
        grades: dict[str, dict[str, int]] = {}
        for row in QRELS:
            grades.setdefault(row["query_id"], {})[row["corpus_id"]] = row["score"]
        split = {
            "corpus": Dataset.from_list(
                [{"id": row["_id"], "title": row["title"], "text": row["text"]} for row in CORPUS]
            ),
            "queries": Dataset.from_list([{"id": row["_id"], "text": row["text"]} for row in QUERIES]),
            "relevant_docs": grades,
            "top_ranked": None,
        }
        self.dataset, self.data_loaded = {"default": {"test": split}}, True


class LocalClassification(AbsTaskClassification):
    metadata = TaskMetadata(name="LocalClassification", type="Classification", main_score="accuracy", **GENERAL)

    def load_data(self, **_: Any) -> None:
        self.dataset = {"train": Dataset.from_list(LABELLED[:80]), "test": Dataset.from_list(LABELLED[80:])}
        self.data_loaded = True


@pytest.fixture(scope="module")
def model() -> Any:
    return st_llm2vec.load("llm2vec-tiny", device="cpu")


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("shuffled", [False, True])
def test_scores_are_our_own_evaluators(model: Any, tmp_path: Path, shuffled: bool) -> None:
    def rows(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [given[i] for i in np.random.default_rng(1).permutation(len(given))] if shuffled else given

    write(tmp_path / "s" / "test.jsonl", rows(PAIRS))
    for name, given in (("corpus", CORPUS), ("queries", QUERIES), ("qrels-test", QRELS)):
        write(tmp_path / "r" / f"{name}.jsonl", rows(given))
    write(tmp_path / "c" / "train.jsonl", LABELLED[:80])  # whose order says which of them train
    write(tmp_path / "c" / "test.jsonl", rows(LABELLED[80:]))
    ours = evaluate(model, ["s", "r", "c"], tmp_path, draws=10)
    theirs = evaluate_mteb(model, [LocalSTS(), LocalRetrieval(), LocalClassification()])
    found = {result.task_name: result.get_score() for result in theirs.task_results}
    for score, name in zip(ours, ("LocalSTS", "LocalRetrieval", "LocalClassification"), strict=True):
        assert score.value == pytest.approx(found[name], abs=5e-4), name
    assert theirs.model_name == "st-llm2vec/encoder"


TEXT_TASKS = [
    task
    for name, task in sorted(vars(mock_tasks).items())
    if inspect.isclass(task) and name.startswith("Mock") and task.metadata.modalities == ["text"]
]


@pytest.mark.parametrize("task", TEXT_TASKS, ids=lambda task: task.__name__)
@pytest.mark.parametrize("instructions", [False, True])
def test_every_kind_of_mtebs_tasks_runs(model: Any, task: Any, instructions: bool) -> None:
    made = task()
    result = evaluate_mteb(model, [made], instructions=instructions)
    scores = [
        score["main_score"] for result in result.task_results for split in result.scores.values() for score in split
    ]
    assert scores
    assert np.isfinite(scores).all()


def test_mtebs_registry_knows_our_names(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = mteb.get_model("llm2vec-tiny", device="cpu")
    assert isinstance(encoder, MTEBEncoder)
    assert type(encoder.model) is st_llm2vec.LLM2Vec
    assert encoder.mteb_model_meta.name == "st-llm2vec/llm2vec-tiny"
    assert not encoder.instructions
    assert mteb.get_model_meta("st-llm2vec/llm2vec-mistral-supervised").use_instructions
    with pytest.raises(ValueError, match="embed_dim is not known"):
        mteb.get_model("llm2vec-tiny", embed_dim=4)


def test_instructions_are_the_papers_and_documents_have_none(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(INSTRUCTIONS) == 67
    assert all(text.endswith(":") for text in INSTRUCTIONS.values())
    assert (
        instruction("SciFact", lambda: "other.")
        == "Given a scientific claim, retrieve documents that support or refute the claim:"
    )
    assert instruction("LocalSTS", lambda: "Retrieve text. ") == "Retrieve text:"
    asked: list[tuple[str, int]] = []
    encode = type(model).encode

    def remember(self: Any, texts: Any, **options: Any) -> Any:
        asked.append((options["prompt"], len(texts)))
        return encode(self, texts, **options)

    monkeypatch.setattr(type(model), "encode", remember)
    evaluate_mteb(model, [LocalRetrieval(), LocalSTS()], instructions=True)
    prompts = dict(asked)
    assert prompts[""] == len(CORPUS)
    assert prompts["Retrieve text based on user query: "] == len(QUERIES)
    assert "Retrieve semantically similar text: " in prompts


def test_a_task_that_mteb_has_not_is_named() -> None:
    with pytest.raises(InvalidInputError, match="got 'STSBenchmarks'"):
        require_tasks(["STSBenchmarks"])
    assert [task.metadata.name for task in require_tasks(["STSBenchmark", "SciFact"])] == ["STSBenchmark", "SciFact"]
