"""The ablation on a tiny decoder: every cell once, resumable, and a report that compares what the paper compares."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import st_llm2vec
from st_llm2vec.atomic import only_writer
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.evaluation.files import Source
from st_llm2vec.evaluation.tasks import Found, find
from st_llm2vec.experiments import ablation as runner
from st_llm2vec.experiments.ablation import SETUPS, Ablation, Cell, run_ablation
from st_llm2vec.experiments.layers import layer_cosines
from st_llm2vec.experiments.masked_tokens import accuracy, kind, predict
from st_llm2vec.experiments.report import collect, write_report
from st_llm2vec.recipe_files import Recipe, read_recipe
from st_llm2vec.training import MNTPDataCollator, chunk_texts, language_model_head

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "search"]
SHORT = {"max_steps": 1, "batch_size": 4, "max_seq_length": 16, "cpu": True, "lora_r": 4, "learning_rate": 1e-2}
RANDOM = np.random.default_rng(0)
TEXTS = [" ".join(RANDOM.choice(WORDS, 8)) for _ in range(40)]


@pytest.fixture
def decoder(bos_decoder: Path) -> str:
    return str(bos_decoder)


@pytest.fixture
def recipe(tmp_path: Path, bos_decoder: Path) -> Recipe:
    lines = [f'model = "{bos_decoder}"', *(f"{key} = {json.dumps(value)}" for key, value in SHORT.items())]
    for stage, columns in (("mntp", ["text"]), ("simcse", ["text"]), ("supervised", ["a", "b"])):
        rows = [dict(zip(columns, (text, TEXTS[i - 1]), strict=False)) for i, text in enumerate(TEXTS)]
        (tmp_path / f"{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines += [f"[{stage}]", f'data.own = "{stage}.jsonl"']
    (tmp_path / "recipe.toml").write_text("\n".join(lines))
    return read_recipe([tmp_path / "recipe.toml"], {"output": str(tmp_path / "out")})


@pytest.fixture
def tasks(tmp_path: Path, decoder: str) -> list[Found]:
    pairs = [{"sentence1": text, "sentence2": TEXTS[i - 1], "score": i % 5} for i, text in enumerate(TEXTS)]
    (tmp_path / "sts").mkdir()
    (tmp_path / "sts" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "r.csv").write_text("query,document\n" + "".join(f"{text[:9]},{text}\n" for text in TEXTS))
    (tmp_path / "t.csv").write_text("text\n" + "\n".join(TEXTS))
    head = language_model_head(st_llm2vec.load(decoder, device="cpu"))
    masked = Found("masked tokens", kind(head), Source(tmp_path / "t.csv"))
    return [*find(tmp_path / "sts"), *find(tmp_path / "r.csv"), masked]


def test_a_killed_ablation_ends_with_the_same_report(
    decoder: str, recipe: Recipe, tasks: list[Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation = Ablation(
        decoder,
        recipe,
        tasks,
        tmp_path / "out",
        setups=("Uni", "Bi", "Bi+MNTP", "Bi+MNTP+SimCSE"),
        poolings=("mean", "weighted_mean"),
        seeds=(1, 2),
        layers=True,
    )
    cells = ablation.cells()
    assert len(cells) == 2 + 2 * 2 + 2 * 2 * 2
    trained: list[str] = []
    train = runner.train_stage

    def remember(settings: object, **options: object) -> object:
        trained.append(Path(settings["output"]).name)  # type: ignore[index]
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(settings, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "train_stage", remember)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(ablation)
    done = [cell for cell in cells if ablation.scores(cell)]
    assert len(done) == 4 + 2 + 1  # untrained, MNTP with both poolings, and SimCSE with the first
    before = {cell: ablation.file(cell).read_bytes() for cell in done}
    trained += ["killed"]
    run_ablation(ablation)
    assert not any(map(ablation.missing, cells))
    assert all(ablation.file(cell).read_bytes() == content for cell, content in before.items())
    # MNTP once a seed, SimCSE once a seed and pooling. What the kill left is gone on with: its MNTP is found finished.
    mntp, simcse = "bidirectional-mntp", "bidirectional-mntp-simcse"
    assert trained == [
        *(f"{mntp}-seed-1", f"{simcse}-mean-seed-1", f"{simcse}-weighted_mean-seed-1", "killed"),
        *(f"{mntp}-seed-1", f"{simcse}-weighted_mean-seed-1"),
        *(f"{mntp}-seed-2", f"{simcse}-mean-seed-2", f"{simcse}-weighted_mean-seed-2"),
    ]
    assert not list((tmp_path / "out" / "encoders").iterdir())
    values = {cell: [score.value for score in ablation.scores(cell)] for cell in cells}
    assert values[Cell("Bi", "mean", None)] != values[Cell("Uni", "mean", None)]
    assert values[Cell("Bi+MNTP", "mean", 1)] != values[Cell("Bi+MNTP", "mean", 2)]
    assert values[Cell("Bi+MNTP+SimCSE", "mean", 1)] != values[Cell("Bi+MNTP", "mean", 1)]

    folder = write_report(ablation)
    report = json.loads((folder / "report.json").read_text())
    by_name = {(line["setup"], line["pooling"]): line for line in report["lines"]}
    assert by_name["Bi+MNTP", "mean"]["seeds"] == 2
    assert by_name["Uni", "mean"]["seeds"] == 1
    assert set(by_name["BM25", "-"]["scores"]) == {"r"}
    assert set(by_name["static-embedding baseline", "-"]["scores"]) == {"sts", "r"}
    pairs = {(each["model"], each["against"], each["pooling"], each["task"]) for each in report["differences"]}
    assert ("Bi+MNTP+SimCSE", "Bi+MNTP", "best", "sts") in pairs
    assert ("Bi+MNTP", "Bi", "mean", "masked tokens") in pairs
    assert "Bi+MNTP+SimCSE over Bi+MNTP" in (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 3 if find_spec("matplotlib") else "matplotlib is not installed" in page
    layers = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert [len(found) for found in layers.values()] == [4, 4]


def test_cells_of_other_settings_are_refused(decoder: str, recipe: Recipe, tasks: list[Found], tmp_path: Path) -> None:
    ablation = Ablation(decoder, recipe, tasks[:1], tmp_path / "out", setups=("Uni", "Bi+MNTP"), seeds=(1,))
    one = replace(ablation, setups=("Uni", "Bi"), poolings=("mean",))
    run_ablation(one)
    assert [pooling for pooling, _ in collect(one).comparisons()] == ["mean"], "one pooling is its own best"
    assert ablation.missing(Cell("Uni", "mean", None)) == []
    assert [task.name for task in replace(ablation, tasks=tasks).missing(Cell("Uni", "mean", None))] == [
        "r",
        "masked tokens",
    ]
    with only_writer(tmp_path / "out"), pytest.raises(InvalidInputError, match="Another run is writing"):
        run_ablation(ablation)
    with pytest.raises(InvalidInputError, match="made with other settings"):
        run_ablation(replace(ablation, dtype="bfloat16"))
    with pytest.raises(InvalidInputError, match="no cell yet"):
        collect(replace(ablation, output=tmp_path / "nowhere"))


def test_a_grid_that_cannot_be_run_is_refused(decoder: str, recipe: Recipe, tasks: list[Found], tmp_path: Path) -> None:
    def grid(**changes: object) -> Ablation:
        return Ablation(**{"model": decoder, "recipe": recipe, "tasks": tasks, "output": tmp_path, **changes})  # type: ignore[arg-type]

    with pytest.raises(InvalidInputError, match=r"setups must be of .*, got Bi\+LoRA"):
        grid(setups=("Bi+LoRA",))
    with pytest.raises(InvalidInputError, match="poolings must be of"):
        grid(poolings=())
    with pytest.raises(InvalidInputError, match="seeds must be different"):
        grid(seeds=(1, 1))
    with pytest.raises(InvalidInputError, match=r"no table \[simcse\]"):
        grid(recipe=Recipe({"mntp": recipe.stages["mntp"]}, {}))
    with pytest.raises(InvalidInputError, match="tasks must name"):
        grid(tasks=[])
    assert {setup.attention for name, setup in SETUPS.items() if name.startswith("Uni")} == {"causal"}


def test_masked_tokens_are_predicted_from_the_position_before(bos_decoder: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu")
    texts = TEXTS * 4
    items = predict(model, texts)
    assert items.shape[1] == 2
    assert 0.15 < items[:, 1].sum() / (127 * len(items)) < 0.25
    assert np.array_equal(items, predict(model, texts))
    assert np.isnan(accuracy(np.zeros((3, 2))))
    # By hand: the token at i is read off position i - 1, and nothing but the mask token stands at i.
    chunks = chunk_texts(texts, model.tokenizer, 128)
    collator = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, all_mask=True)
    masked = collator(chunks.select(range(8)).to_list())
    with torch.no_grad():
        hidden = model[0].model(input_ids=masked["text_input_ids"][:1]).last_hidden_state[0, :-1]
    wanted = masked["label"][0, 1:]
    head = torch.zeros(300, 32)
    for state, token in zip(hidden[wanted != -100], wanted[wanted != -100], strict=True):
        head[token] = state / state.norm()  # which finds the token from the position before, and from no other
    right = int(((hidden @ head.T).argmax(-1) == wanted).sum())
    assert right > 3
    assert predict(model, texts, head=head)[0].tolist() == [right, int((wanted != -100).sum())]


def test_a_head_that_is_not_tied_is_handed_on(decoder: str, tmp_path: Path) -> None:
    model = st_llm2vec.load(decoder, device="cpu")
    model.save_pretrained(str(tmp_path / "encoder"))
    encoder = st_llm2vec.load(str(tmp_path / "encoder"), device="cpu")
    head = language_model_head(model)
    assert np.array_equal(predict(encoder, TEXTS * 4, head=head), predict(model, TEXTS * 4))


def test_layers_move_when_the_mask_is_removed(bos_decoder: Path) -> None:
    found = layer_cosines(str(bos_decoder), TEXTS[:3])
    assert len(found) == 4  # embeddings and three layers
    assert found[0] == pytest.approx(1.0)
    assert found[1] < 1 - 1e-4
    with pytest.raises(InvalidInputError, match="two tokens"):
        layer_cosines(str(bos_decoder), [""])
