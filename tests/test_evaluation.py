"""Scores from plain files: right answers on data whose scores are known, intervals, and the host's own figures."""

from __future__ import annotations

import csv
import json
import lzma
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    RerankingEvaluator,
)
from sklearn.metrics import ndcg_score, v_measure_score
from torch import Tensor, nn, tensor

import st_llm2vec
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.evaluation import KINDS, TASKS, TaskEvaluator, average, compare, evaluate
from st_llm2vec.evaluation.bm25 import BM25
from st_llm2vec.evaluation.classification import draws
from st_llm2vec.evaluation.clustering import v_measure
from st_llm2vec.evaluation.files import read
from st_llm2vec.evaluation.intervals import bootstrap, interval
from st_llm2vec.evaluation.retrieval import ndcg
from st_llm2vec.evaluation.tasks import find


class Numbers(nn.Module):
    """Embeds 'n:x' as a unit vector at the angle x degrees, turned by `turn` degrees for every degree."""

    def __init__(self, turn: float = 1.0) -> None:
        super().__init__()
        self.turn = turn

    def preprocess(self, inputs: list[str], **_: object) -> dict[str, Tensor]:
        return {"angle": tensor([float(text.rpartition(":")[2]) for text in inputs])}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        angle = (features["angle"] * self.turn).deg2rad()
        return {"sentence_embedding": tensor(np.stack([angle.cos(), angle.sin()], 1))}


def numbers(turn: float = 1.0) -> SentenceTransformer:
    return SentenceTransformer(modules=[Numbers(turn)], device="cpu")


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            table.writeheader()
            table.writerows(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text) if path.suffix == ".jsonl" else path.write_bytes(lzma.compress(text.encode()))
    return path


PAIRS = [
    {"sentence1": "n:0", "sentence2": f"n:{angle}", "score": score}
    for angle, score in ((1, 5), (20, 3), (60, 2), (90, 0))
]
RANDOM = np.random.default_rng(0)
ANGLES = RANDOM.uniform(0, 90, (40, 2)).round(1).tolist()
SAME = [{"sentence1": f"n:{a}", "sentence2": f"n:{b}", "label": int(abs(a - b) < 20 or i % 9 == 0)} for i, (a, b) in
        enumerate(ANGLES)]  # fmt: skip
CORPUS = [{"_id": str(i), "title": "", "text": f"n:{i * 10}"} for i in range(9)]
QRELS = [{"query_id": "q", "corpus_id": "1", "score": 1}, {"query_id": "q", "corpus_id": "8", "score": 0}]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "stsb" / "test.jsonl.xz", PAIRS)
    write(tmp_path / "stsb" / "dev.jsonl", [{**pair, "score": -pair["score"]} for pair in PAIRS])
    write(tmp_path / "scifact" / "corpus.jsonl", CORPUS)
    write(tmp_path / "scifact" / "queries.jsonl", [{"_id": "q", "text": "n:4"}, {"_id": "unjudged", "text": "n:9"}])
    write(tmp_path / "scifact" / "qrels-test.jsonl", QRELS)
    return tmp_path


def test_scores_are_those_of_the_definition(data: Path) -> None:
    sts, scifact = evaluate(numbers(), ["stsb", "scifact"], data)
    assert (sts.value, sts.n, sts.metric) == (pytest.approx(1.0), 4, "Spearman")
    (dev,) = evaluate(numbers(), ["stsb"], data, split="dev")
    assert dev.value == pytest.approx(-1.0)
    assert scifact.value == pytest.approx(1 / np.log2(3))  # the right one is second
    assert scifact.n == 1


def test_similarity_is_the_hosts(tmp_path: Path) -> None:
    model = numbers()
    pairs = [{**pair, "score": pair["label"] + i % 5} for i, pair in enumerate(SAME)]
    write(tmp_path / "sts" / "test.csv", [{k: pair[k] for k in ("sentence1", "sentence2", "score")} for pair in pairs])
    write(tmp_path / "same" / "test.tsv", SAME)
    sts, same = evaluate(model, ["sts", "same"], tmp_path)
    first, second = [p["sentence1"] for p in pairs], [p["sentence2"] for p in pairs]
    host = EmbeddingSimilarityEvaluator(first, second, [p["score"] for p in pairs], similarity_fn_names=["cosine"])
    assert sts.value == pytest.approx(host(model)["spearman_cosine"], abs=1e-6)
    host = BinaryClassificationEvaluator(first, second, [p["label"] for p in SAME], similarity_fn_names=["cosine"])
    assert same.value == pytest.approx(host(model)["cosine_ap"], abs=1e-6)
    assert (same.metric, same.n) == ("AP", 40)


def test_rankings_are_the_hosts(tmp_path: Path) -> None:
    model = numbers()
    queries = {f"q{i}": f"n:{a}" for i, (a, _) in enumerate(ANGLES)}
    relevant = {name: {str(int(b) // 10), str(int(b) // 20)} for name, (_, b) in zip(queries, ANGLES, strict=True)}
    write(tmp_path / "r" / "corpus.parquet", CORPUS)
    write(tmp_path / "r" / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    judged = [{"query-id": q, "corpus-id": d, "score": 1} for q, found in relevant.items() for d in found]
    write(tmp_path / "r" / "qrels" / "test.tsv", judged)
    asked = [
        {"query": f"n:{a}", "positive": [f"n:{b}"], "negative": [f"n:{a / 2}", "n:45"][: 1 + i % 2]}
        for i, (a, b) in enumerate(ANGLES)
    ]
    alone = [{"query": "n:1", "positive": ["n:2"], "negative": []}]
    write(tmp_path / "rr" / "test.jsonl", asked + alone)
    retrieval, reranking = evaluate(model, ["r", "rr"], tmp_path)
    corpus = {row["_id"]: row["text"] for row in CORPUS}
    host = InformationRetrievalEvaluator(queries, corpus, relevant)
    assert retrieval.value == pytest.approx(host(model)["cosine_ndcg@10"], abs=1e-9)
    assert reranking.value == pytest.approx(RerankingEvaluator(asked)(model)["map"], abs=1e-6)
    assert reranking.n == 40
    assert not model.model_card_data.eval_results_dict or "" not in model.model_card_data.eval_results_dict


def test_grades_count_in_ndcg() -> None:
    grades = {"a": 3.0, "b": 1.0, "c": 2.0}
    ranking = ["b", "x", "a", "y", "c"]
    wanted = ndcg_score([[1, 0, 3, 0, 2]], [[5, 4, 3, 2, 1]], k=10)
    assert ndcg(ranking, grades) == pytest.approx(wanted)
    assert ndcg(ranking, dict.fromkeys(grades, 1.0)) != pytest.approx(wanted)
    many = {str(i): 1.0 for i in range(20)}
    assert ndcg([str(i) for i in range(10)], many) == pytest.approx(1.0)


def test_pairs_and_rows_of_one_query_are_joined(tmp_path: Path) -> None:
    faq = [{"question": "n:10", "answer": "n:11"}, {"question": "n:10", "answer": "n:12"}]
    faq += [{"question": f"n:{a}", "answer": f"n:{a + 3}"} for a in (30, 50, 70)]
    file = write(tmp_path / "faq.csv", faq)
    (score,) = evaluate(numbers(), data=file, columns={"query": "question", "document": "answer"})
    assert (score.task, score.n, score.metric) == ("faq", 4, "nDCG@10")
    assert score.value == pytest.approx(1.0)
    rows = [{"query": "n:0", "positive": "n:1", "negative": "n:3"}, {"query": "n:0", "positive": "n:4", "negative": ""}]
    (score,) = evaluate(numbers(), data=write(tmp_path / "asked.csv", rows))
    assert score.n == 1
    assert score.value == pytest.approx((1 + 2 / 3) / 2)


def test_classification_draws_eight_of_each_label_ten_times(tmp_path: Path) -> None:
    rows = [{"text": f"n:{i * 1.0}", "label": ("low", "high")[i > 44]} for i in range(90)]
    chosen = draws([row["label"] for row in rows])
    assert [len(each) for each in chosen] == [16] * 10
    assert len({tuple(each) for each in chosen}) == 10
    write(tmp_path / "t" / "train.jsonl", rows)
    write(tmp_path / "t" / "test.jsonl", rows[::3])
    (score,) = evaluate(numbers(), ["t"], tmp_path)
    assert 0.8 < score.value < 1
    assert score.n == 30
    (half,) = evaluate(numbers(), data=write(tmp_path / "alone.csv", rows))
    assert half.n == 45
    with pytest.raises(InvalidInputError, match="two labels"):
        evaluate(numbers(), data=write(tmp_path / "one.csv", [{**row, "label": "a"} for row in rows]))


def test_clustering_is_scikit_learns_v_measure(tmp_path: Path) -> None:
    known, found = RANDOM.integers(4, size=200), RANDOM.integers(6, size=200)
    assert v_measure(known, found) == pytest.approx(v_measure_score(known, found), abs=1e-9)
    assert v_measure(known, known) == pytest.approx(1.0)
    assert v_measure(known * 0, known * 0) == v_measure_score(known * 0, known * 0) == 1.0
    rows = [{"text": f"n:{20 * (i % 3) + i / 30}", "cluster": "abc"[i % 3]} for i in range(60)]
    (score,) = evaluate(numbers(), data=write(tmp_path / "c.parquet", rows))
    assert (score.metric, score.n) == ("V-measure", 60)
    assert score.value == pytest.approx(1.0)


def test_bm25_finds_rare_words_whatever_their_ending(tmp_path: Path) -> None:
    documents = ["the cats sleep", "the dog barks at the moon", "a moon of jupiter", 'AND OR "quoted" NEAR(x)']
    with BM25(documents) as index:
        assert index.search("a barking dog?", 3)[0][0] == 1
        assert index.search('cat AND "OR', 3)[0][0] in (0, 3)  # words of the query language are words
        assert index.search("?!", 3) == []
        assert [i for i, _ in index.search("moon", 3, (2, 3))] == [2]
    write(tmp_path / "r" / "corpus.jsonl", [{"_id": str(i), "text": each} for i, each in enumerate(documents)])
    write(tmp_path / "r" / "queries.jsonl", [{"_id": 7, "text": "cats"}])
    write(tmp_path / "r" / "qrels.csv", [{"query_id": 7, "corpus_id": 0, "score": 1}])
    (task,) = find(tmp_path, ["r"])
    items = KINDS["retrieval"].bm25(task.kind.read(task.source))
    assert items.tolist() == [[1.0]]


def test_intervals_and_the_paired_bootstrap() -> None:
    items = RANDOM.normal(1.0, 1.0, (400, 1))
    found = bootstrap(items, lambda rows: float(rows.mean()), draws=2000)
    low, high = interval(found)
    error = items.std() / np.sqrt(400)
    assert low == pytest.approx(items.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(items.mean() + 1.96 * error, abs=0.2 * error)
    assert (bootstrap(items, np.mean, draws=5) == bootstrap(items, np.mean, draws=5)).all()

    def of(model: str, rows: np.ndarray) -> st_llm2vec.evaluation.Score:
        return st_llm2vec.evaluation.intervals.score(model, "t", "mean", rows, lambda each: float(each.mean()))

    a, better = of("a", items), of("b", items + RANDOM.normal(0.02, 0.05, (400, 1)))
    assert better.low < a.high  # their own intervals overlap
    difference = compare(better, a)
    assert difference.excludes_zero  # and pair by pair there is no doubt
    assert difference.low < difference.value < difference.high
    assert not compare(a, of("c", items + RANDOM.normal(0.0, 0.05, (400, 1)))).excludes_zero
    with pytest.raises(InvalidInputError, match="same items"):
        compare(a, of("d", items[:300]))
    seeds = average([a, of("a", items + 0.5), of("a", items - 0.5)])
    assert seeds.value == pytest.approx(a.value)
    assert seeds.high - seeds.low > 2 * (a.high - a.low)  # the runs differ by more than the items


def test_a_report_compares_the_first_model_with_all(data: Path) -> None:
    report = evaluate({"right": numbers(), "wrong": numbers(2.0)}, ["stsb", "scifact"], data)
    assert [(score.task, score.model) for score in report] == [
        ("stsb", "right"), ("stsb", "wrong"), ("scifact", "right"), ("scifact", "wrong"),
    ]  # fmt: skip
    sts, _ = report.differences()
    assert (sts.model, sts.against, sts.value) == ("right", "wrong", pytest.approx(0.0))
    assert report.to_markdown().count("\n") == 5
    found = json.loads(json.dumps(report.to_dict()))
    assert found["scores"][0]["low"] <= found["scores"][0]["value"] <= found["scores"][0]["high"]
    assert found["differences"][1]["task"] == "scifact"


@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_the_static_baseline_ignores_the_layers(pooling: str, decoder: Path, data: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu", pooling_mode=pooling, prompts={"query": "Find: "})
    static = "static-embedding baseline"
    first = evaluate(model, ["stsb", "scifact"], data, baselines=True)
    assert [score.model for score in first] == [static, "model", "BM25", static, "model"]
    for layer in model[0].model.layers:
        nn.init.zeros_(layer.mlp.down_proj.weight)
        nn.init.normal_(layer.self_attn.o_proj.weight)
    second = evaluate(model, ["stsb"], data, baselines=True)
    assert second.of("stsb", static).value == first.of("stsb", static).value
    stage = st_llm2vec.load(str(decoder), device="cpu")
    both = evaluate({"a": model, "b": stage}, ["stsb"], data, baselines=True)
    assert [score.model for score in both] == [f"{static} of a", "a", "b"]  # the same embeddings, one baseline


def test_tasks_while_a_model_trains(data: Path) -> None:
    evaluator = TaskEvaluator(["stsb", "scifact"], data, split="test")
    assert evaluator(numbers()) == {
        "stsb_spearman": pytest.approx(1.0),
        "scifact_ndcg@10": pytest.approx(0.6309, abs=1e-4),
    }
    assert evaluator.primary_metric == "stsb_spearman"


def test_the_mode_of_training_is_left_as_it_was(decoder: Path, data: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu").train()
    evaluate(model, ["stsb"], data)
    assert model.training


def test_every_named_task_is_of_a_kind() -> None:
    assert {task.kind for task in TASKS.values()} <= set(KINDS)
    assert set(TASKS) >= {"stsb", "scifact", "cranfield", "cisi", "wikiqa", "banking77", "emotion", "trec_qc", "sst2"}
    words = {f"conll2003_{each}{reading}" for each in ("pos", "chunk", "ner_f1") for reading in ("", "_next")}
    assert set(TASKS) >= words | {"ud_ewt_upos"}
    assert (TASKS["conll2003_ner_f1_next"].kind, TASKS["conll2003_ner"].kind) == ("spans_next", "words")
    assert set(TASKS) >= {"snips", "ag_news", "stackoverflow_clustering", "mrpc", "quora"}


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("a.jsonl", [{"sentence1": "n:1", "sentence2": "n:2", "score": "high"}], "'score' must be a number"),
        ("a.jsonl", [{"sentence1": "n:1", "sentence2": 2, "score": 1}], r"'sentence2' is 2 \(int\), not a text"),
        ("a.jsonl", [{"sentence1": "n:1", "sentence2": "n:2", "label": 2}], r"label must be 1 .* or 0"),
        ("a.jsonl", [{"sentence1": "n:1", "other": "n:2"}], r"other, sentence1, which are of no known kind"),
        ("a.csv", [{"text": "n:1", "cluster": "a"}, {"text": "n:1", "cluster": "b"}], r"fewer than the 2 texts"),
        ("a.csv", [{"query": "n:1", "positive": "n:2", "negative": ""}], "no query has both"),
        ("a.txt", [{"text": "n:1"}], r"must end in one of \.jsonl"),
        ("a.jsonl", PAIRS[:1] * 5, "has no Spearman on a: all 5"),
    ],
)  # fmt: skip
def test_bad_files_are_named(tmp_path: Path, name: str, rows: list[dict], said: str) -> None:
    if name.endswith(".txt"):
        file = tmp_path / name
        file.write_text("a\n")
    else:
        file = write(tmp_path / name, rows)
    with pytest.raises(InvalidInputError, match=said):
        evaluate(numbers(), data=file)


def test_bad_names_and_lines_are_named(data: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"'stsc'.*stsb"):
        evaluate(numbers(), ["stsc"], data)
    with pytest.raises(InvalidInputError, match=r"no train.jsonl .* it has dev, test"):
        evaluate(numbers(), ["stsb"], data, split="train")
    with pytest.raises(InvalidInputError, match=r"tasks must be named.* scifact, stsb"):
        evaluate(numbers(), data=data)
    with pytest.raises(InvalidInputError, match="a list of names"):
        evaluate(numbers(), "stsb", data)
    with pytest.raises(InvalidInputError, match="kind must be one of"):
        evaluate(numbers(), ["stsb"], data, kind="similarity")
    with pytest.raises(InvalidInputError, match="has no column 'question'"):
        evaluate(numbers(), data=data / "stsb", columns={"sentence1": "question"})
    with pytest.raises(InvalidInputError, match="cranfield must lie in"):
        evaluate(numbers(), ["cranfield"], data)
    write(data / "scifact" / "qrels-dev.jsonl", [{"query_id": "q", "corpus_id": "nowhere", "score": 1}])
    with pytest.raises(InvalidInputError, match="'nowhere' of query 'q' is not in corpus"):
        evaluate(numbers(), ["scifact"], data, split="dev")
    (data / "stsb" / "test-00.jsonl").write_text('{"sentence1": 1}\nnot json\n')
    with pytest.raises(InvalidInputError, match="line 2"):
        list(read(data / "stsb" / "test-00.jsonl"))
    (data / "wide.csv").write_text("text,label\na,b,c\n")
    with pytest.raises(InvalidInputError, match="more or fewer fields"):
        list(read(data / "wide.csv"))
    (data / "latin.csv").write_bytes("text,label\ncaf\xe9,a\n".encode("latin-1"))
    with pytest.raises(InvalidInputError, match="UTF-8"):
        list(read(data / "latin.csv"))
    (data / "cut.jsonl.xz").write_bytes((data / "stsb" / "test.jsonl.xz").read_bytes()[8:])
    with pytest.raises(InvalidInputError, match=r"cut\.jsonl\.xz cannot be read"):
        list(read(data / "cut.jsonl.xz"))


def test_spearman_of_the_score_is_scipys() -> None:
    items = RANDOM.normal(size=(50, 2))
    assert KINDS["sts"].statistic(items) == pytest.approx(spearmanr(*items.T).statistic)
