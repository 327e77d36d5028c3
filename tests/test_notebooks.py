"""The notebooks run top to bottom, and their cells print what the files show, but for the digits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from notebooks import NOTEBOOKS, code_cells, printed, shown


def words(text: str) -> str:
    """A text without what another processor or Python may round or count differently."""
    return re.sub(r" *-?\d+(\.\d+)?", "#", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_shows(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    notebook = json.loads(path.read_text(encoding="utf-8"))
    said = [words(shown(cell)) for cell in code_cells(notebook)]
    assert any(said)
    assert [words(text) for text in printed(notebook, path.stem)] == said


def test_a_cell_that_raises_is_named() -> None:
    def cell(source: str) -> dict[str, object]:
        return {"cell_type": "code", "source": [source], "outputs": []}

    with pytest.raises(ZeroDivisionError) as caught:
        printed({"cells": [cell("a = 1"), cell("print(a / 0)")]}, "mine")
    assert caught.traceback[-1].frame.code.raw.co_filename == "mine, cell 2"


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["quickstart", "rag_langchain", "train_mntp_simcse"]
