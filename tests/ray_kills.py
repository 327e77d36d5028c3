"""Kills actors and the driver of `st-llm2vec encode --engine ray`, runs it again, and compares with an undisturbed run.

    pip install -c constraints.txt "st-llm2vec[ray]"
    python tests/ray_kills.py                    # 10 kills of actors, 5 of the driver; some minutes
    python tests/ray_kills.py --actors 2 --drivers 1

Kills come when up to five more shards are there. An actor that is killed is started again by Ray, and its shard given
to it again, once: where two die over the same shard, the command ends with an error, and going on counts as a run. A
driver that is killed takes its cluster along; the next run goes on with the shards that are there. In the end
the folder must hold the files of the undisturbed run, byte for byte, each text once.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet

WORDS = Path(__file__).read_text(encoding="utf-8").split()
COMMAND = [sys.executable, "-m", "st_llm2vec", "--quiet", "encode"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
ENVIRONMENT.pop("RAY_ADDRESS", None)


def files(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("[!.]*"))}


def shards(folder):
    return len(list(folder.glob("0*.parquet")))


def actors(driver):
    """Process ids of the actors that work for a driver."""
    found, parents = [], {driver}
    for status in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            parent = int((status / "stat").read_text().rpartition(")")[2].split()[1])
            words = (status / "cmdline").read_bytes().decode(errors="replace")
        except (OSError, IndexError):
            continue
        if parent in parents:
            parents.add(int(status.name))
            if words.startswith("ray::_Actor"):
                found.append(int(status.name))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=10, help="kills of actors")
    parser.add_argument("--drivers", type=int, default=5, help="kills of the driver")
    parser.add_argument("--texts", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, tally = random.Random(arguments.seed), collections.Counter()
    left = {"actor": arguments.actors, "driver": arguments.drivers}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with (folder / "corpus.jsonl").open("w") as file:
            for i in range(arguments.texts):
                words = " ".join(rng.choices(WORDS, k=40))
                file.write(json.dumps({"text": f"{i}: {words}"}) + "\n")
        ray = ["--engine", "ray", "--workers", str(arguments.workers)]
        line = ["--shard-size", "100", "--device", "cpu"]
        subprocess.run([*COMMAND, folder / "corpus.jsonl", folder / "calm", *line], check=True, env=ENVIRONMENT)
        while any(left.values()):
            out = folder / f"killed-{tally['folders']}"
            tally["folders"] += 1
            ended = None
            while ended != 0:
                driver = subprocess.Popen([*COMMAND, folder / "corpus.jsonl", out, *line, *ray], env=ENVIRONMENT)
                tally["runs"] += 1
                goal = shards(out) + rng.randint(0, 5)
                while driver.poll() is None:
                    time.sleep(0.05)
                    found = actors(driver.pid)
                    kind = rng.choice([kind for kind, count in left.items() if count] or [""])
                    if not found or not kind or shards(out) < goal:
                        continue
                    os.kill(driver.pid if kind == "driver" else rng.choice(found), signal.SIGKILL)
                    left[kind] -= 1
                    tally[f"{kind}s killed"] += 1
                    print(f"killed: {kind}; {shards(out)} shards are there", flush=True)
                    goal = shards(out) + rng.randint(1, 5)
                ended = driver.returncode
                tally[{0: "runs that came to their end", -9: "runs whose driver was killed"}.get(ended, "errors")] += 1
            assert files(out) == files(folder / "calm"), "the files differ"
            ids = [id for path in out.glob("*.parquet") for id in pyarrow.parquet.read_table(path)["id"].to_pylist()]
            assert len(ids) == len(set(ids)) == arguments.texts
            print(f"the same files, {len(ids)} texts, each once", flush=True)
    print(", ".join(f"{name}: {count}" for name, count in tally.items()))


if __name__ == "__main__":
    main()
