"""The examples of retrieval-augmented generation run as they stand, each in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
KINDS = ("human: ", "ai: ", "tool: ")


def run(name: str, folder: Path) -> list[str]:
    """The lines that an example prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["rag_langchain.py", "rag_llama_index.py"])
def test_five_questions_are_answered_with_cited_passages(name, tmp_path):
    lines = run(name, tmp_path)
    questions = [number for number, line in enumerate(lines) if line.startswith("Q: ")]
    assert len(questions) == 5
    for number in questions:
        assert lines[number + 1].startswith('A: The documentation says: "')
        assert lines[number + 1].endswith("[1]")
        assert [line[:7] for line in lines[number + 2 : number + 5]] == ["   [1] ", "   [2] ", "   [3] "]
    tree = questions[0]  # asked among the passages of shutil only
    assert all(line[7:].startswith("shutil") for line in lines[tree + 2 : tree + 5])
    assert run(name, tmp_path) == lines  # from the store that is there


def test_an_agent_asks_the_store_and_quotes_it(tmp_path):
    said = [line.strip() for line in run("agent_langgraph.py", tmp_path) if line.lstrip().startswith(KINDS)]
    assert said[0] == "human: How do I copy a directory tree?"
    assert said[1] == "ai: search_stdlib({'query': 'How do I copy a directory tree?'})"
    assert said[2].startswith("tool: shutil")
    assert said[3].startswith('ai: The documentation says: "shutil')
