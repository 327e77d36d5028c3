"""Workers and drivers that die leave the bytes of a calm run: the simulation of benchmarks/preemption.py in small."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


def test_whatever_dies_the_bytes_are_those_of_a_calm_run(monkeypatch: pytest.MonkeyPatch) -> None:
    names = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "preemption.py"))
    table = names["table"]
    for name, value in {"WORKERS": 4, "SHARDS": 24}.items():
        monkeypatch.setitem(table.__globals__, name, value)
    rows = [line.split("|")[1:-1] for line in table().splitlines()[2:]]
    assert rows[0][3:] == [" 0 ", " 0 ", " 1 "]  # calm: nothing twice, nobody lost, one run
    assert sum(int(row[4]) for row in rows) > 0
    assert max(int(row[5]) for row in rows) > 3
