"""Compares st_llm2vec with a parity kit: embeddings of the original LLM2Vec for given checkpoints and texts.

    python tests/parity/run_kit.py KIT_DIR        # tests/parity/kit is the one of this repository

Every `parity` row of every case counts. Exit status 0 if all are within the tolerance; a case that cannot be run, or a
kit without rows, is a failure. The kit's README describes the format.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import st_llm2vec

TOLERANCE = 1e-4
DIRECTIONS = {"bi": "bidirectional", "causal": "causal"}


@dataclass
class Result:
    """One case: how many rows were compared, the largest absolute difference, and why it could not be run."""

    family: str
    case: str
    rows: int = 0
    worst: float = float("inf")
    error: str = ""

    def __bool__(self) -> bool:
        return not self.error and self.rows > 0 and self.worst <= TOLERANCE


def load_case(kit: Path, family: str, key: str, case: dict[str, Any], chains: dict[str, Any], scratch: Path) -> Any:
    """The model of a case, through the public `load` only."""
    chain = chains[case["chain"]]
    base, adapter = (name.format(family=family) if name else None for name in (chain["base"], chain["peft"]))
    models = kit / "models"
    changes = {"_name_or_path": case.get("name_or_path"), "sliding_window": case.get("sliding_window")}
    if any(value is not None for value in changes.values()):
        shutil.rmtree(scratch, ignore_errors=True)
        models = Path(shutil.copytree(models, scratch))
        for file in models.glob(f"{family}-*/config.json"):
            file.chmod(0o644)
            config = json.loads(file.read_text())
            file.write_text(json.dumps(config | {k: v for k, v in changes.items() if v is not None}))
    settings = {
        "pooling_mode": case["pooling_mode"],
        "max_seq_length": case["max_length"],
        "document_max_length": case["doc_max_length"],
        "include_prompt": not case["skip_instruction"],
    }
    return st_llm2vec.load(
        str(models / base),
        adapter=str(models / adapter) if adapter else None,
        attention=DIRECTIONS[case["direction"]],
        device="cpu",
        model_kwargs={"attn_implementation": case.get("attn", "sdpa")},
        **({} if "defaults-from-llm2vec_config" in key else settings),
    )


def run_case(kit: Path, family: str, key: str, manifest: dict[str, Any], scratch: Path) -> Result:
    """Encodes all texts of the kit in one call and compares the rows that must match."""
    case = manifest["cases"][family][key]
    inputs = json.loads((kit / "inputs.json").read_text(encoding="utf-8"))
    try:
        model = load_case(kit, family, key, case, manifest["chains"], scratch)
        got = model.encode([[row["instruction"], row["text"]] for row in inputs], show_progress_bar=False)
        rows = case["rows"]["parity"]
        with np.load(kit / "embeddings" / f"{family}.npz") as arrays:
            worst = np.abs(got[rows] - arrays[key][rows]).max() if rows else float("inf")
    except Exception as error:
        return Result(family, key, error=f"{type(error).__name__}: {error}")
    return Result(family, key, len(rows), float(worst))


def cases(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """(family, key) of every case; `bi-as-shipped` arrays document a defect (Q1) and are never to be matched."""
    return [
        (family, key)
        for family, of_family in manifest["cases"].items()
        for key, case in of_family.items()
        if case["direction"] != "bi-as-shipped"
    ]


def main(kit: Path) -> int:
    manifest = json.loads((kit / "manifest.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        results = [run_case(kit, family, key, manifest, Path(scratch) / "models") for family, key in cases(manifest)]
    print(f"{'family':<12}{'cases':>6}{'rows':>7}  worst absolute difference (tolerance {TOLERANCE:g})")
    for family in dict.fromkeys(result.family for result in results):
        mine = [result for result in results if result.family == family]
        worst = max(result.worst for result in mine)
        print(f"{family:<12}{len(mine):>6}{sum(result.rows for result in mine):>7}  {worst:.2e}")
    failed = [result for result in results if not result]
    for result in failed:
        print(
            f"FAILED {result.family} {result.case}: {result.error or f'{result.rows} rows, worst {result.worst:.2e}'}"
        )
    return 1 if failed or not results else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
