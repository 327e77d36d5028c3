"""Distillation: the teacher is asked once, the student comes nearer to it, the projection is in no saved folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import WORDS

import st_llm2vec
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.recipes import DataSet
from st_llm2vec.training import TrainingSettings, distill, train_stage
from st_llm2vec.training.data import read_source
from st_llm2vec.training.distill import DistillLoss, with_teacher
from st_llm2vec.training.principal import principal

TEXTS = [f"{a} {b} {c}" for a in WORDS.split()[:4] for b in WORDS.split()[4:8] for c in WORDS.split()[8:11]]
PAIRS = [{"anchor": text, "positive": text[4:]} for text in TEXTS]
SHORT: dict[str, Any] = {"batch_size": 8, "max_seq_length": 16, "cpu": True, "lora_r": 4, "learning_rate": 1e-2}


def told(model: Path | str, data: Any, output: Path, **given: Any) -> TrainingSettings:
    settings = {**SHORT, "max_steps": 2, "teacher": "llm2vec-tiny", **given}
    return TrainingSettings("distill", str(model), {"texts": data}, str(output), **settings)


def test_the_student_learns_the_teachers_geometry(decoder: Path, tmp_path: Path) -> None:
    rows = [{"sentence1": a, "sentence2": b, "score": 0.0} for a, b in zip(TEXTS, TEXTS[7:], strict=False)]
    teacher = SentenceTransformer("llm2vec-tiny", device="cpu")
    ends = [
        teacher.encode([row[side] for row in rows], normalize_embeddings=True) for side in ("sentence1", "sentence2")
    ]
    for row, score in zip(rows, (ends[0] * ends[1]).sum(1), strict=True):
        row["score"] = float(score)
    dev = tmp_path / "dev.jsonl"
    dev.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    result = train_stage(told(decoder, TEXTS, out, max_steps=40, eval_file=str(dev), eval_steps=40))
    name = "eval_sts_spearman_cosine"
    assert result.after[name] > result.before[name] + 0.1
    assert not [file for file in (*out.glob("*.safetensors"), *out.glob("adapter/*")) if "projection" in file.name]
    names = load_file(out / "model.safetensors").keys()
    assert not [name for name in names if "projection" in name]
    assert json.loads((out / "llm2vec_config.json").read_text())["provenance"]["stages"] == ["distill"]


def test_the_teacher_is_asked_once_and_an_interrupted_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "BLOCK", 10)
    source = read_source("pairs", DataSet(PAIRS), pairs=True, seed=0)
    settings = told("x", PAIRS, tmp_path)

    def vectors_of(folder: str) -> Any:
        return with_teacher({"pairs": source}, None, settings, tmp_path / folder, print)[0]["pairs"].vectors

    whole = vectors_of("whole")
    asked: list[int] = []
    encode = SentenceTransformer.encode_document

    def counted(self: SentenceTransformer, texts: list[str], **given: Any) -> Any:
        asked.append(len(texts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return encode(self, texts, **given)

    monkeypatch.setattr(SentenceTransformer, "encode_document", counted)
    with pytest.raises(KeyboardInterrupt):
        vectors_of("killed")
    resumed = vectors_of("killed")
    assert asked == [10, 10, 10, 10, 10, 8]
    assert np.array_equal(whole, resumed)
    monkeypatch.setattr(distill, "SentenceTransformer", None)
    again = vectors_of("killed")
    assert np.array_equal(whole, again)
    teacher = st_llm2vec.load("llm2vec-tiny", device="cpu")
    assert np.allclose(whole[5, 0], teacher.encode_query([TEXTS[5]])[0], atol=1e-5)
    assert np.allclose(whole[5, 1], teacher.encode_document([TEXTS[5][4:]])[0], atol=1e-5)


@pytest.mark.parametrize("distance", ["cosine", "mse", "l2"])
def test_the_loss_is_the_distance_and_the_weighted_contrast(distance: str, decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    model.train()
    targets = torch.randn(4, 2, 24, generator=torch.Generator().manual_seed(0))
    features = [model.preprocess([row[side] for row in PAIRS[:4]]) for side in ("anchor", "positive")]
    plain = DistillLoss(model, 24, told("x", PAIRS, Path("o"), distance=distance))
    both = DistillLoss(model, 24, told("x", PAIRS, Path("o"), distance=distance, contrast_weight=0.5, scale=7.0))
    assert torch.equal(plain.projection.weight, both.projection.weight)  # the seed's
    a, b = (model(dict(each))["sentence_embedding"] for each in features)
    seen = [plain.projection(each) for each in (a, b)]
    wanted = {
        "cosine": lambda x, y: 1 - torch.cosine_similarity(x, y).mean(),
        "mse": lambda x, y: ((x - y) ** 2).mean(),
        "l2": lambda x, y: (x - y).norm(dim=-1).mean(),
    }[distance]
    expected = (wanted(seen[0], targets[:, 0]) + wanted(seen[1], targets[:, 1])) / 2
    assert plain([dict(each) for each in features], targets).item() == pytest.approx(expected.item(), rel=1e-5)
    scores = 7.0 * torch.cosine_similarity(a[:, None], b[None], dim=-1)
    contrast = torch.nn.functional.cross_entropy(scores, torch.arange(4))
    found = both([dict(each) for each in features], targets)
    assert found.item() == pytest.approx((expected + 0.5 * contrast).item(), rel=1e-5)


def test_a_student_learns_the_teachers_principal_components_themselves(decoder: Path, tmp_path: Path) -> None:
    width = st_llm2vec.load(str(decoder), device="cpu").get_embedding_dimension()
    settings = told(decoder, TEXTS, tmp_path / "out", max_steps=100, teacher_pca=width, teacher_dtype="bfloat16")
    student = st_llm2vec.load(str(train_stage(settings).folder), device="cpu")
    taught = SentenceTransformer("llm2vec-tiny", device="cpu").encode(TEXTS, normalize_embeddings=True)
    centred = (taught - taught.mean(0)).astype(np.float64)
    components = centred @ np.linalg.svd(centred)[2][:width].T
    learned = student.encode(TEXTS)
    assert abs(np.corrcoef(learned[:, 0], components[:, 0])[0, 1]) > 0.9  # no projection between the two spaces
    (file,) = (tmp_path / "out" / "checkpoints" / "teacher").glob("*.npy")
    raw = SentenceTransformer("llm2vec-tiny", device="cpu").encode(TEXTS)
    assert 0 < np.abs(np.load(file)[:, 0] - raw).max() < 0.1  # computed in bfloat16


def test_principal_components_keep_all_distances_if_all_are_kept() -> None:
    vectors = [np.random.default_rng(seed).standard_normal((9, 2, 5)).astype(np.float32) for seed in (0, 1)]
    mean, axes = principal(vectors, 5)
    both = np.concatenate(vectors).reshape(-1, 5)
    assert np.allclose(mean, both.mean(0), atol=1e-6)
    reduced = (both - mean) @ axes
    assert np.allclose(reduced @ reduced.T, (both - mean) @ (both - mean).T, atol=1e-4)
    assert (np.diff(reduced.var(0)) < 0).all()
    assert np.array_equal(principal(vectors, 2)[1], axes[:, :2])
    assert np.allclose(principal(vectors[::-1], 5)[1], axes, atol=1e-5)


def test_more_components_than_the_teacher_has_are_refused_of_cached_vectors_too(tmp_path: Path) -> None:
    source = {"pairs": read_source("pairs", DataSet(PAIRS[:3]), pairs=True, seed=0)}
    with_teacher(source, None, told("x", PAIRS, tmp_path), tmp_path, print)
    with pytest.raises(InvalidInputError, match="teacher_pca must be at most 256"):
        with_teacher(source, None, told("x", PAIRS, tmp_path, teacher_pca=300), tmp_path, print)


def test_what_cannot_be_distilled_is_refused(decoder: Path, tmp_path: Path) -> None:
    for given, said in (
        ({"teacher": None}, "teacher is missing"),
        ({"contrast_weight": 1.0}, "needs pairs"),
        ({"teacher_pca": 257}, "teacher_pca must be at most 256, the teacher's dimensions, got 257"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            train_stage(told(decoder, TEXTS, tmp_path / "out", **given))
        assert not (tmp_path / "out").exists()
