"""The runner on a kit that it has never seen, and on kits that must fail."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import make_kit
import numpy as np
import pytest
import run_kit


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kit = tmp_path_factory.mktemp("fresh") / "kit"
    make_kit.main(kit, seed=7)
    return kit


@pytest.fixture
def small(fresh: Path, tmp_path: Path) -> Path:
    """Two cases of the fresh kit, free to be damaged."""
    kit = Path(shutil.copytree(fresh, tmp_path / "kit", ignore=shutil.ignore_patterns("deep-*", "windowed-*")))
    edit(kit, lambda cases: dict(list(cases.items())[:2]))
    return kit


def edit(kit: Path, change: Any) -> None:
    manifest = json.loads((kit / "manifest.json").read_text())
    manifest["cases"] = {"narrow-llama": change(manifest["cases"]["narrow-llama"])}
    (kit / "manifest.json").write_text(json.dumps(manifest))


def test_a_fresh_kit_passes(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_kit.main(fresh) == 0
    table = capsys.readouterr().out
    for family in make_kit.FAMILIES:
        cases, rows, worst = re.search(rf"{family} +(\d+) +(\d+) +(\S+)", table).groups()
        assert int(cases) == len(list(make_kit.cases(make_kit.FAMILIES[family])))
        assert int(rows) > 6 * int(cases)
        assert float(worst) < 1e-4


def test_the_small_kit_passes_undamaged(small: Path) -> None:
    assert run_kit.main(small) == 0


def test_one_wrong_number_fails(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small / "embeddings" / "narrow-llama.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    key = next(iter(arrays))
    arrays[key][3, -1] += 2e-4
    np.savez(path, **arrays)
    assert run_kit.main(small) == 1
    assert f"FAILED narrow-llama {key}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"rows": {"parity": []}},
        {"rows": {"parity": [99]}},
        {"direction": "sideways"},
        {"chain": "unheard-of"},
        {"pooling_mode": "median"},
        {"attn": "carrier-pigeon"},
    ],
    ids=str,
)
def test_a_case_that_cannot_be_run_fails(small: Path, change: dict[str, Any]) -> None:
    def last(cases: dict[str, Any]) -> dict[str, Any]:
        return {key: case | (change if i else {}) for i, (key, case) in enumerate(cases.items())}

    edit(small, last)
    assert run_kit.main(small) == 1


def test_no_cases_fail(small: Path) -> None:
    edit(small, lambda cases: {})
    assert run_kit.main(small) == 1
