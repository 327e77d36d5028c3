"""examples/agent_langgraph.py runs as it stands, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KINDS = ("human", "ai", "tool")
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_agent_asks_the_store_and_quotes_it(tmp_path):
    for _ in range(2):  # the second run opens the store of the first
        done = subprocess.run(
            [sys.executable, EXAMPLES / "agent_langgraph.py"],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        human, asked, told, answer = _messages(done.stdout)
        assert human.startswith("human: How do I copy")
        assert "search_stdlib({'query': 'How do I copy a directory tree?'})" in asked
        assert told.startswith("tool: shutil.")
        assert answer.startswith('ai: The documentation says: "shutil.')


def _messages(out):
    """The four messages of the run, by their first lines."""
    return [line.strip() for line in out.splitlines() if line.startswith("  ") and line.split(":")[0].strip() in KINDS]
