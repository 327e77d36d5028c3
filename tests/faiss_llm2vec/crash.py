"""Kills a writer with SIGKILL again and again, tears its last writes, and checks that a store is what it acknowledged.

    python tests/faiss_llm2vec/crash.py                             # 200 kills, 20,000 documents, some minutes
    python tests/faiss_llm2vec/crash.py --kills 5 --docs 500
    python tests/faiss_llm2vec/crash.py --events 300 --docs 1000    # kills, forks, swapped folders, foreign readers

The writer (this file, as a child process) adds, upserts, deletes and compacts at random. It prints each change before
it starts and again once the store acknowledged it. After each kill the store must open, `verify` clean, and hold
exactly the acknowledged changes, with or without the whole of the one that was under way; texts, metadata and vectors
are compared.

With --events, each event is one of four, one of each and then at random:

    kill     as above
    fork     a writer forks; parent and child change the store at once, and in half the cases the child is killed
    swap     the folder is replaced by a copy under an open writer, which must not change either from then on
    reader   a reader (of a user who may not write, if this runs as root) must see what it opened while a writer works

A kill leaves what the system has in its cache, and a power cut does not. So the files that the last change wrote are
cut at every block boundary as well, and left out, in the orders that flushing allows; the store must then be as it was
before the change or after it.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from faiss_llm2vec import FaissStore
from st_llm2vec.errors import StoreError

DIMENSION = 64
KINDS = ("flat", "sq8")  # by seed


def vector(id, version):
    return np.random.default_rng([int(id), version]).standard_normal(DIMENSION).astype("f4")


def apply(state, change):
    """The state (id -> version) after a change."""
    kind, versions = change
    if kind == "delete":
        return {id: version for id, version in state.items() if id not in versions}
    return {**state, **versions}


def put(store, kind, versions):
    ids = list(versions)
    getattr(store, kind)(
        [f"document {id} version {versions[id]} {'lorem ' * 20}" for id in ids],
        ids=ids,
        metadata=[{"version": versions[id], "even": int(id) % 2 == 0} for id in ids],
        vectors=np.stack([vector(id, versions[id]) for id in ids]),
    )


def write(path, seed, state):
    """The child: changes the store until it is killed."""
    rng, version, docs = random.Random(seed), seed * 1000, len(state)
    with FaissStore.open(path) as store:
        if seed % 2:
            store.search("lorem", mode="bm25")  # makes the word index, which all changes keep up from then on
        while True:
            version += 1
            kind = rng.choices(["add", "upsert", "delete", "compact"], [3, 3, 3, 1])[0]
            known, size = sorted(state), rng.randint(1, max(2, docs // 40))
            if kind == "add":
                first = max(map(int, state)) + 1
                ids = [str(first + i) for i in range(size)]
            else:
                ids = [] if kind == "compact" else rng.sample(known, size)
            change = (kind, dict.fromkeys(ids, version))
            print(json.dumps(["begin", change]), flush=True)
            if kind == "compact":
                store.compact()
            elif kind == "delete":
                assert store.delete(ids) == len(ids)
            else:
                put(store, *change)
            print(json.dumps(["done", change]), flush=True)
            state = apply(state, change)


def check(path, acknowledged, pending, rng):
    """Returns the state that the store is in, which must be one of the two that are allowed."""
    with FaissStore.open(path) as store:
        problems = store.verify()
        assert not problems, problems
        records = store.get(where={})
        found = {record.id: record.metadata["version"] for record in records}
        allowed = [acknowledged] if pending is None else [acknowledged, apply(acknowledged, pending)]
        assert found in allowed, f"{len(found)} documents, neither {[len(state) for state in allowed]}; {pending}"
        for record in records:
            assert record.text.startswith(f"document {record.id} version {record.metadata['version']} ")
        if store.stats()["word_index"]:
            assert {hit.id for hit in store.search("version", mode="bm25", k=len(found) + 1)} == found.keys()
        assert store.count({"even": True}) == sum(int(id) % 2 == 0 for id in found)
        sample = rng.sample(sorted(found), min(30, len(found)))
        hits = store.search_batch(np.stack([vector(id, found[id]) for id in sample]), k=1)
        assert [hit.id for (hit,) in hits] == sample
        assert min(hit.score for (hit,) in hits) > 0.999
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--events", type=int, help="so many events of all kinds, instead of --kills")
    parser.add_argument("--docs", type=int, default=20_000)
    parser.add_argument("--path", type=Path, help="where the store goes; a temporary folder by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write is not None:
        write(arguments.path, arguments.write, json.loads(sys.stdin.readline()))
    with tempfile.TemporaryDirectory() as folder:
        run(arguments.path or Path(folder) / "store", arguments)


# -- torn writes -------------------------------------------------------------------------------------------------------

BLOCK = 4096
LOG = Path("store.db-wal")


def read_all(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def torn_copies(before, after):
    """Yields (name of the torn file, files): each file that a change wrote, cut at every block boundary or missing.

    Args:
        before, after: the files of a store (name -> bytes) before and after the change.
    """
    for name in sorted(name for name in after if after[name] != before.get(name)):
        # The log is written after the new segment is flushed: a torn segment means that the log has nothing new.
        files = before | after | ({} if name == LOG else {LOG: before[LOG]})
        if name not in before:
            yield name, {other: data for other, data in files.items() if other != name}
        start = shared(before[name], after[name]) if name in before else 0
        blocks = range(start - start % BLOCK, len(after[name]), BLOCK)
        for size in sorted({start, *blocks, len(after[name]) - 1}):
            if size >= start:
                yield name, files | {name: after[name][:size]}


def shared(old, new):
    """How many leading bytes are the same: an append starts there."""
    same = np.frombuffer(old[: len(new)], "u1") == np.frombuffer(new[: len(old)], "u1")
    return int(np.argmin(np.append(same, False)))


def write_all(folder, files):
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def tear(folder):
    """Tears the last write of one change of each sort; returns a tally."""
    tally, live = collections.Counter(), folder / "live"

    def content(path):
        with FaissStore.open(path) as store:
            problems = store.verify()
            assert not problems, problems
            return {record.id: (record.text, record.metadata) for record in store.get(where={})}

    with FaissStore.create(live, None) as store:
        for first in range(0, 60, 20):
            put(store, "add", dict.fromkeys(map(str, range(first, first + 20)), 0))
        changes = {
            "words": lambda: store.search("lorem", mode="bm25"),  # makes the word index
            "add": lambda: put(store, "add", dict.fromkeys(map(str, range(60, 100)), 1)),
            "upsert": lambda: put(store, "upsert", dict.fromkeys(map(str, range(0, 60, 2)), 2)),
            "delete": lambda: store.delete([str(i) for i in range(1, 60, 4)]),
            "compact": store.compact,
        }
        for kind, change in changes.items():
            before, files_before = content(live), read_all(live)
            change()
            after, files_after = content(live), read_all(live)
            for name, files in torn_copies(files_before, files_after):
                write_all(folder / "torn", files)
                found = content(folder / "torn")
                assert found in (before, after), f"{kind}: {name} torn"
                tally[f"{kind}, kept whole" if found == after else f"{kind}, dropped whole"] += 1
    return tally


# -- events ------------------------------------------------------------------------------------------------------------


class Stores:
    """The store under test, and what it acknowledged."""

    def __init__(self, path, docs, seed):
        self.path, self.rng = path, random.Random(seed)
        self.state, self.changes, self.version = {str(i): 0 for i in range(docs)}, 0, 10**6

    def change(self, store, among=lambda id: True):
        """One random change, acknowledged when this returns it."""
        self.version += 1
        known = sorted(id for id in self.state if among(int(id)))
        kind = self.rng.choice(["add", "upsert", "delete"] if len(known) > 20 else ["add"])
        if kind == "add":
            first = max(map(int, self.state), default=0) + 1
            ids = [str(id) for id in range(first, first + 10) if among(id)]
        else:
            ids = self.rng.sample(known, 5)
        change = kind, dict.fromkeys(ids, self.version)
        self.begun(change)
        if kind == "delete":
            assert store.delete(ids) == len(ids)
        else:
            put(store, *change)
        self.done(change)

    def begun(self, change):
        pass

    def done(self, change):
        self.state, self.changes = apply(self.state, change), self.changes + 1

    def checked(self, pending=None):
        found = check(self.path, self.state, pending, self.rng)
        kept = found != self.state
        self.state = found
        return kept

    def kill(self):
        command = [sys.executable, __file__, "--path", str(self.path), "--write", str(self.version // 1000)]
        self.version += 10**5
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
            writer.stdin.write(json.dumps(self.state) + "\n")
            writer.stdin.flush()
            first = writer.stdout.readline()  # it is at work; now let it work a little
            time.sleep(self.rng.uniform(0, 0.4))
            writer.send_signal(signal.SIGKILL)
            lines = [first, *writer.stdout]
        pending = self.told(lines)
        kept = self.checked(pending)
        outcome = "between changes" if pending is None else f"during {pending[0]}"
        if pending is not None and pending[0] != "compact":
            outcome += ", kept whole" if kept else ", dropped whole"
        return outcome

    def told(self, lines):
        """Takes down what a child acknowledged, and returns what it was about to do."""
        pending = None
        for line in lines:
            if line.endswith("\n"):
                word, change = json.loads(line)
                pending = change if word == "begin" else None
                if word == "done":
                    self.done(change)
        return pending

    def fork(self):
        killed = self.rng.random() < 0.5
        with FaissStore.open(self.path) as store:
            self.change(store)
            child, read = forked(lambda told: self.in_child(store, told))
            for _ in range(self.rng.randint(1, 5)):
                self.change(store, lambda id: id % 2 == 0)
            if killed:
                os.kill(child, signal.SIGKILL)
            with os.fdopen(read) as stream:
                pending = self.told(list(stream))
            status = os.waitpid(child, 0)[1]
            assert killed or status == 0, status
            self.change(store, lambda id: id % 2 == 0)  # begins on what the child left
        kept = self.checked(pending)
        return f"child {'killed' if killed else 'ended'}{', its last change kept' if kept else ''}"

    def in_child(self, store, told):
        def tell(word):
            return lambda change: print(json.dumps([word, change]), file=told, flush=True)

        self.begun = tell("begin")
        after = Stores.done
        self.done = lambda change: (tell("done")(change), after(self, change))
        for _ in range(self.rng.randint(1, 5)):
            self.change(store, lambda id: id % 2 == 1)

    def swap(self):
        away = self.path.with_name("away")
        shutil.rmtree(away, ignore_errors=True)
        with FaissStore.open(self.path) as old:
            self.change(old)
            self.path.rename(away)
            shutil.copytree(away, self.path)
            removed = self.rng.random() < 0.5
            if removed:
                shutil.rmtree(away)
            with FaissStore.open(self.path) as new:
                self.change(new)
                refused(old, self.rng)
                self.change(new)
            refused(old, self.rng)
        if not removed:
            with FaissStore.open(away) as store:
                assert store.verify() == []
        self.checked()
        return "old folder removed" if removed else "old folder kept"

    def reader(self):
        foreign, mmap, open_first = os.geteuid() == 0, self.rng.random() < 0.5, self.rng.random() < 0.5
        writer = FaissStore.open(self.path)
        if open_first:
            self.change(writer)
        asked, ask = os.pipe()

        def read(told):
            if foreign:
                os.setgid(65534)
                os.setuid(65534)
            with FaissStore.open(self.path, mmap=mmap) as store:
                before = seen(store)
                print("opened", file=told, flush=True)
                os.read(asked, 1)
                print(before == seen(store), before == self.state, file=told, flush=True)
                if open_first:  # with a writer there, a reader who may not write can follow
                    store.refresh()
                print(len(store), file=told, flush=True)

        child, answers = forked(read)
        with os.fdopen(answers) as stream:
            assert stream.readline() == "opened\n"
            with writer:
                for _ in range(self.rng.randint(1, 4)):
                    self.change(writer)
                writer.compact()
            os.write(ask, b"x")
            assert stream.readline() == "True True\n", "a reader saw something else than it opened"
            stream.read()
        os.close(asked), os.close(ask)
        assert os.waitpid(child, 0)[1] == 0
        self.checked()
        return f"{'another user' if foreign else 'the same user'}, {'mmap' if mmap else 'read'}"


def seen(store):
    return {record.id: record.metadata["version"] for record in store.get(where={})}


def refused(store, rng):
    change = rng.choice([lambda: put(store, "upsert", {"1": 7}), lambda: store.delete(where={}), store.compact])
    try:
        change()
    except StoreError as error:
        assert "was replaced" in str(error)  # noqa: PT017
    else:
        raise AssertionError("a writer changed a folder that is not the one it opened")


def forked(run):
    """Runs `run(stream)` in a forked process; returns its id and the descriptor to read from."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            with os.fdopen(write, "w") as told:
                run(told)
            status = 0
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    os.close(write)
    return child, read


EVENTS = {"kill": 3, "fork": 2, "swap": 2, "reader": 2}  # and their weights


# -- the driver --------------------------------------------------------------------------------------------------------


def run(path, arguments):
    faiss.omp_set_num_threads(1)  # OpenMP's threads are not there in a forked process
    path.parent.chmod(0o755)
    stores = Stores(path, arguments.docs, arguments.seed)
    with FaissStore.create(path, None, kind=KINDS[arguments.seed % 2]) as store:
        put(store, "add", stores.state)
    tally, total = collections.Counter(), arguments.events or arguments.kills
    for number in range(1, total + 1):
        # The first four are one of each; what a kill interrupts shifts what is drawn after it.
        drawn = [*EVENTS][number - 1] if number <= len(EVENTS) else stores.rng.choices([*EVENTS], [*EVENTS.values()])[0]
        event = drawn if arguments.events else "kill"
        tally[event, getattr(stores, event)()] += 1
        if number % 20 == 0:
            print(f"{number} events", file=sys.stderr, flush=True)
    print(
        f"{total} {'events' if arguments.events else 'kills'}, {stores.changes} acknowledged changes, "
        f"{len(stores.state)} documents at the end: all there, nothing half there, verify clean"
    )
    for (event, outcome), times in sorted(tally.items()):
        print(f"{times:6d}  {event}: {outcome}")
    if arguments.events:
        return
    with tempfile.TemporaryDirectory() as folder:
        torn = tear(Path(folder))
    print(f"{sum(torn.values())} torn or missing last writes: each store opened, verify clean, as before or after")
    for outcome, times in sorted(torn.items()):
        print(f"{times:6d}  torn {outcome}")


if __name__ == "__main__":
    main()
