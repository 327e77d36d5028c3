"""Hard negatives: near the anchor, never nearer than the margin below the positive allows, and as many as asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import WORDS as SENTENCE

import st_llm2vec
from st_llm2vec.cli import main
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.training import Mining, mine

WORDS = [word for word in SENTENCE.split() if len(word) > 2]
PAIRS = [{"question": f"{a} {b}", "answer": f"{b} {a} files"} for a in WORDS[:5] for b in WORDS[5:9]]


@pytest.fixture(scope="module")
def model(decoder: Path) -> st_llm2vec.LLM2Vec:
    return st_llm2vec.load(str(decoder), prompts={"query": "find:"})


def test_negatives_stay_the_margin_below_the_positive(model: st_llm2vec.LLM2Vec) -> None:
    found = mine(PAIRS, model, Mining(negatives=3, margin=0.02))
    assert found.column_names == ["question", "answer", "negative_1", "negative_2", "negative_3"]
    assert 0 < len(found) <= len(PAIRS)
    answers = sorted({pair["answer"] for pair in PAIRS})
    vectors = dict(zip(answers, model.encode_document(answers, normalize_embeddings=True), strict=True))
    for row in found:
        question = model.encode_query([row["question"]], normalize_embeddings=True)[0]
        scores = {answer: float(np.dot(question, vector)) for answer, vector in vectors.items()}
        limit = scores[row["answer"]] - 0.02 * abs(scores[row["answer"]])
        allowed = sorted((s for a, s in scores.items() if s <= limit + 1e-5 and a != row["answer"]), reverse=True)
        negatives = [row[f"negative_{i}"] for i in (1, 2, 3)]
        assert len(set(negatives)) == 3
        assert [scores[text] for text in negatives] == pytest.approx(allowed[:3], abs=1e-5)


def test_negatives_come_from_a_corpus(model: st_llm2vec.LLM2Vec) -> None:
    corpus = [f"{word} corpus" for word in WORDS]
    found = mine(PAIRS, model, Mining(negatives=1, margin=0.0), corpus=corpus)
    negatives = {row["negative_1"] for row in found}
    assert negatives & set(corpus)
    assert negatives <= {*corpus, *(pair["answer"] for pair in PAIRS)}


def test_what_cannot_be_mined_is_refused(model: st_llm2vec.LLM2Vec) -> None:
    for given, said in (
        ({"negatives": 0}, "negatives must be"),
        ({"margin": 1.0}, "margin must be in"),
        ({"sampling": "best"}, "must be one of 'random', 'top', got 'best'"),
        ({"skip": -1}, "skip must be"),
        ({"depth": 3}, "depth must be at least skip . negatives = 7"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            Mining(**given)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="need more than 3 different texts"):
        mine(PAIRS[:3], model)
    with pytest.raises(InvalidInputError, match="No pair has 2 negatives"):
        mine(PAIRS, model, Mining(negatives=2, max_score=-1.0))
    with pytest.raises(InvalidInputError, match="must be an anchor and a positive"):
        mine([{**pair, "more": "x"} for pair in PAIRS], model)


def test_the_command_writes_what_supervised_training_reads(
    decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, output = tmp_path / "pairs.jsonl", tmp_path / "mined.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    arguments = [
        "mine",
        str(decoder),
        str(pairs),
        str(output),
        "--negatives",
        "2",
        "--margin",
        "0.01",
        "--device",
        "cpu",
    ]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert list(rows[0]) == ["question", "answer", "negative_1", "negative_2"]
    assert f"{len(rows)} of 20 pairs with 2 negatives each" in capsys.readouterr().err
    assert main(arguments) == 1  # it is there
    assert main([*arguments[:3], str(tmp_path / "mined.csv")]) == 2
    assert main([*arguments[:3], str(tmp_path / "b.jsonl"), "--columns", "question"]) == 1
    assert "--columns question,answer" in capsys.readouterr().err
    assert not (tmp_path / "b.jsonl").exists()
