"""Two processes train as one with the joined batch: the same weights, whatever each of them has seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from datasets import IterableDataset
from safetensors.torch import load_file
from tiny_models import WORDS

from st_llm2vec import LLM2Vec
from st_llm2vec.training import TrainingSettings, train_stage

TEXTS = [f"{a} {b} {c}" for a in WORDS.split()[:4] for b in WORDS.split()[4:8] for c in WORDS.split()[8:11]]
# No text twice: the sampler would draw other batches of 4 than of 8.
PAIRS = [{"anchor": text, "positive": f"{text} files", "negative": f"query {text}"} for text in TEXTS]
SHORT: dict[str, Any] = {"max_steps": 3, "max_seq_length": 8, "cpu": True, "lora_r": 4, "lora_dropout": 0.0}
# What is drawn for a batch, such as masks and dropout, would differ between batches of 4 and of 8: nothing is drawn.
ALL: dict[str, Any] = {"mask_probability": 1.0, "all_mask": True}
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "mntp": ("mntp", ALL),
    "head": ("mntp", {**ALL, "train_head": True}),
    "stream": ("mntp", ALL),
    "scored": ("mntp", {**ALL, "eval_steps": 2}),  # before the first step, too
    "simcse": ("simcse", {"scale": 5.0, "attention_dropout": 0.0}),
    "supervised": ("supervised", {"scale": 5.0}),
    "projection": ("distill", {"teacher": "llm2vec-tiny", "contrast_weight": 0.0}),
    "distill": ("distill", {"teacher": "llm2vec-tiny", "contrast_weight": 0.5, "scale": 5.0}),
}


def told(stage: str, decoder: str, output: str, batch_size: int) -> TrainingSettings:
    objective, own = STAGES[stage]
    rows: Any = TEXTS if objective in ("mntp", "simcse") else PAIRS
    data = IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS)) if stage == "stream" else rows
    if stage == "scored":
        own = {**own, "eval_file": str(Path(output).parent / "scored.txt")}
    return TrainingSettings(
        objective, decoder, {"data": data}, output, batch_size=batch_size, learning_rate=1e-3, **SHORT, **own
    )


def note_who_saves(folder: str) -> None:
    save = LLM2Vec.save_pretrained

    def noted(self: LLM2Vec, path: str, *given: Any, **more: Any) -> None:
        with open(f"{folder}/saves.txt", "a") as file:
            file.write(f"{PartialState().process_index}\n")
        save(self, path, *given, **more)

    LLM2Vec.save_pretrained = noted  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def folders(bos_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each stage, trained by one process and by two."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "scored.txt").write_text("\n".join(TEXTS))
    script = folder / "both.py"
    script.write_text(
        "import sys\nsys.path.insert(0, sys.argv[1])\nimport test_processes as t\nt.note_who_saves(sys.argv[3])\n"
        "for stage in t.STAGES:\n    t.train_stage(t.told(stage, sys.argv[2], f'{sys.argv[3]}/two-{stage}', 4))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [*launch, here, str(bos_decoder), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in STAGES:
        train_stage(told(stage, str(bos_decoder), str(folder / f"one-{stage}"), 8))
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_are_one_with_the_joined_batch(stage: str, folders: Path, bos_decoder: Path) -> None:
    one, two = (load_file(folders / f"{name}-{stage}" / "model.safetensors") for name in ("one", "two"))
    first = load_file(bos_decoder / "model.safetensors")
    assert max((one[name] - first[f"model.{name}"]).abs().max().item() for name in one) > 1e-4
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-5
    losses = []
    for name in ("one", "two"):
        curve = (folders / f"{name}-{stage}" / "training" / "curve.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in curve if "loss" in json.loads(line)])
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_one_process_saves(folders: Path) -> None:
    """Each would write the checkpoint over that of the other, and one that is killed then would leave a mixture."""
    assert set((folders / "saves.txt").read_text().split()) == {"0"}
