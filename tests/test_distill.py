"""Distillation: the teacher is asked once, the student comes nearer to it, the projection is in no saved folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny_models import WORDS, save_teacher
from transformers import TrainerCallback

import st_llm2vec
from st_llm2vec.errors import InvalidInputError, ModelNotFoundError
from st_llm2vec.recipes import DataSet
from st_llm2vec.training import TrainingSettings, read_recipe, train_all, train_stage
from st_llm2vec.training import distill as distilling
from st_llm2vec.training import principal as components
from st_llm2vec.training import teacher as teaching
from st_llm2vec.training.data import Source, read_source
from st_llm2vec.training.distill import DistillLoss, distillation, taught, with_teacher
from st_llm2vec.training.principal import principal, procrustes

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


PROMPTS = {"query": "the quick ", "document": "lazy "}


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return save_teacher(tmp_path / "teacher", prompts=PROMPTS)


def read(rows: Any, **given: Any) -> Source:
    return read_source("rows", DataSet(rows, **given), pairs=True, seed=0, least=1)


def asked(source: Source, teacher: str, folder: Path, **given: Any) -> np.ndarray:
    """What the teacher makes of a source, (rows, columns, dimensions)."""
    settings = told("x", ["a"], folder, teacher=teacher, **given)
    found, _ = with_teacher({"rows": source}, None, settings, folder, print)
    return np.asarray(taught(found["rows"])["label"], np.float32)


def killed_at(block: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """Run until the vectors of a block are on the disk, and not yet recorded."""
    flushed, flush = iter(range(1, block)), np.memmap.flush

    def killed(self: np.memmap) -> None:
        flush(self)
        if next(flushed, None) is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(np.memmap, "flush", killed)
        with pytest.raises(KeyboardInterrupt):
            run()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of every call of a teacher's encode, which its encode_query and encode_document call."""
    calls: list[list[str]] = []
    encode = SentenceTransformer.encode

    def counted(self: SentenceTransformer, inputs: list[str], **given: Any) -> Any:
        calls.append(inputs)
        return encode(self, inputs, **given)

    monkeypatch.setattr(SentenceTransformer, "encode", counted)
    return calls


def test_anchors_are_queries_the_others_documents_and_texts_neither(teacher: str, tmp_path: Path) -> None:
    model = SentenceTransformer(teacher, device="cpu")
    rows = [
        {"anchor": "a dog", "positive": "a fox", "negative": "a dog"},
        {"anchor": "a", "positive": "b", "negative": ""},
    ]
    pairs = asked(read(rows), teacher, tmp_path / "pairs")
    assert np.array_equal(pairs[:, 0], model.encode_query(["a dog", "a"]))
    assert np.array_equal(pairs[:, 1], model.encode_document(["a fox", "b"]))
    assert np.array_equal(pairs[:, 2], model.encode_document(["a dog", ""]))
    assert np.array_equal(asked(read(["a dog"]), teacher, tmp_path / "texts")[0, 0], model.encode(["a dog"])[0])
    assert len({row.tobytes() for row in (*pairs[0], model.encode("a dog"))}) == 4


def test_a_text_is_asked_once_in_all_data_sets(teacher: str, encoded: list[list[str]], tmp_path: Path) -> None:
    sources = {"twice": read(TEXTS[:5], weight=2.4), "again": read(TEXTS[3:8]), "pairs": read(PAIRS[:2])}
    out = tmp_path / "out"
    settings = told("x", ["a"], tmp_path, teacher=teacher)
    found, _ = with_teacher(sources, None, settings, out, print)
    assert sorted(text for texts in encoded for text in texts) == sorted(
        [*TEXTS[:8], *TEXTS[:2], *(row["positive"] for row in PAIRS[:2])]
    )
    twice = found["twice"]
    assert twice.vectors is not None
    model = SentenceTransformer(teacher, device="cpu")
    assert np.array_equal(twice.vectors[twice.index][:, 0], model.encode(list(twice.columns["text"])))
    with_teacher(sources, None, told("x", ["a"], tmp_path, teacher=teacher, teacher_dtype="bfloat16"), out, print)
    assert len(list((out / "teacher").glob("*.npy"))) == 2  # what another dtype makes is another thing


def test_an_interrupted_teacher_goes_on(
    teacher: str, encoded: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "BLOCK", 10)
    texts = read(TEXTS)
    whole = asked(texts, teacher, tmp_path / "whole")
    killed_at(3, monkeypatch, lambda: asked(texts, teacher, tmp_path / "killed"))  # two blocks are recorded
    encoded.clear()
    assert np.array_equal(whole, asked(texts, teacher, tmp_path / "killed"))
    assert [len(each) for each in encoded] == [10, 10, 8]
    encoded.clear()
    assert np.array_equal(whole, asked(texts, teacher, tmp_path / "killed"))
    assert not encoded


@pytest.mark.parametrize("blocks", [1, 10])
def test_another_teacher_by_the_same_name_is_refused(
    blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its vectors would be mixed with those of the first, or taken for its own; whether all or few are there."""
    monkeypatch.setattr(teaching, "BLOCK", 48 // blocks)
    first, out = save_teacher(tmp_path / "teacher", prompts=PROMPTS), tmp_path / "out"
    if blocks > 1:
        killed_at(2, monkeypatch, lambda: asked(read(TEXTS), first, out))
    else:
        asked(read(TEXTS), first, out)
    for other in ({"seed": 1}, {"prompts": {"query": "the "}}, {"default_prompt_name": "query"}):
        save_teacher(tmp_path / "teacher", **{"prompts": PROMPTS, **other})  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="has changed since"):
            asked(read(TEXTS), first, out)
    save_teacher(tmp_path / "teacher", prompts=PROMPTS)
    asked(read(TEXTS), first, out)
    monkeypatch.setattr(StaticEmbedding, "max_seq_length", 7)
    with pytest.raises(InvalidInputError, match="has changed since"):
        asked(read(TEXTS), first, out)


@pytest.mark.parametrize("damage", ["cut", "emptied", "gone"])
def test_damaged_vectors_are_computed_again(
    damage: str, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = asked(read(TEXTS), teacher, tmp_path / "out")
    (file,) = (tmp_path / "out" / "teacher").glob("*.npy")
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: {"cut": 2000, "emptied": 0}[damage]])
    monkeypatch.setattr(teaching, "BLOCK", 10)
    killed_at(1, monkeypatch, lambda: asked(read(TEXTS), teacher, tmp_path / "out"))  # a new file, most of it zeros
    assert np.array_equal(whole, asked(read(TEXTS), teacher, tmp_path / "out"))


def test_a_teachers_vectors_that_are_not_finite_are_refused(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = SentenceTransformer.encode

    def overflowing(self: SentenceTransformer, inputs: list[str], **given: Any) -> Any:
        vectors = encode(self, inputs, **given)
        vectors[[text.startswith("fox") for text in inputs], 3] = np.inf
        return vectors

    with monkeypatch.context() as patched:
        patched.setattr(SentenceTransformer, "encode", overflowing)
        with pytest.raises(InvalidInputError, match="not finite of 'fox jumps dog'"):
            asked(read(TEXTS), teacher, tmp_path / "out")
        with pytest.raises(InvalidInputError, match="Try teacher_dtype='float32'"):
            asked(read(TEXTS), teacher, tmp_path / "half", teacher_dtype="float16")
    asked(read(TEXTS), teacher, tmp_path / "out")


def test_components_are_those_of_the_training_texts(teacher: str, tmp_path: Path) -> None:
    settings = told("x", ["a"], tmp_path, teacher=teacher, teacher_pca=3)
    sources = {"a": read(TEXTS[:20], weight=2), "b": read(TEXTS[15:40])}
    found, last = with_teacher(sources, read(TEXTS[30:]), settings, tmp_path, print)
    vectors = SentenceTransformer(teacher, device="cpu").encode(TEXTS, normalize_embeddings=True)
    mean, axes = principal(vectors[:40], 3)
    wanted = (vectors - mean) @ axes
    for source, rows in ((found["a"], slice(0, 20)), (found["b"], slice(15, 40)), (last, slice(30, 48))):
        assert source is not None
        assert source.vectors is not None
        assert np.allclose(source.vectors[source.index][: rows.stop - rows.start, 0], wanted[rows], atol=1e-5)


TURN = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))[0][:24]).float()


@pytest.mark.parametrize("distance", ["cosine", "mse", "l2"])
@pytest.mark.parametrize("learned", [True, False])
def test_the_loss_is_the_distance_and_the_weighted_contrast(distance: str, learned: bool, decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    model.train()
    targets = torch.randn(4, 2, 24, generator=torch.Generator().manual_seed(0))
    features = [model.preprocess([row[side] for row in PAIRS[:4]]) for side in ("anchor", "positive")]
    plain, both = (
        DistillLoss(model, told("x", PAIRS, Path("o"), distance=distance, **given), TURN, learned=learned)
        for given in ({}, {"contrast_weight": 0.5, "scale": 7.0})
    )
    a, b = (model(dict(each))["sentence_embedding"] for each in features)
    seen, goals = ([a @ TURN.T, b @ TURN.T], targets) if learned else ([a, b], targets @ TURN)
    wanted = {
        "cosine": lambda x, y: 1 - torch.cosine_similarity(x, y).mean(),
        "mse": lambda x, y: ((x - y) ** 2).mean(),
        "l2": lambda x, y: (x - y).norm(dim=-1).mean(),
    }[distance]
    expected = (wanted(seen[0], goals[:, 0]) + wanted(seen[1], goals[:, 1])) / 2
    assert plain([dict(each) for each in features], targets).item() == pytest.approx(expected.item(), rel=1e-5)
    scores = 7.0 * torch.cosine_similarity(a[:, None], b[None], dim=-1)
    contrast = torch.nn.functional.cross_entropy(scores, torch.arange(4))
    found = both([dict(each) for each in features], targets)
    assert found.item() == pytest.approx((expected + 0.5 * contrast).item(), rel=1e-5)
    alone = both([dict(features[0])], targets[:, :1])  # a text has nothing to contrast with
    assert alone.item() == pytest.approx(wanted(seen[0], goals[:, 0]).item(), rel=1e-5)


@pytest.mark.parametrize(("dimensions", "others"), [(5, 5), (5, 8), (8, 5)])
def test_procrustes_finds_the_rotation(dimensions: int, others: int) -> None:
    draws = np.random.default_rng(0)
    rotation = np.linalg.qr(draws.standard_normal((8, 8)))[0][:dimensions, :others].astype(np.float32)
    rotation = np.linalg.qr(rotation.T)[0].T if dimensions < others else np.linalg.qr(rotation)[0]
    wide = draws.standard_normal((60, others)).astype(np.float32)
    vectors = wide @ rotation.T  # all of a space, or what a wider one shows of it
    found = procrustes(vectors + 7, (wide if dimensions >= others else vectors @ rotation) - 3)  # means do not count
    assert np.allclose(found, rotation, atol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("teacher_width", "alignment", "turned"),
    [(24, None, True), (24, "rotation", True), (32, None, False), (32, "rotation", True), (24, "projection", False)],
)
@pytest.mark.parametrize("prompt", ["", "compress wizards over and over: "])
def test_the_teachers_space_is_turned_to_where_the_student_is(
    teacher_width: int, alignment: str | None, turned: bool, prompt: str, decoder: Path
) -> None:
    """Where the teacher is the student's own space, turned, there is nothing left to learn."""
    model = st_llm2vec.load(str(decoder), device="cpu")
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))[0].astype(np.float32)[:, :teacher_width]
    sources = {}
    for name, texts in (("a", TEXTS[:30]), ("b", TEXTS[30:])):
        vectors = model.encode(texts, prompt=prompt) @ rotation
        index = np.arange(len(texts))[:, None][::-1]  # the order is that of the rows
        sources[name] = replace(read(texts[::-1]), vectors=vectors, index=index)
    model.train()
    settings = told("x", TEXTS, Path("o"), alignment=alignment)
    settings = replace(settings, data=dict.fromkeys(sources, DataSet(TEXTS, query_prompt=prompt)))
    loss = distillation(model, settings, sources)
    assert (loss.turn is not None) is turned
    assert (loss.projection is not None) is (alignment == "projection")
    assert model.training
    labels = torch.tensor(model.encode(TEXTS, prompt=prompt) @ rotation)[:, None]
    model.train()
    left = loss([model.preprocess(TEXTS, prompt=prompt or None)], labels).item()
    first = torch.tensor(model.encode(TEXTS, prompt=prompt))
    plain = 1 - torch.cosine_similarity(first[:, :teacher_width], labels[:, 0]).mean().item()
    if turned or alignment == "projection":
        assert left < (1e-5 if teacher_width == 32 else 0.6 * plain)
    else:
        assert left == pytest.approx(plain, rel=1e-4)
    assert np.allclose(loss.turn @ loss.turn.T, np.eye(teacher_width), atol=1e-5) if turned else loss.turn is None


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
    assert 0 < np.abs(np.load(file) - raw).max() < 0.1  # computed in bfloat16


def test_principal_components_keep_all_distances_if_all_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).standard_normal((36, 5)).astype(np.float32) + 3
    mean, axes = principal(vectors, 5)
    assert np.allclose(mean, vectors.mean(0), atol=1e-6)
    reduced = (vectors - mean) @ axes
    assert np.allclose(reduced @ reduced.T, (vectors - mean) @ (vectors - mean).T, atol=1e-4)
    assert (np.diff(reduced.var(0)) < 0).all()
    assert np.array_equal(principal(vectors, 2)[1], axes[:, :2])
    assert np.allclose(principal(vectors[::-1], 5)[1], axes, atol=1e-5)
    assert (axes[np.abs(axes).argmax(0), range(5)] > 0).all()
    monkeypatch.setattr(components, "BLOCK", 7)
    assert np.allclose(principal(vectors, 5)[1], axes, atol=1e-5)


def test_what_cannot_be_distilled_is_refused_before_anything_is_written(decoder: Path, tmp_path: Path) -> None:
    many = [f"{number} dogs" for number in range(300)]
    for data, given, error, said in (
        (TEXTS, {"teacher": None}, InvalidInputError, "teacher is missing"),
        (TEXTS, {"contrast_weight": 1.0}, InvalidInputError, "needs pairs"),
        (
            many,
            {"teacher_pca": 257},
            InvalidInputError,
            "teacher_pca must be at most 256, the teacher's dimensions, got",
        ),
        (
            TEXTS * 2,
            {"teacher_pca": 48},
            InvalidInputError,
            "teacher_pca must be fewer than the 48 different texts, got 48",
        ),
        (
            TEXTS,
            {"alignment": "none"},
            InvalidInputError,
            r"a teacher of as many .* 32, got 256. Give teacher_pca=32, or",
        ),
        (TEXTS, {"alignment": "rotation"}, InvalidInputError, "a teacher of no more dimensions than the student, 32"),
        (TEXTS, {"teacher": str(tmp_path / "nothing")}, ModelNotFoundError, "teacher must be a model of sentence-"),
        (TEXTS, {"model": str(tmp_path / "nothing")}, ModelNotFoundError, "nothing"),  # before the teacher computes
    ):
        with pytest.raises(error, match=said):
            train_stage(told(given.pop("model", decoder), data, tmp_path / "out", **given))
        assert not (tmp_path / "out").exists()


def test_a_run_that_goes_on_keeps_the_turn_that_it_began_with(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine, the student's first vectors are not the same ones to the last bit."""
    settings = {"teacher": save_teacher(tmp_path / "teacher"), "save_steps": 1, "learning_rate": 1e-3}
    straight = train_stage(told(decoder, TEXTS, tmp_path / "straight", max_steps=4, **settings))
    killed = told(decoder, TEXTS, tmp_path / "killed", max_steps=4, **settings)

    class Killed(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_stage(killed, callbacks=[Killed()])
    monkeypatch.setattr(distilling, "procrustes", lambda *given: np.eye(24, 32, dtype=np.float32))
    resumed = train_stage(killed, resume=True)
    first, second = (load_file(result.folder / "model.safetensors") for result in (straight, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_path_of_the_teacher_is_on_the_card(decoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_stage(told(decoder, TEXTS, out, teacher=save_teacher(tmp_path / "teacher")))
    for file in (out / "README.md", out / "llm2vec_config.json", out / "training" / "settings.json"):
        assert '"teacher": "teacher"' in file.read_text()
        assert str(tmp_path) not in file.read_text()


def test_a_recipe_is_refused_before_its_first_stage_trains(decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    shared = f'model = "{decoder.as_posix()}"\noutput = "{(tmp_path / "out").as_posix()}"\nmax_steps = 1\n'
    for given, error in (
        ('teacher = "llm2vec-tiny"\ncontrast_weight = 1', InvalidInputError),
        ('teacher = "llm2vec-tiny"\nteacher_pca = 64', InvalidInputError),
        ('teacher = "llm2vec-tinny"', ModelNotFoundError),
    ):
        stages = (
            f'[mntp]\ndata.a = "texts.txt"\n[distill]\n{given}\ndata.a = {{ file = "texts.txt", columns = ["text"] }}'
        )
        (tmp_path / "recipe.toml").write_text(shared + stages)
        with pytest.raises(error):
            train_all(read_recipe([tmp_path / "recipe.toml"]))
        assert not (tmp_path / "out").exists()
