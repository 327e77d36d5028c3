"""Shards of `st-llm2vec encode` in other databases: the example that loads them, run as its page says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from st_llm2vec import encode_corpus

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_shards_are_loaded_into_qdrant_once_and_answer(encoder, tmp_path):
    encode_corpus(encoder, EXAMPLES / "notes" / "planets.csv", tmp_path / "vectors", shard_size=2)
    line = [sys.executable, EXAMPLES / "load_vectors.py", "vectors", "qdrant", "planets with rings"]
    for _ in range(2):  # the second time into the same points
        done = subprocess.run(
            line, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        count, best = done.stdout.splitlines()
        assert (count, best.split(" ", 1)[1][:22]) == ("4 points", "Saturn has wide rings,")
