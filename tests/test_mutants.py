"""The table of mutants is kept: each text is there once, so that its row breaks something (`make mutants` runs it)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "mutants"
sys.path.append(str(FOLDER))

from table import MUTANTS, Mutant  # noqa: E402

_found = importlib.util.spec_from_file_location("mutants_run", FOLDER / "run.py")  # benchmarks has a run.py, too
assert _found is not None
assert _found.loader is not None
runner = importlib.util.module_from_spec(_found)
_found.loader.exec_module(runner)
ROOT, mutate, summary = runner.ROOT, runner.mutate, runner.summary


def test_every_row_breaks_a_line_that_is_there() -> None:
    stale = [m for m in MUTANTS if not (ROOT / m.file).is_file() or mutate((ROOT / m.file).read_text(), m) is None]
    assert not stale, "\n".join(f"{m.file}: {m.line!r}" for m in stale)
    assert len(MUTANTS) >= 150


def test_every_row_breaks_something_and_names_tests_that_are_there() -> None:
    for mutant in MUTANTS:
        source = (ROOT / mutant.file).read_text()
        assert mutate(source, mutant) != source
        files = [word for word in mutant.tests.split() if word.endswith(".py")]
        assert files
        assert all((ROOT / file).is_file() for file in files), mutant.tests


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["killed"] * 9 + ["survived"], "9 killed, 1 survived, 0 equivalent of 10 rows: 90.0%"),
        (["killed", "equivalent"], "1 killed, 0 survived, 1 equivalent of 2 rows: 100.0%"),
        (["killed", "stale: gone"], "1 killed, 0 survived, 0 equivalent, 1 stale of 2 rows: 100.0%"),
    ],
)
def test_the_summary_says_killed_survived_and_equivalent(verdicts: list[str], said: str) -> None:
    found = {Mutant("a.py", str(i), "x", "tests"): verdict for i, verdict in enumerate(verdicts)}
    shown = summary(found)
    assert shown.startswith(said)
    assert shown.count("\n") == sum(verdict not in ("killed", "equivalent") for verdict in verdicts)
