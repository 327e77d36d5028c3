"""`make gpu` runs its steps one by one, keeps what they found, and says where there is no GPU."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
gpu: Any = importlib.import_module("gpu")
PYTHON = "{python} -c "


def steps(*commands: str, seconds: int = 60) -> list[Any]:
    return [gpu.Step(f"step-{i}", seconds, PYTHON + f'"{command}"') for i, command in enumerate(commands)]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs gpu.py in this process with steps of the test's own; returns all lines so far."""

    def run(table: list[Any], *arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(gpu, "STEPS", table)
        monkeypatch.setattr(gpu, "real_or_random", lambda *_: (tmp_path, "random weights"))
        quick = ["gpu.py", "--device", "cpu", "--quick", "--out", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr(sys, "argv", quick)
        gpu.main()
        return gpu.lines_of(tmp_path / "out" / "results.jsonl")

    return run


def test_every_step_ends_before_a_lent_machine_does() -> None:
    names = [step.name for step in gpu.STEPS]
    assert len(set(names)) == len(names)
    assert all(0 < step.seconds <= 540 for step in gpu.STEPS)
    words = dict.fromkeys(("python", "device", "out", "real", "recipe", "data"), "x")
    for step in gpu.STEPS:
        first, second, *_ = step.command.format(**words).split()
        assert first == "x"
        assert second == "-m" or (ROOT / second).is_file()


def test_a_machine_without_a_gpu_says_so() -> None:
    if torch.cuda.is_available():
        pytest.fail("This machine has a GPU: run make gpu, which runs tests/test_gpu.py.")
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no GPU here" in done.stderr
    assert "--device cpu --quick" in done.stderr


def test_a_step_leaves_a_line_and_is_not_run_again(call: Any) -> None:
    table = steps("print(1)", "print('{device}')")
    first = call(table)
    assert [line["step"] for line in first] == ["step-0", "step-1"]
    assert first[1]["figures"] == [{"said": "cpu"}]
    assert all(line["machine"] and line["seconds"] >= 0 for line in first)
    assert call(table) == first
    assert [line["step"] for line in call(table, "--step", "step-1", "--again")] == ["step-0", "step-1", "step-1"]


def test_a_step_that_fails_says_why_and_the_others_run(call: Any, tmp_path: Path) -> None:
    table = steps("raise SystemExit('broken')", "print(2)")
    with pytest.raises(SystemExit, match="Without figures: step-0"):
        call(table)
    lines = gpu.lines_of(tmp_path / "out" / "results.jsonl")
    assert lines[0]["error"] == "it ended with 1: broken"
    assert "error" not in lines[1]
    table[0] = steps("print(1)")[0]
    assert [line["step"] for line in call(table)] == ["step-0", "step-1", "step-0"]  # it alone is left


def test_a_step_that_takes_too_long_is_ended(call: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="step-0"):
        call(steps("import time; time.sleep(60)", seconds=1))
    assert "ended after 1 seconds" in gpu.lines_of(tmp_path / "out" / "results.jsonl")[0]["error"]


def test_a_step_that_does_not_fit_waits_for_the_next_call(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    table = [*steps("print(1)", seconds=30), *(step for step in steps("", "print(2)", seconds=500) if "1" in step.name)]
    assert [line["step"] for line in call(table, "--budget", "100")] == ["step-0"]
    assert "step-1 may take 500 seconds" in capsys.readouterr().out
    assert [line["step"] for line in call(table)] == ["step-0", "step-1"]


def test_a_step_whose_data_are_not_there_is_no_success(call: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="step-0"):
        call([gpu.Step("step-0", 60, PYTHON + '"print(1)"', needs=str(tmp_path / "nowhere"))])
    (line,) = gpu.lines_of(tmp_path / "out" / "results.jsonl")
    assert "left out" in line["error"]


def test_the_page_has_the_table_of_the_lines_that_are_kept() -> None:
    page = gpu.PAGE.read_text(encoding="utf-8")
    assert page.partition(gpu.BEGIN)[2].partition(gpu.END)[0] == gpu.table(gpu.lines_of(gpu.RECORD))


def test_the_table_shows_the_last_line_of_each_step() -> None:
    line = {"step": "encode", "device": "cuda", "quick": False, "machine": "a GPU", "weights": "random weights"}
    row = {"shape": "7b", "workload": "short", "variant": "ours bfloat16", "tokens_per_second": 41234.5, "cosine": None}
    shown = gpu.table([{**line, "error": "it broke"}, {**line, "figures": [row]}])
    assert "| encode | 7b short ours bfloat16 | tokens_per_second 41,234 |" in shown
    assert "broke" not in shown
    assert "a GPU; random weights." in shown
