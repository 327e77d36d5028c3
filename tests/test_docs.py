"""What the documentation shows, run as it stands: each page in order, and what its prints say beside them."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "docs/index.md", "docs/getting-started.md", "docs/instructions.md", "docs/pooled-span.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
# What a newcomer cannot run as it stands: it wants a network, or is the part of a script.
NEEDS_MORE = ("Qwen/", "llm2vec-mistral", "train_dataset")


def blocks(page: str) -> list[str]:
    found = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [block for block in found if not any(word in block for word in NEEDS_MORE)]


def shown(block: str) -> list[str]:
    """What stands as a comment behind a print, or in the line below it."""
    lines, found = block.splitlines(), []
    for i, line in enumerate(lines):
        if re.match(r"\s*print\(", line):
            comment = line.partition("  # ")[2] or (
                lines[i + 1][2:] if lines[i + 1 : i + 2] and lines[i + 1].startswith("# ") else ""
            )
            found.append(comment)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_and_prints_what_it_says(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert blocks(page)
    for block in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), names)
        for said, was in zip(shown(block), printed.getvalue().splitlines(), strict=True):
            assert not said or said == was


def test_every_block_of_every_page_is_python() -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            compile(block, str(page), "exec")


def test_the_tables_of_costs_are_what_the_script_prints() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "cost.py")], capture_output=True, text=True, check=True
    )
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    for table in done.stdout.strip().split("\n\n"):
        assert f"\n{table}\n" in page
