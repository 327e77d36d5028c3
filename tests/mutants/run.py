"""Breaks one line at a time, runs the tests that should notice, and prints which lines nobody guards: `make mutants`.

    python tests/mutants/run.py              every row of table.py
    python tests/mutants/run.py --only merging --limit 10

Each row runs in a copy of the tree. A row whose line is gone, or stands more than once, is an error: fix the table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from table import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent.parent
COPIED = ("st_llm2vec", "integrations", "tests", "examples", "docs", "recipes")
SECONDS = 600  # a mutant that loops is noticed, too


def mutate(tree: Path, mutant: Mutant) -> str:
    """Puts the replacement in the place of the line; says why it cannot, or nothing."""
    path = tree / mutant.file
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    found = [i for i, line in enumerate(lines) if line.strip() == mutant.line]
    if len(found) != 1:
        return f"stale: {mutant.file} has this line {len(found)} times: {mutant.line}"
    indent = lines[found[0]][: -len(mutant.line)]
    lines[found[0]] = indent + mutant.replacement
    path.write_text("\n".join(lines), encoding="utf-8")
    return ""


def run(mutant: Mutant) -> str:
    """ "killed", "survived", or what is wrong with the row."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        if problem := mutate(tree, mutant):
            return problem
        environment = {**os.environ, "PYTHONPATH": f"{tree}:{tree / 'integrations'}", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests.split()]
        try:
            done = subprocess.run(
                command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return "killed"
    if done.returncode not in (0, 1, 2):  # 2: the module cannot be imported
        return f"error: pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-300:]}"
    return "killed" if done.returncode else "survived"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose file has this in its name")
    parser.add_argument("--limit", type=int, default=len(MUTANTS), help="so many rows at most, spread over the table")
    asked = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if asked.only in mutant.file]
    chosen = chosen[:: max(1, -(-len(chosen) // max(1, asked.limit)))]
    counts: dict[str, int] = {}
    for mutant in chosen:
        found = run(mutant)
        counts[found.partition(":")[0]] = counts.get(found.partition(":")[0], 0) + 1
        print(f"{found:9} {mutant.file}: {mutant.line}  ->  {mutant.replacement}", flush=True)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())), f"of {len(chosen)}")
    return int(counts != {"killed": len(chosen)})


if __name__ == "__main__":
    sys.exit(main())
