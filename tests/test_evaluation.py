"""Scores from plain files: right answers on data whose scores are known."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn, tensor

import st_llm2vec
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.evaluation import evaluate, read_rows


class Numbers(nn.Module):
    """Embeds 'number:x' as a unit vector at the angle x degrees."""

    def preprocess(self, inputs: list[str], **_: object) -> dict[str, Tensor]:
        return {"angle": tensor([float(text.rpartition(":")[2]) for text in inputs])}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        angle = features["angle"].deg2rad()
        return {"sentence_embedding": tensor(np.stack([angle.cos(), angle.sin()], 1))}


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text) if path.suffix == ".jsonl" else path.write_bytes(lzma.compress(text.encode()))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pairs = [
        {"sentence1": "n:0", "sentence2": f"n:{angle}", "score": score}
        for angle, score in ((1, 5), (20, 3), (60, 2), (90, 0))
    ]
    write(tmp_path / "stsb" / "test.jsonl.xz", pairs)
    write(tmp_path / "stsb" / "dev.jsonl", [{**pair, "score": -pair["score"]} for pair in pairs])
    write(
        tmp_path / "scifact" / "corpus.jsonl", [{"_id": str(i), "title": "", "text": f"n:{i * 10}"} for i in range(9)]
    )
    write(tmp_path / "scifact" / "queries.jsonl", [{"_id": "q", "text": "n:4"}, {"_id": "unjudged", "text": "n:9"}])
    write(tmp_path / "scifact" / "qrels-test.jsonl", [{"query_id": "q", "corpus_id": "1", "score": 1}])
    return tmp_path


def test_scores_are_those_of_the_definition(data: Path) -> None:
    model = SentenceTransformer(modules=[Numbers()], device="cpu")
    sts, scifact = evaluate(model, ["stsb", "scifact"], data)
    assert (sts.value, sts.n, sts.metric) == (pytest.approx(1.0), 4, "Spearman")
    assert evaluate(model, ["stsb"], data, split="dev")[0].value == pytest.approx(-1.0)
    assert scifact.value == pytest.approx(1 / np.log2(3))  # the right one is second
    assert scifact.n == 1


def test_static_floor_ignores_the_layers(decoder: Path, data: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    first = evaluate(model, ["stsb"], data, static_floor=True)
    assert [score.task for score in first] == ["stsb", "stsb (static floor)"]
    for layer in model[0].model.layers:
        nn.init.zeros_(layer.mlp.down_proj.weight)
        nn.init.normal_(layer.self_attn.o_proj.weight)
    second = evaluate(model, ["stsb"], data, static_floor=True)
    assert second[1].value == first[1].value


def test_bad_files_and_names_are_named(data: Path) -> None:
    model = SentenceTransformer(modules=[Numbers()], device="cpu")
    with pytest.raises(InvalidInputError, match=r"'stsc'.*stsb"):
        evaluate(model, ["stsc"], data)
    with pytest.raises(InvalidInputError, match=r"no train.jsonl"):
        evaluate(model, ["stsb"], data, split="train")
    (data / "stsb" / "test-00.jsonl").write_text('{"sentence1": 1}\nnot json\n')
    with pytest.raises(InvalidInputError, match="line 2"):
        list(read_rows(data / "stsb", "test"))
