"""A run that is killed and resumed ends with the weights of one that was not: bit for bit, on a CPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import WORDS, save_decoder, tiny_tokenizer

from st_llm2vec.training import DataSet, TrainingSettings
from st_llm2vec.training.run import last_checkpoint

TEXTS = [f"{a} {b} compress {c}" for a in ("the", "seven") for b in WORDS.split()[:6] for c in ("files", "dog")]
SETTINGS = {
    "lora_r": 4,
    "max_steps": 7,
    "batch_size": 8,  # three steps an epoch: the run goes on in the middle of the second
    "learning_rate": 2e-3,
    "max_seq_length": 16,
    "save_steps": 2,
    "cpu": True,
    "seed": 7,
}


def run(settings: TrainingSettings, resume: bool, killed_in: int | None) -> None:
    """In a process of its own: one run, which ends itself as `kill -9` does in the middle of a step."""
    from sentence_transformers import SentenceTransformerTrainer as Trainer

    from st_llm2vec.training import train_stage

    step, calls = Trainer.training_step, []

    def training_step(*args: Any, **kwargs: Any) -> Any:
        loss = step(*args, **kwargs)
        calls.append(loss)
        if len(calls) == killed_in:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    Trainer.training_step = training_step
    train_stage(settings, resume=resume)


def start(*args: Any) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["st_llm2vec.training.run"])
    process = context.Process(target=run, args=args)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        save_decoder(folder / name, tokenizer=tiny_tokenizer(bos=True), dtype=dtype, num_hidden_layers=2)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    pairs = ({"anchor": text, "positive": text[4:], "negative": TEXTS[-i]} for i, text in enumerate(TEXTS))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


CASES = [
    (stage, full, dtype)
    for stage in ("mntp", "simcse", "supervised")
    for full in (False, True)
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize(
    ("stage", "full", "dtype"), [*CASES, ("distill", False, "float32"), ("distill", True, "bfloat16")]
)
def test_a_killed_run_resumes_to_the_weights_of_a_straight_one(
    stage: str, full: bool, dtype: str, data: Path, tmp_path: Path
) -> None:
    # The decoder lies in `dtype`; full training keeps it, LoRA on a CPU computes in float32 and trains in float32.
    own: dict[str, Any] = {"full": True, "dtype": dtype, "lora_r": None} if full else {}
    if stage == "distill":
        own |= {"teacher": "llm2vec-tiny", "contrast_weight": 0.5}
    rows = {"rows": DataSet(data / ("pairs.jsonl" if stage in ("supervised", "distill") else "texts.jsonl"))}
    told = TrainingSettings(stage, str(data / dtype), rows, **{**SETTINGS, **own})
    straight, killed = (replace(told, output=str(tmp_path / name)) for name in ("straight", "killed"))
    assert start(straight, False, None) == 0
    assert start(killed, False, 6) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert str(last_checkpoint(tmp_path / "killed" / "checkpoints")).endswith("checkpoint-4")
    assert start(killed, True, None) == 0
    straight, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "killed"))
    first = load_file(data / dtype / "model.safetensors")
    assert straight.keys() == resumed.keys()
    assert any(not torch.equal(straight[name], first[f"model.{name}"].to(straight[name].dtype)) for name in straight)
    assert not [name for name in straight if not torch.equal(straight[name], resumed[name])]


def test_a_checkpoint_that_was_not_written_to_its_end_is_left_out(tmp_path: Path) -> None:
    for step, state in ((2, "{}"), (10, '{"global_step": 1'), (4, "{}"), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert last_checkpoint(tmp_path / "nothing") is None
