"""Writes a trained stage into the package of llm2vec-smollm2, as a LoRA adapter in float16.

    python recipes/smollm2/release.py mntp build/smollm2/mntp/adapter

What is written is what the names of models/smollm2 stand for; README.md there is the card.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from st_llm2vec.checkpoints import SETTINGS_FILE
from st_llm2vec.templates import TEMPLATES

PACKAGE = Path(__file__).parents[2] / "models" / "smollm2" / "st_llm2vec_smollm2"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
MEAN: dict[str, Any] = {"format": 1, "pooling_mode": "mean", "max_seq_length": 512}
STAGES: dict[str, dict[str, Any]] = {  # and how each encodes
    "mntp": MEAN,
    "supervised": MEAN,
    "unsup": MEAN | {"attention": "causal", "pooling_mode": "last_token", "template": asdict(TEMPLATES["prompt-eol"])},
}
ON_THE_DECODER = ("mntp", "unsup")


def write(stage: str, adapter: Path) -> Path:
    """Copy an adapter into the package; on the decoder itself it also gets the config.json by which it is known so."""
    target = PACKAGE / stage
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    weights = load_file(adapter / "adapter_model.safetensors")
    halves = {name: weight.to(torch.float16) for name, weight in weights.items()}
    save_file(halves, target / "adapter_model.safetensors")
    (target / "adapter_model.safetensors").chmod(0o644)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in sorted(config.items()) if value not in (None, {}, False)}
    config |= {"base_model_name_or_path": BASE, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    _write(target / "adapter_config.json", config)
    _write(target / SETTINGS_FILE, STAGES[stage])
    if stage in ON_THE_DECODER:
        causal = STAGES[stage].get("attention") == "causal"
        _write(target / "config.json", {"model_type": "llama", "_name_or_path": BASE, "is_causal": causal})
    return target


def _write(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("adapter", type=Path, help="folder with adapter_config.json and adapter_model.safetensors")
    args = parser.parse_args()
    folder = write(args.stage, args.adapter)
    print(folder, sum(file.stat().st_size for file in folder.iterdir()), "bytes")
