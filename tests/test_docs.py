"""What the documentation shows, run as it stands: each page in order, and what its prints say beside them."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import faiss_llm2vec
import langchain_llm2vec
import llama_index_llm2vec
import st_llm2vec
from st_llm2vec.architectures import ARCHITECTURES, REFUSED

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/getting-started.md",
    "docs/instructions.md",
    "docs/pooled-span.md",
    "docs/stores.md",
    "docs/frameworks.md",
    "docs/index-your-files.md",
]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
# What a newcomer cannot run as it stands: it wants a network, or is the part of a script.
NEEDS_MORE = ("Qwen/", "llm2vec-mistral", "train_dataset", "cross-encoder/", "haystack")


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
    shutil.copytree(ROOT / "examples" / "notes", "notes")
    names: dict[str, object] = {}
    assert blocks(page)
    for block in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), names)
        for said, was in zip(shown(block), printed.getvalue().splitlines(), strict=True):
            assert not said or said == was


def squeezed(text: str) -> str:
    """Without blanks and the lines of tables, which depend on the terminal."""
    return re.sub(r"[\s─]", "", text)


@pytest.mark.parametrize("page", ["README.md", "docs/index-your-files.md"])
def test_a_command_prints_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`...` on a page stands for anything."""
    from st_llm2vec.cli import main

    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    shutil.copytree(ROOT / "examples" / "notes", "notes")
    text = (ROOT / page).read_text(encoding="utf-8").replace("\n    ", "\n")
    (session,) = re.findall(
        r"^\$ st-llm2vec index (?:examples/)?notes notes-store.*?(?=^```|^$\n^#)", text, re.M | re.S
    )
    for typed, said in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n?)*)", session, re.M):
        for command in typed.split(" && "):
            capsys.readouterr()
            main(shlex.split(command)[1:])
        done = capsys.readouterr()
        pattern = ".*".join(re.escape(squeezed(part)) for part in said.split("..."))
        assert re.search(pattern, squeezed(done.err + done.out)), f"{typed}\n{done.err}{done.out}"


def test_the_reference_has_every_public_name() -> None:
    listed = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8").split()
    names = {line.rpartition(".")[2] for line in listed}
    for package in (st_llm2vec, faiss_llm2vec, langchain_llm2vec, llama_index_llm2vec):
        public = {name: getattr(package, name) for name in package.__all__ if name[0] != "_"}
        assert [name for name, each in public.items() if name not in names and each.__module__ not in listed] == []


def test_the_readme_counts_the_architectures() -> None:
    said = f"| decoders | {len(ARCHITECTURES)} architectures tested, [{len(REFUSED)} refused]"
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")


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
