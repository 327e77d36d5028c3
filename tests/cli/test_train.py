"""`train`: each stage once, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from .conftest import SENTENCES, Command, write_jsonl

SHORT = ("--max-steps", "2", "--batch-size", "4", "--max-seq-length", "8", "--cpu")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"question": text.split()[0] + f" {i}", "answer": text} for i, text in enumerate(SENTENCES)]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    rows = [{"sentence1": a, "sentence2": SENTENCES[0], "score": i} for i, a in enumerate(SENTENCES)]
    return write_jsonl(tmp_path / "scored.jsonl", rows)


def weights(folder: Path) -> dict[str, float]:
    return {name: float(abs(tensor).sum()) for name, tensor in load_file(folder / "model.safetensors").items()}


def test_three_stages(command: Command, decoder: Path, texts: Path, pairs: Path, scored: Path, tmp_path: Path) -> None:
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"

    done = command("train", "mntp", decoder, texts, one, *SHORT, "--eval-file", texts, "--learning-rate", "0.01")
    assert done.code == 0, done.err
    assert "eval_loss" in done.out
    assert SentenceTransformer(str(one)).max_seq_length == 256  # the decoder's own; 8 was for training only

    done = command("train", "simcse", one, texts, two, *SHORT, "--eval-file", scored, "--full", "--bf16")
    assert done.code == 0, done.err
    assert "spearman" in done.out

    prompts = ("--query-prompt", "query:", "--document-prompt", "passage:")
    columns = ("--columns", "question,answer", "--mini-batch-size", "2")
    done = command("train", "supervised", two, pairs, three, *SHORT, *columns, *prompts, "--lora-r", "4")
    assert done.code == 0, done.err
    assert SentenceTransformer(str(three)).prompts == {"query": "query:", "document": "passage:"}

    assert weights(one) != weights(two) != weights(three)
    assert not list(three.glob("adapter_*"))
    state = json.loads((three / "checkpoints" / "train.json").read_text())
    assert state["settings"]["lora_r"] == 4


def test_mntp_reads_a_stream(command: Command, decoder: Path, texts: Path, tmp_path: Path) -> None:
    done = command("train", "mntp", decoder, texts, tmp_path / "out", *SHORT, "--stream", "--no-cross-documents")
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "out" / "training" / "settings.json").read_text())
    assert "rows" not in told["data"]["texts"]
    assert told["settings"]["cross_documents"] is False
    done = command("train", "simcse", decoder, texts, tmp_path / "no", *SHORT, "--stream")
    assert done.code == 1
    assert "data.texts is a stream, which is for mntp" in done.err


@pytest.mark.parametrize("weights_option", [(), ("--full",)], ids=["lora", "full"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    command: Command, encoder: Path, pairs: Path, tmp_path: Path, weights_option: tuple[str, ...]
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = ("--batch-size", "4", "--learning-rate", "0.01", "--save-steps", "2", "--cpu", *weights_option)
    done = command("train", "supervised", encoder, pairs, whole, "--max-steps", "4", *options)
    assert done.code == 0, done.err
    shutil.copytree(whole / "checkpoints", resumed / "checkpoints")
    shutil.rmtree(resumed / "checkpoints" / "checkpoint-4")

    refused = command("train", "supervised", encoder, pairs, resumed, "--max-steps", "4", *options)
    assert refused.code == 1
    assert "--resume" in refused.err
    other = command("train", "simcse", encoder, pairs, resumed, "--max-steps", "4", *options, "--resume")
    assert other.code == 1
    assert "objective='supervised', not 'simcse'" in other.err

    done = command("train", "supervised", encoder, pairs, resumed, "--max-steps", "4", *options, "--resume")
    assert done.code == 0, done.err
    assert "Resuming from" in done.err
    assert "checkpoint-2" in done.err
    assert weights(resumed) == pytest.approx(weights(whole), rel=1e-5)
    assert weights(whole) != weights(encoder)


def test_what_cannot_be_trained_is_one_message(command: Command, encoder: Path, texts: Path, tmp_path: Path) -> None:
    no_head = command("train", "mntp", encoder, texts, tmp_path / "a", *SHORT)
    assert no_head.code == 1
    assert "lm_head" in no_head.err
    one_column = command("train", "supervised", encoder, texts, tmp_path / "b", *SHORT)
    assert one_column.code == 1
    assert "--columns question,answer" in one_column.err
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


RECIPE = """
model = "{model}"
output = "{output}"
batch_size = 4
max_seq_length = 8
cpu = true
lora_r = 4
max_steps = 2

[mntp]
data.texts = "texts.txt"

[simcse]
data.texts = {{ file = "texts.txt", limit = 6 }}

[supervised]
after = "mntp"
mini_batch_size = 2
data.pairs = "pairs.jsonl"
"""


def test_a_recipe_is_trained_from_the_command_line(
    command: Command, decoder: Path, texts: Path, pairs: Path, tmp_path: Path
) -> None:
    recipe, output = tmp_path / "recipe.toml", tmp_path / "stages"
    recipe.write_text(RECIPE.format(model=decoder, output=output))
    early = command("train", "supervised", "--config", recipe)
    assert early.code == 1
    assert "mntp" in early.err

    done = command("train", "all", "--config", recipe, "--max-steps", "1")
    assert done.code == 0, done.err
    stages = {name: json.loads((output / name / "llm2vec_config.json").read_text())["provenance"]["stages"]
              for name in ("mntp", "simcse", "supervised")}  # fmt: skip
    assert stages == {"mntp": ["mntp"], "simcse": ["mntp", "simcse"], "supervised": ["mntp", "supervised"]}

    (output / "supervised" / "checkpoints" / "train.json").unlink()
    before = (output / "mntp" / "model.safetensors").stat().st_mtime_ns
    again = command("train", "all", "--config", recipe, "--max-steps", "1", "--resume")
    assert again.code == 0, again.err
    assert again.err.count("is finished") == 2
    assert (output / "mntp" / "model.safetensors").stat().st_mtime_ns == before
    longer = command("train", "all", "--config", recipe, "--max-steps", "2", "--resume")
    assert longer.code == 1
    assert "began from a 'mntp' that is to be trained further" in longer.err
    alone = command("train", "simcse", "--config", recipe, "--model", decoder, "-o", tmp_path / "other")
    assert alone.code == 0, alone.err
    assert (tmp_path / "other" / "simcse" / "modules.json").is_file()


def test_a_wrong_recipe_or_command_is_one_message(command: Command, decoder: Path, texts: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=decoder, output=tmp_path / "out").replace("batch_size", "batchsize", 1))
    done = command("train", "all", "--config", recipe)
    assert (done.code, "Did you mean 'batch_size'" in done.err) == (1, True)
    for wrong in (
        ("train", "all"),
        ("train", "mntp", decoder),
        ("train", "mntp", decoder, texts, tmp_path / "out", "--config", recipe),
        ("train", "mntp", decoder, texts, tmp_path / "out", "--model", decoder),
    ):
        assert command(*wrong).code == 2
    other = command("train", "mntp", decoder, texts, tmp_path / "out", "--scale", "20")
    assert (other.code, "scale is for simcse and supervised" in other.err) == (1, True)
    assert not (tmp_path / "out").exists()
