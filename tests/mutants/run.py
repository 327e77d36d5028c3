"""Breaks one line at a time, runs the tests that should notice, and prints which lines nobody guards: `make mutants`.

    python tests/mutants/run.py              every row of table.py and table_more.py
    python tests/mutants/run.py --only merging --limit 10

One copy of the tree serves every row: the line is broken, the row's tests run in a fork (so that the libraries are
imported once), the file is put back. The tests of a row must pass on the unbroken copy, or its kill would mean nothing.
A row whose text is gone, or stands more than once, is an error: fix the table.

The last lines say how many were killed, survived or are equivalent, and which survived. The exit code is 0 where every
row was killed or is equivalent (the table says why no test can notice it), else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from table import MUTANTS, Mutant

with contextlib.suppress(ModuleNotFoundError):
    MUTANTS += importlib.import_module("table_more").MUTANTS

ROOT = Path(__file__).parent.parent.parent
COPIED = ("st_llm2vec", "integrations", "tests", "examples", "docs", "recipes")
PRELOADED = ("pytest", "sentence_transformers", "peft", "faiss", "langchain_core.documents", "llama_index.core")
IMPORTED = "ignore::pytest.PytestAssertRewriteWarning"  # anyio has a plugin, and is preloaded
SECONDS = 180  # a mutant that loops is noticed, too
BYTES = 8 << 30  # ... and one that fills the memory, before the system ends another process for it
PASSED, FAILED = 0, 1  # as pytest ends; every other code is no verdict (2: a module cannot be imported, 5: no test)


def mutate(source: str, mutant: Mutant) -> str | None:
    """Put the replacement in the place of the line (or of a part of the text); None where it is not there once."""
    lines = source.split("\n")
    found = [i for i, line in enumerate(lines) if line.strip() == mutant.line]
    if len(found) == 1:
        lines[found[0]] = lines[found[0]].replace(mutant.line, mutant.replacement)
        return "\n".join(lines)
    return source.replace(mutant.line, mutant.replacement) if source.count(mutant.line) == 1 else None


def run_tests(tests: str, output: Path) -> int:
    """Run pytest in a fork, with a session of its own so that a hanging one ends with all it started."""
    output.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
        log = os.open(output, os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 3
        try:
            import pytest  # imported before the fork, see PRELOADED

            code = int(pytest.main(["-x", "-p", "no:cacheprovider", "-W", IMPORTED, *shlex.split(tests)]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return FAILED


def _end(output: Path) -> str:
    return output.read_text(encoding="utf-8", errors="replace")[-1000:]


def verdict(mutant: Mutant, tree: Path, unbroken: dict[str, int]) -> str:
    """ "killed", "survived", "equivalent", or what is wrong with the row."""
    path, output = tree / mutant.file, tree / "output.txt"
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    broken = mutate(source, mutant)
    if broken is None:
        return "stale: this text is not there once"
    if mutant.tests not in unbroken:
        unbroken[mutant.tests] = run_tests(mutant.tests, output)
    if unbroken[mutant.tests] != PASSED:
        return f"error: the unbroken tree fails, too: {mutant.tests}\n{_end(output)}"
    path.write_text(broken, encoding="utf-8")
    try:
        code = run_tests(mutant.tests, output)
    finally:
        path.write_text(source, encoding="utf-8")
    if code not in (PASSED, FAILED) and code >= 0:  # less: a signal ended it, which the unbroken tree has not met
        return f"error: pytest ended with {code}\n{_end(output)}"
    if mutant.equivalent:
        return "equivalent" if code == PASSED else f"error: killed, though {mutant.equivalent}"
    return "survived" if code == PASSED else "killed"


def summary(found: dict[Mutant, str]) -> str:
    """What the rows came to, and those that a test is missing for."""
    counts = Counter(what.partition(":")[0] for what in found.values())
    decided = counts["killed"] + counts["survived"]
    share = f"{counts['killed'] / decided:.1%} of those that a test can notice" if decided else "nothing decided"
    tally = ", ".join(f"{counts.pop(what, 0)} {what}" for what in ("killed", "survived", "equivalent"))
    others = "".join(f", {count} {what}" for what, count in sorted(counts.items()))
    lines = [f"{tally}{others} of {len(found)} rows: {share} are killed."]
    for mutant, what in found.items():
        if what not in ("killed", "equivalent"):
            lines.append(f"  {what.partition(':')[0]}: {mutant.file}: {mutant.line!r} -> {mutant.replacement!r}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose file has this in its name")
    parser.add_argument("--limit", type=int, default=len(MUTANTS), help="so many rows at most, spread over the table")
    asked = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if asked.only in mutant.file]
    chosen = chosen[:: max(1, -(-len(chosen) // max(1, asked.limit)))]
    found: dict[Mutant, str] = {}
    unbroken: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        for name in COPIED:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        os.chdir(tree)
        paths = [str(tree), str(tree / "integrations")]
        os.environ.update(PYTHONPATH=":".join(paths), PYTHONDONTWRITEBYTECODE="1", TOKENIZERS_PARALLELISM="false")
        os.environ["HF_HUB_OFFLINE"] = "1"
        sys.dont_write_bytecode = True
        sys.path[:] = paths + [path for path in sys.path if Path(path) not in (ROOT, ROOT / "integrations")]
        for library in PRELOADED:
            importlib.import_module(library)
        for mutant in chosen:
            start = time.monotonic()
            found[mutant] = verdict(mutant, tree, unbroken)
            took = f"{time.monotonic() - start:.0f} s"
            row = f"{mutant.file}: {mutant.line!r}  ->  {mutant.replacement!r}"
            print(f"{found[mutant]:10} {took:5} {row}", flush=True)
        os.chdir(ROOT)
    print(summary(found))
    return int(not set(found.values()) <= {"killed", "equivalent"})


if __name__ == "__main__":
    sys.exit(main())
