"""Recipes: every field is checked, presets and files join in one order, mistakes are named before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from st_llm2vec.errors import InvalidInputError
from st_llm2vec.presets import DEFAULTS, PRESETS
from st_llm2vec.recipe_files import read_recipe
from st_llm2vec.recipes import DATA_FIELDS, FIELDS, DataSet, TrainingSettings

ROOT = Path(__file__).parent.parent
WRONG = {
    "keep_best": "yes",
    "full": 1,
    "lora_r": 0,
    "lora_alpha": -1,
    "lora_dropout": 1.0,
    "lora_targets": "q_proj",
    "adapter_dtype": "int8",
    "max_steps": 0,
    "epochs": 0,
    "batch_size": 2.5,
    "mini_batch_size": 0,
    "gradient_accumulation": 0,
    "gradient_checkpointing": "on",
    "learning_rate": "1e-4",
    "embedding_learning_rate": 0,
    "weight_decay": -0.1,
    "scheduler": "cosin",
    "warmup_steps": -1,
    "max_seq_length": 0,
    "cross_documents": 0,
    "mask_probability": 0,
    "all_mask": 1,
    "mask_token": "",
    "train_head": "no",
    "attention_dropout": 1,
    "scale": 0,
    "symmetric": 1,
    "guide": "",
    "guide_margin": -0.1,
    "matryoshka_dims": [64, 64],
    "query_prompt": 3,
    "document_prompt": ["a"],
    "teacher": "",
    "teacher_pca": 0,
    "teacher_dtype": "int8",
    "distance": "dot",
    "alignment": "diagonal",
    "contrast_weight": -1,
    "pooling_mode": "max",
    "template": "lama",
    "attention": "both",
    "share": 0,
    "save_steps": 0,
    "eval_steps": 0,
    "logging_steps": 0,
    "dtype": "int8",
    "bf16": 1,
    "cpu": 1,
    "seed": -1,
    "preset": "small",
    "eval_file": 3,
    "model": "",
    "data": [],
    "output": 1,
    "objective": "mlm",
}


def test_every_field_is_checked() -> None:
    assert WRONG.keys() == FIELDS.keys()
    for name, value in WRONG.items():
        objective = FIELDS[name].metadata["only"][0]
        with pytest.raises(InvalidInputError, match=name):
            TrainingSettings(**{"objective": objective, name: value})


def test_a_field_of_another_objective_is_refused() -> None:
    for name, row in FIELDS.items():
        for objective in set(DEFAULTS) - set(row.metadata["only"]):
            with pytest.raises(InvalidInputError, match=f"{name} is for"):
                TrainingSettings(**{"objective": objective, name: "x"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_steps": 3, "epochs": 1.0}, "exclude each other"),
        ({"full": True, "lora_r": 4}, "lora_r is for LoRA"),
        ({"embedding_learning_rate": 1e-4}, "needs full=True"),
    ],
)
def test_fields_that_exclude_each_other_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        TrainingSettings("mntp", **given)  # type: ignore[arg-type]


def test_what_is_said_comes_before_the_preset_and_the_preset_before_the_default() -> None:
    told = TrainingSettings("supervised", preset="small-decoder", batch_size=7)
    assert (told["batch_size"], told["scale"], told["lora_dropout"], told["seed"]) == (7, 20.0, 0.0, 42)
    assert told["max_steps"] == 1000
    assert TrainingSettings("mntp", epochs=2.0)["max_steps"] is None
    warmups = [TrainingSettings("supervised", max_steps=steps)["warmup_steps"] for steps in (None, 100, 5000)]
    assert warmups == [300, 30, 300]
    assert TrainingSettings("supervised", max_steps=100, warmup_steps=90)["warmup_steps"] == 90
    assert not {"lora_r", "lora_alpha"} & TrainingSettings("mntp", full=True).to_dict().keys()


def test_presets_hold_the_papers_numbers_and_known_fields_only() -> None:
    for preset, stages in PRESETS.items():
        for objective in DEFAULTS:
            values = {**stages["all"], **stages.get(objective, {})}
            TrainingSettings(objective, preset=preset, **values)
    families = [name for name in PRESETS if name != "small-decoder"]
    assert families == ["sheared-llama-1.3b", "llama-2-7b", "mistral-7b", "llama-3-8b"]
    for family in families:
        mntp, simcse, labels = (
            TrainingSettings(objective, preset=family) for objective in ("mntp", "simcse", "supervised")
        )
        assert (mntp["learning_rate"], mntp["batch_size"], mntp["max_steps"]) == (5e-5, 32, 1000)
        assert (mntp["max_seq_length"], simcse["max_seq_length"], labels["max_seq_length"]) == (512, 128, 512)
        assert (simcse["learning_rate"], simcse["attention_dropout"], simcse["scale"]) == (3e-5, 0.3, 20)
        assert simcse["batch_size"] == (32 if family.startswith("sheared") else 128)
        assert (labels["learning_rate"], labels["warmup_steps"], labels["batch_size"]) == (2e-4, 300, 512)
        masks = (0.8, True) if family == "mistral-7b" else (0.2, None)
        assert (mntp["mask_probability"], mntp["all_mask"]) == masks
        assert (mntp["lora_r"], mntp["lora_alpha"], mntp["lora_dropout"]) == (16, 32, 0.05)


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_a_recipe_file_becomes_stages_in_their_order(tmp_path: Path) -> None:
    first = write(
        tmp_path,
        "recipe.toml",
        """
        model = "org/decoder"
        output = "out"
        scale = 30
        data_folder = "files"
        [mntp]
        learning_rate = 1e-3
        data.wiki = { file = "wiki.jsonl", limit = 10 }
        [simcse]
        data.wiki = "wiki.jsonl"
        [labels]
        objective = "supervised"
        after = "mntp"
        scale = 50
        eval_file = "dev.jsonl"
        data.pairs = { file = "pairs.jsonl", columns = ["q", "a"], weight = 0.5, query_prompt = "Find: " }
        [alone]
        objective = "simcse"
        after = ""
        attention = "causal"
        data.wiki = "wiki.jsonl"
        """,
    )
    text = "[mntp]\nepochs = 2\n"
    second = write(tmp_path, "faster.toml", "[mntp]\nmax_steps = 5\n")
    recipe = read_recipe([first, second], {"seed": 7})
    mntp, simcse, labels, alone = recipe.stages.values()
    assert [stage["model"] for stage in recipe.stages.values()] == [
        "org/decoder",
        "out/mntp",
        "out/mntp",
        "org/decoder",
    ]
    assert [stage["output"] for stage in recipe.stages.values()] == [
        "out/mntp",
        "out/simcse",
        "out/labels",
        "out/alone",
    ]
    assert (mntp["learning_rate"], mntp["max_steps"], mntp["seed"]) == (1e-3, 5, 7)
    assert (simcse["scale"], labels["scale"], alone["attention"]) == (30, 50, "causal")
    assert labels["eval_file"] == str(tmp_path / "files" / "dev.jsonl")
    assert labels.data == {
        "pairs": DataSet(tmp_path / "files" / "pairs.jsonl", ("q", "a"), weight=0.5, query_prompt="Find: ")
    }
    again = read_recipe([first], {"scale": 9, "model": "x", "output": "o", "data_folder": "d"}, only="labels")
    assert list(again.stages) == ["labels"]
    assert (again.stages["labels"]["scale"], again.stages["labels"]["model"]) == (9, "x")
    assert read_recipe([write(tmp_path, "a.toml", text), first], {"max_steps": 3}).stages["mntp"]["epochs"] is None
    assert again.stages["labels"].data["pairs"].file == str(Path("d") / "pairs.jsonl")  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model =", "not valid TOML"),
        ("[mnpt]", "Did you mean 'mntp'"),
        ("output='o'\nlearnin_rate=1\n[mntp]", "Did you mean 'learning_rate'"),
        ("output='o'\n[mntp]\nlearnin_rate=1", "Did you mean 'learning_rate'"),
        ("output='o'\n[mntp]\ndata.a = {fil='x'}", "Did you mean 'file'"),
        ("output='o'\n[mntp]\ndata.a = {limit=3}", "must name its file"),
        ("output='o'\n[mntp]\ndata.a = {file='x', limit=0}", "limit must be an integer"),
        ("model='m'\noutput='o'\n[mntp]", "data is missing"),
        ("output='o'\n[mntp]\ndata.a='x.txt'", "model is missing"),
        ("model='m'\n[mntp]\ndata.a='x.txt'", "output is missing"),
        ("model='m'\noutput='o'\n[distill]\ndata.a='x.txt'", "teacher is missing"),
        ("model='m'\noutput='o'", "no table"),
        ("output='o'\ndata.a='x.txt'\n[mntp]", "data above its stages"),
        ("model='m'\noutput='o'\n[mntp]\nafter='simcse'", "no table above"),
        ("model='m'\noutput='o'\nscale=3\n[mntp]\ndata.a='x.txt'", "scale is for simcse and supervised"),
        ("model='m'\noutput='o'\n[mntp]\nscale=3\ndata.a='x.txt'", "scale is for simcse and supervised"),
        ("model='m'\noutput='o'\n[mntp]\ndata.a='x'\n[simcse]\nmodel='n'\ndata.a='x'", "Leave one of them out"),
    ],
)
def test_a_wrong_recipe_says_what_to_write(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=said):
        read_recipe([write(tmp_path, "recipe.toml", text)])


def test_recipes_are_read_without_torch_and_trained_without_a_terminal() -> None:
    code = "import sys, st_llm2vec.recipe_files; assert 'torch' not in sys.modules"
    code += "; import st_llm2vec.training.run; assert 'typer' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_field_is_documented() -> None:
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    for name, row in FIELDS.items():
        only = "" if row.metadata["only"] == tuple(DEFAULTS) else ", ".join(row.metadata["only"])
        mark = "" if row.metadata["fixed"] else " *"
        assert f"| `{name}`{mark} | {row.metadata['help']} | {only} |\n" in page
    assert all(f"`{name}`" in page for name in (*DATA_FIELDS, *PRESETS, "after", "data_folder"))


def test_the_recipes_of_the_repository_are_valid() -> None:
    for file in sorted((ROOT / "recipes").glob("*/*.toml")):
        whole = [file] if "\nmodel" in file.read_text() else [file.with_name("llm2vec-smollm2.toml"), file]  # it adds
        assert read_recipe(whole, {"output": "o"}).stages
