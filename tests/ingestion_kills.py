"""Kills `st-llm2vec encode` and `index` with SIGKILL at random moments, runs them again, and compares with calm runs.

    python tests/ingestion_kills.py                               # 100 kills of each, 200,000 texts, llm2vec-tiny
    python tests/ingestion_kills.py --kills 10 --texts 2000       # some minutes
    python tests/ingestion_kills.py --only index --kills 5

A killed command is run again, to be killed again, until it comes to its end by itself; then all begins anew. Kills come
at random while the inputs are read or, as often, in as much of the encoding as spreads the kills over a whole run.
`encode` must leave the same files, byte for byte; `index` a store of the same documents with the same vectors, found
sound by `verify`.

Printed are also what it costs that work is kept, as the processor's seconds of a run with many shards or commits
against one with a single one; and the memory of a calm run at each quarter of its time, in MB.

Children are forks of this process, which has imported everything and computed nothing: what is killed is the work.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet  # noqa: F401  (so that no fork has to)
import semantic_text_splitter  # noqa: F401
import yaml  # noqa: F401

import st_llm2vec.corpus
import st_llm2vec.embedding
import st_llm2vec.model  # noqa: F401
from faiss_llm2vec import FaissStore
from st_llm2vec.cli import main as main_of

WORDS = sorted(set(re.findall(r"\b[a-z]{2,9}\b", Path(__file__).read_text(encoding="utf-8"))))


def write_corpus(folder, texts, seed):
    """A folder of .jsonl, .csv and .md files with texts of three to eight words, eleven tokens of llm2vec-tiny."""
    rng = random.Random(seed)
    folder.mkdir()

    def text(i):
        return f"{i}: " + " ".join(rng.choices(WORDS, k=rng.randint(3, 8)))

    third = texts * 19 // 40  # one .md of the rest: splitting a long one is half of the reading
    with (folder / "a.jsonl").open("w", encoding="utf-8") as file:
        for i in range(third):
            file.write(json.dumps({"text": text(i), "year": 1900 + i % 100}) + "\n")
    with (folder / "b.csv").open("w", encoding="utf-8") as file:
        file.write("text,year\n")
        for i in range(third):
            file.write(f'"{text(i)}",{1900 + i % 100}\n')
    with (folder / "c.md").open("w", encoding="utf-8") as file:
        for i in range(texts - 2 * third):
            file.write(f"{'# Part' if i % 20 == 0 else ''} {text(i)}\n\n")


class Ran(NamedTuple):
    """Whether a child came to its end, its seconds and the processor's, and its memory ten times a second, in MB."""

    ended: bool
    seconds: float
    cpu: float
    memory: list


def child(act, kill_after=None):
    """Run a function in a fork, which has imported everything already, and perhaps kill it.

    Returns:
        What became of it.
    """
    started = time.monotonic()
    memory = []
    with tempfile.TemporaryFile("w+") as said:
        if (pid := os.fork()) == 0:
            code = 1
            try:
                os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
                code = act() or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
        ended = 0
        while not ended:
            ended, status, used = os.wait4(pid, os.WNOHANG)
            if not ended:
                if kill_after is not None and time.monotonic() - started > kill_after:
                    os.kill(pid, signal.SIGKILL)
                if time.monotonic() - started > len(memory) / 10:
                    memory.append(resident(pid))
                time.sleep(0.005)
        said.seek(0)
        words = said.read()
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"exit code {code}\n{words}"
    return Ran(code == 0, time.monotonic() - started, used.ru_utime + used.ru_stime, memory)


def resident(pid):
    """The memory of a process in MB, without the files that are mapped into it."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(lines["RssAnon"].split()[0]) / 1024
    except (OSError, KeyError):  # ended, or no Linux
        return 0.0


def run(command, kill_after=None):
    return child(lambda: main_of(["--quiet", *map(str, command)]), kill_after)


def files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def documents(path):
    """Everything that a store holds, and that it is sound."""
    with FaissStore.open(path) as store:
        assert not (problems := store.verify()), problems
        records = store.get(where={}, with_vectors=True)
        return [(r.id, r.text, r.metadata) for r in records], np.stack([r.vector for r in records])


def same_files(found, calm):
    assert files(found) == files(calm), sorted(files(found).items() ^ files(calm).items())


def same_documents(found, calm):
    (rows, vectors), (calm_rows, calm_vectors) = documents(found), documents(calm)
    assert rows == calm_rows, f"{len(rows)} documents, and {len(calm_rows)} in the calm store"
    np.testing.assert_array_equal(vectors, calm_vectors)


COMMANDS = {"encode": ("--shard-size", same_files), "index": ("--commit-every", same_documents)}


def kills(name, arguments, folder):
    """Kill one command so often as is asked for."""
    (size, compare), rng, tally = COMMANDS[name], random.Random(arguments.seed), collections.Counter()
    corpus, calm, target = folder / "corpus", folder / f"{name}-calm", folder / f"{name}-killed"
    if not corpus.exists():
        write_corpus(corpus, arguments.texts, arguments.seed)

    def line(target):
        return [name, corpus, target, size, arguments.batch, "--device", "cpu"]

    first, again = run(line(calm)), run(line(calm))
    quarters = [f"{first.memory[len(first.memory) * i // 4]:.0f}" for i in (1, 2, 3)]
    print(
        f"{name}: undisturbed {first.seconds:.0f} s ({first.cpu:.0f} of the processor), once more, with nothing to do, "
        f"{again.seconds:.0f} s; memory at each quarter {', '.join(quarters)}, at most {max(first.memory):.0f} MB",
        flush=True,
    )
    whole = run([name, corpus, target, size, arguments.texts + 1, "--device", "cpu"])
    shutil.rmtree(target)
    print(
        f"{name}: in one piece {whole.cpu:.0f} s of the processor, so keeping what is done costs "
        f"{100 * (first.cpu / whole.cpu - 1):+.1f} %",
        flush=True,
    )
    # A run reads for so long, and then has `left` to do, which the kills cut into as many parts.
    reads, left = again.seconds, max(first.seconds - again.seconds, 0.1)
    done, peak, started = 0, 0.0, time.monotonic()
    while done < arguments.kills:
        shutil.rmtree(target, ignore_errors=True)
        ended, n = False, 0
        while not ended:
            part = rng.uniform(0, reads) if rng.random() < 0.3 else reads + rng.uniform(0, 4 * left / arguments.kills)
            ran = run(line(target), part if done < arguments.kills else None)
            ended, peak = ran.ended, max(peak, *ran.memory, 0)
            done, n = done + (not ended), n + (not ended)
        child(lambda: compare(target, calm))
        tally[n] += 1
        print(f"{name}: the same after {n} kills, {time.monotonic() - started:.0f} s in all", flush=True)
    print(
        f"{name}: {done} kills in {sum(tally.values())} runs, every result the same; at most {peak:.0f} MB", flush=True
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each command")
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=2048, help="texts of a shard or commit")
    parser.add_argument("--only", choices=COMMANDS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in [arguments.only] if arguments.only else COMMANDS:
            kills(name, arguments, Path(folder))


if __name__ == "__main__":
    main()
