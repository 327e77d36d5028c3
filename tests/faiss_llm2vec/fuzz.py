"""Fuzzes manifests and FAISS files of stores: each case opens, or ends in one of our errors, in under a second.

    python tests/faiss_llm2vec/fuzz.py --cases 2000

A case takes a sound store and replaces a part of its manifest, or bytes of a vector or index file; checksums and sizes
are made to agree, as a stranger would. Then the store is opened, searched, read, verified and written to. The tally
says how the cases ended; anything but an error from errors.py is a failure. A file beside the store must stay as it is.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faiss_llm2vec import FaissStore
from faiss_llm2vec.rows import checksum
from st_llm2vec.errors import LLM2VecError

DIMENSION = 16
ROWS = 4200  # enough for an index
SECONDS = 1.0  # what a run by hand holds each case to
HANGS = 30.0  # ... and the suite, which tells a hang from a busy machine


def edit_manifest(path, edit):
    """Replaces the manifest by `edit`, a text or a function that changes it in place; its checksum agrees."""
    connection = sqlite3.connect(path / "store.db", isolation_level=None)
    text = edit
    if callable(edit):
        manifest = json.loads(connection.execute("SELECT json FROM manifest").fetchone()[0])
        edit(manifest)
        text = json.dumps(manifest)
    connection.execute("UPDATE manifest SET json = ?, checksum = ?", (text, checksum(text)))
    connection.close()


def rewrite(path, file, content):
    """Replaces a file of a segment; its size and sha256 in the manifest agree."""
    file.write_bytes(content)

    def edit(manifest):
        for entry in manifest["segments"]:
            for part in ("vectors", "index"):
                if entry[part] and entry[part]["name"] == file.name:
                    entry[part].update(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    edit_manifest(path, edit)


def make(folder):
    """Sound stores, one by kind."""
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIMENSION)).astype("f4")
    for kind in ("flat", "sq8", "hnsw", "ivf", "rabitq", "binary"):
        rows = 20 if kind == "flat" else ROWS
        with FaissStore.create(folder / kind, None, kind=kind) as store:
            store.add(["x"] * rows, metadata=[{"n": i % 7} for i in range(rows)], vectors=vectors[:rows])
    return sorted(folder.iterdir())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["../x", "/etc/x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def cases(draw):
    where = draw(st.sampled_from(["manifest", "vectors", "index"]))
    if where == "manifest":
        return where, draw(st.lists(st.integers(0, 30), min_size=1, max_size=4)), draw(json_values)
    bytes_ = draw(st.binary(min_size=1, max_size=12) | st.sampled_from([b"ilod", b"IwFl", b"IHNf", b"\xff" * 8]))
    return where, draw(st.integers(0, 400) | st.integers(0, 10**6)), bytes_


def apply(path, case):
    where, place, value = case
    if where == "manifest":

        def edit(manifest):
            part = manifest
            for step in place:
                keys = sorted(part) if isinstance(part, dict) else list(range(len(part)))
                if not keys:
                    return
                key = keys[step % len(keys)]
                if not isinstance(part[key], (dict, list)) or step == place[-1]:
                    part[key] = value
                    return
                part = part[key]

        edit_manifest(path, edit)
        return
    files = [file for file in sorted((path / "segments").iterdir()) if (".index." in file.name) == (where == "index")]
    if files:
        content = bytearray(files[0].read_bytes())
        start = place % len(content)
        content[start : start + len(value)] = value
        rewrite(path, files[0], bytes(content[: max(len(content), start)]))


def use(path, mmap):
    with FaissStore.open(path, mmap=mmap) as store:
        store.search(np.ones(DIMENSION), k=5)
        store.search(np.ones(DIMENSION), k=5, where={"n": 3})
        store.get(where={"n": 1})
        store.verify()
        store.add(["y"], vectors=np.ones((1, DIMENSION)))


def fuzz(folder, *, cases: int, seconds: float, derandomize: bool):
    """Runs so many cases and returns (outcome, class of the error) -> times."""
    (folder / "sound").mkdir()
    sound, target, beside = make(folder / "sound"), folder / "target", folder / "beside.txt"
    beside.write_text("mine")
    tally = collections.Counter()

    @settings(
        max_examples=cases, derandomize=derandomize, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(globals()["cases"](), st.integers(0, len(sound) - 1), st.booleans())
    def run(case, kind, mmap):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(sound[kind], target)
        apply(target, case)
        started = time.perf_counter()
        try:
            use(target, mmap)
            outcome = "opened", type(None)
        except LLM2VecError as error:
            outcome = f"{case[0]}: {type(error).__name__}", type(error)
        assert time.perf_counter() - started < seconds * (1 if outcome[0] != "opened" else 10), (case, outcome)
        assert beside.read_text() == "mine"
        tally[outcome] += 1

    run()
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = fuzz(Path(folder), cases=arguments.cases, seconds=SECONDS, derandomize=False)
    print(f"{sum(tally.values())} cases: none raised anything but our errors, none took over {SECONDS} s")
    for (outcome, _), times in sorted(tally.items(), key=str):
        print(f"{times:6d}  {outcome}")


if __name__ == "__main__":
    main()
