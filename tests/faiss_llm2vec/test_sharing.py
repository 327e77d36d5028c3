"""A store among others: forks, folders that are swapped, readers of other users, volumes, foreign files, odd names."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from crash import forked, put, seen

from faiss_llm2vec import FaissStore, connections
from faiss_llm2vec.lock import Lock
from st_llm2vec.errors import (
    InvalidInputError,
    StoreError,
    StoreExistsError,
    StoreLockedError,
    StoreMismatchError,
    StoreNotFoundError,
)

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def bare(tmp_path):
    with FaissStore.create(tmp_path / "bare", None) as store:
        put(store, "add", dict.fromkeys(map(str, range(40)), 0))
        yield store


def whole(path):
    with FaissStore.open(path) as store:
        assert store.verify() == []
        return seen(store)


def in_child(run):
    """What `run()` returned in a forked process, as text."""
    child, read = forked(lambda told: print(run(), end="", file=told))
    with os.fdopen(read) as stream:
        answer = stream.read()
    assert os.waitpid(child, 0)[1] == 0
    return answer


def vectors(*rows):
    return np.eye(64, dtype="f4")[list(rows)]


# -- swapped folders ---------------------------------------------------------------------------------------------------

CHANGES = {
    "add": lambda store: store.add(["x"], ids=["x"], vectors=vectors(0)),
    "upsert": lambda store: store.upsert(["x"], ids=["1"], vectors=vectors(0)),
    "delete": lambda store: store.delete(where={}),
    "compact": lambda store: store.compact(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["renamed", "removed", "database alone", "lock alone", "gone"])
def test_a_writer_does_not_touch_a_folder_that_took_the_place_of_its_own(bare, tmp_path, change, how):
    bare.delete(["0"])
    path = bare.path
    shutil.copytree(path, tmp_path / "other")
    if how in ("renamed", "removed"):
        path.rename(tmp_path / "before") if how == "renamed" else shutil.rmtree(path)
        (tmp_path / "other").rename(path)
    elif how == "gone":
        shutil.rmtree(path)
    else:
        name = "store.db" if how.startswith("database") else "lock"
        os.replace(tmp_path / "other" / name, path / name)
    if how in ("renamed", "removed"):
        with FaissStore.open(path) as new:
            put(new, "upsert", {"1": 7})
        before = whole(path)
    with pytest.raises(StoreError, match=r"was replaced or removed.*Nothing was changed"):
        CHANGES[change](bare)
    if how in ("renamed", "removed"):
        assert whole(path) == before
        bare.refresh()  # goes on to the store that is there now
        assert seen(bare) == before
        put(bare, "upsert", {"2": 8})
        assert whole(path) == {**before, "2": 8}


def test_a_swap_in_the_middle_of_a_change_is_noticed_before_the_commit(bare, tmp_path, monkeypatch):
    from faiss_llm2vec import segments

    real = segments._write

    def swap(index, path):
        written = real(index, path)
        bare.path.rename(tmp_path / "before")
        shutil.copytree(tmp_path / "before", bare.path)
        return written

    monkeypatch.setattr(segments, "_write", swap)
    with pytest.raises(StoreError, match="was replaced or removed"):
        put(bare, "add", {"99": 1})
    assert "99" not in whole(bare.path)
    assert "99" not in whole(tmp_path / "before")


def test_segments_of_two_stores_never_have_the_same_name(tmp_path):
    names = set()
    for name in ("a", "b"):
        with FaissStore.create(tmp_path / name, None) as store:
            put(store, "add", {"1": 1})
        names |= {file.name for file in (tmp_path / name / "segments").iterdir()}
    assert len(names) == 2


# -- forks -------------------------------------------------------------------------------------------------------------


def test_parent_and_child_write_in_turns_and_lose_nothing(bare):
    assert in_child(lambda: bare.delete(["1"])) == "1"
    put(bare, "add", {"50": 5})
    assert in_child(lambda: put(bare, "upsert", {"50": 6})) == "None"
    assert bare.delete(["2"]) == 1
    expected = {**dict.fromkeys(map(str, range(40)), 0), "50": 6}
    del expected["1"], expected["2"]
    assert seen(bare) == whole(bare.path) == expected
    assert len(bare.search(vectors(0)[0], k=100)) == len(expected)


def test_a_child_that_ends_or_closes_leaves_the_lock_to_its_parent(bare):
    in_child(bare.close)
    with FaissStore.open(bare.path) as other, pytest.raises(StoreLockedError):
        other.delete(["1"])
    assert bare.delete(["1"]) == 1


def test_closing_frees_the_lock_although_a_child_lives(bare):
    read, write = os.pipe()
    child, answers = forked(lambda told: (os.read(read, 1), print(refusal(bare), file=told)))
    bare.close()
    with FaissStore.open(bare.path) as other:
        assert other.delete(["1"]) == 1
        os.write(write, b"x")
        with os.fdopen(answers) as stream:
            assert stream.read() == "StoreLockedError\n"
        os.waitpid(child, 0)


def refusal(store):
    try:
        store.delete(["2"])
    except StoreError as error:
        return type(error).__name__


@pytest.mark.parametrize("mmap", [False, True])
def test_a_forked_reader_reads_with_locks_of_its_own(bare, mmap):
    """SQLite's locks belong to a process: with its parent's, a child would read pages that a checkpoint overwrites."""
    bare.close()
    with FaissStore.open(bare.path, mmap=mmap) as reader:
        before, (asked, ask) = seen(reader), os.pipe()

        def read(told):
            print(seen(reader) == before, file=told, flush=True)
            reader.close = None
            os.read(asked, 1)
            print(seen(reader) == before, file=told, flush=True)

        child, answers = forked(read)
        with os.fdopen(answers) as stream:
            assert stream.readline() == "True\n"
            reader.close()
            with FaissStore.open(bare.path) as writer:
                for version in range(1, 40):
                    put(writer, "upsert", dict.fromkeys(before, version))
                writer.compact()
            os.write(ask, b"x")
            assert stream.readline() == "True\n"
        os.waitpid(child, 0)


def test_a_writer_with_threads_can_be_forked_at_any_moment(bare):
    import threading

    stop = threading.Event()

    def work():
        version = 100
        while not stop.is_set():
            version += 1
            put(bare, "upsert", {"3": version})

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for round in range(5):
            assert in_child(lambda round=round: put(bare, "upsert", {"4": round})) == "None"
    finally:
        stop.set()
        thread.join()
    assert whole(bare.path)["4"] == 4


# -- readers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("writer_first", [False, True])
def test_a_reader_without_write_permission_goes_on_seeing_what_it_opened(mmap, writer_first):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "s"
        with FaissStore.create(path, None) as store:
            put(store, "add", dict.fromkeys(map(str, range(400)), 0))
        asked, ask = os.pipe()
        writer = FaissStore.open(path)
        if writer_first:
            writer.delete(["none"])
        else:
            writer.close()

        def read(told):
            if ROOT:
                os.setgid(65534)
                os.setuid(65534)
            with FaissStore.open(path, mmap=mmap) as reader:
                before = seen(reader)
                print("opened", file=told, flush=True)
                os.read(asked, 1)
                same = before == seen(reader) and reader.count({"version": 0}) == 400
                reader.refresh()
                print(same, len(seen(reader)), refusal(reader) if ROOT else "StoreError", file=told)

        child, answers = forked(read)
        with os.fdopen(answers) as stream:
            assert stream.readline() == "opened\n"
            with writer if writer_first else FaissStore.open(path) as writer:
                for version in range(1, 6):
                    put(writer, "upsert", dict.fromkeys(map(str, range(300)), version))
                writer.delete(["7"])
                writer.compact()
            os.write(ask, b"x")
            assert stream.read() == "True 399 StoreError\n"
        assert os.waitpid(child, 0)[1] == 0


def test_refresh_goes_on_to_the_newest_state_and_the_log_stays_bounded(bare):
    log = bare.path / "store.db-wal"
    text = "x" * 400_000
    with FaissStore.open(bare.path) as reader:
        for number in range(150):
            bare.upsert([text], ids=["big"], vectors=vectors(0))
            if number % 10 == 9:
                assert reader.get(["big"]) == [] or number > 9
                reader.refresh()
                assert reader.get(["big"])[0].text == text
        assert log.stat().st_size < 36 * 2**20  # of 60 MB that were written
        bare.delete(["big"])
        assert len(reader) == 41
        reader.refresh()
        assert len(reader) == 40


def test_a_reader_that_is_used_lets_go_of_a_long_log(bare, monkeypatch):
    from faiss_llm2vec import contents

    monkeypatch.setattr(contents, "_LONG_LOG", 2**20)
    log, text = bare.path / "store.db-wal", "x" * 300_000
    with FaissStore.open(bare.path) as reader:
        for number in range(100):
            bare.upsert([text + str(number)], ids=["big"], vectors=vectors(0))
            assert len(seen(reader)) == 40
        assert log.stat().st_size < 34 * 2**20


def test_refresh_to_a_store_of_another_model_is_refused(store, tmp_path, make_encoder):
    store.add(["a"])
    store.path.rename(tmp_path / "before")
    FaissStore.create(store.path, make_encoder(fingerprint="fake-2")).close()
    with pytest.raises(StoreMismatchError, match="fake-2"):
        store.refresh()


# -- making and naming -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [[], ["lost+found/"], ["segments/"], ["lock"], [".store-" + "0" * 32 + ".db-wal"]])
@pytest.mark.parametrize("through_link", [False, True])
def test_create_in_a_folder_that_counts_as_empty(tmp_path, there, through_link):
    folder = tmp_path / "volume"
    folder.mkdir()
    for name in there:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    inode, path = folder.stat().st_ino, tmp_path / "link" if through_link else folder
    if through_link:
        path.symlink_to(folder)
    with FaissStore.create(path, None) as store:
        put(store, "add", {"1": 1})
    assert whole(folder) == {"1": 1}
    assert folder.stat().st_ino == inode  # the folder itself stays: it may be a mount
    assert not list(folder.glob(".store-*"))
    with pytest.raises(StoreExistsError):
        FaissStore.create(path, None)


@pytest.mark.skipif(not ROOT, reason="mounting needs root")
def test_create_in_a_mounted_volume(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with FaissStore.create(tmp_path, None) as store:
            put(store, "add", {"1": 1})
        assert whole(tmp_path) == {"1": 1}
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_failed_create_leaves_nothing_and_a_foreign_file_is_respected(tmp_path, monkeypatch):
    from faiss_llm2vec import database

    def full(*args):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(database, "_set_manifest", full)
        with pytest.raises(StoreError, match="cannot make a store"):
            FaissStore.create(tmp_path / "s", None)
    assert not (tmp_path / "s").exists()
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "notes.txt").write_text("mine")
    with pytest.raises(StoreExistsError):
        FaissStore.create(tmp_path / "t", None)
    assert [file.name for file in (tmp_path / "t").iterdir()] == ["notes.txt"]


def test_a_relative_path_outlives_a_change_of_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with FaissStore.create(".", None) as store:
        os.chdir(tmp_path / "b")
        put(store, "add", {"1": 1})
        assert store.verify() == []
        store.refresh()
    assert not list((tmp_path / "b").iterdir())
    assert whole(tmp_path / "a") == {"1": 1}


NAMES = ["a?mode=memory", "a#b", "100%", "%41", "a b", "'a\"", "-rf", "file:a", ":memory:", "a\nb", "é", "*[a]", "~",
         b"\xff\xfe"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_odd_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(name)
    with FaissStore.create(name, None, kind="sq8") as store:
        put(store, "add", dict.fromkeys(map(str, range(40)), 0))
    for mmap in (False, True):
        with FaissStore.open(name, mmap=mmap) as store:
            assert len(store.search(vectors(0)[0], k=100)) == 40 + int(mmap)
            put(store, "add", {f"5{int(mmap)}": 1})
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have(tmp_path, name):
    for do in (lambda: FaissStore.create(tmp_path / name, None), lambda: FaissStore.open(tmp_path / name)):
        with pytest.raises((InvalidInputError, StoreError)):
            do()


# -- foreign files, the lock -------------------------------------------------------------------------------------------


def test_what_others_put_into_a_store_is_left_alone(bare):
    bare.close()
    folder = bare.path / "segments"
    ours = folder / f"00000077-{'0' * 32}.faiss"
    kept = [folder / ".ipynb_checkpoints", folder / "00000078.faiss", folder / "notes.txt", bare.path / "README.md"]
    for path in kept:
        path.mkdir() if path.suffix in ("", ".faiss") else path.write_text("mine")
    ours.touch()
    with FaissStore.open(bare.path) as store:
        put(store, "add", {"99": 1})
        assert store.verify() == []
    assert all(path.exists() for path in kept)
    assert not ours.exists()


def test_a_store_without_its_empty_folder_is_still_one(tmp_path):
    """As git leaves it, which keeps no empty folders."""
    FaissStore.create(tmp_path / "s", None).close()
    (tmp_path / "s" / "segments").rmdir()
    with FaissStore.open(tmp_path / "s") as store:
        put(store, "add", {"1": 1})
    assert whole(tmp_path / "s") == {"1": 1}


def test_a_first_call_that_fails_gives_the_lock_back(store, encoder, make_encoder, monkeypatch):
    store.add(["a"], ids=["a"])
    store.close()
    with FaissStore.open(store.path, encoder) as first, FaissStore.open(store.path, encoder) as second:
        with pytest.raises(InvalidInputError):
            first.add(["again"], ids=["a"])
        with monkeypatch.context() as patch:
            patch.setattr(encoder, "encode_document", lambda *a, **k: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                first.add(["b"], ids=["b"])
        assert not first.stats()["writer"]
        second.add(["c"], ids=["c"])
        assert {hit.id for hit in first.search("a")} <= {"a", "c"}
        with pytest.raises(InvalidInputError):
            second.add(["again"], ids=["a"])  # its first call worked, so it stays the writer
        with pytest.raises(StoreLockedError):
            first.delete(["a"])


def test_more_ids_than_an_old_sqlite_takes_in_a_statement(bare):
    if sys.version_info < (3, 11):
        pytest.skip("Connection.setlimit is of Python 3.11")
    bare._access.contents.database.sql.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
    ids = [str(i) for i in range(5000)]
    assert len(bare.get(ids)) == 40
    assert bare.count({"version": {"$in": list(range(5000))}}) == 40
    assert bare.delete(ids) == 40


def test_an_empty_folder_is_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError):
        FaissStore.open(tmp_path)


def test_forks_swaps_kills_and_foreign_readers_lose_nothing_durable():
    """A few of what `python tests/faiss_llm2vec/crash.py --events 300 --docs 1000` does."""
    script = Path(__file__).with_name("crash.py")
    command = [sys.executable, script, "--events", "8", "--docs", "100", "--seed", "3"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "8 events" in run.stdout
    assert all(event in run.stdout for event in ("fork: ", "swap: ", "kill: "))


def test_a_copy_of_a_database_that_was_written_meanwhile_is_not_used(bare, monkeypatch):
    """It could hold old pages and new ones."""
    path = bare.path / "store.db"
    connections._copied(path).close()
    copy = shutil.copyfile

    def slow(source, *args, **options):
        copy(source, *args, **options)
        os.utime(path)

    monkeypatch.setattr(shutil, "copyfile", slow)
    assert connections._copied(path) is None


def test_every_change_is_a_generation(bare):
    before = bare.stats()["generation"]
    put(bare, "upsert", {"0": 1})
    bare.delete(["1"])
    assert bare.stats()["generation"] == before + 2


@pytest.mark.parametrize("foreign", ["lock", "segments/notes.txt"])
def test_a_folder_with_something_of_others_is_not_empty(tmp_path, foreign):
    """Under the names of a store's own, too."""
    path = tmp_path / "s"
    (path / foreign).parent.mkdir(parents=True)
    (path / foreign).write_text("mine")
    with pytest.raises(StoreExistsError):
        FaissStore.create(path, None)
    assert (path / foreign).read_text() == "mine"
    assert not (path / "store.db").exists()


def test_a_lock_on_a_file_that_was_replaced_meanwhile_is_taken_again(tmp_path, monkeypatch):
    """Between opening and locking it: two writers would each hold a lock of their own."""
    path, take, replaced = tmp_path / "lock", Lock._take, []

    def replaced_at_first(self):
        take(self)
        if not replaced:
            (tmp_path / "new").touch()
            os.replace(tmp_path / "new", path)
            replaced.append(path)

    monkeypatch.setattr(Lock, "_take", replaced_at_first)
    lock = Lock.acquire(path)
    assert replaced == [path]
    assert lock.in_place()
    with pytest.raises(StoreLockedError):
        Lock.acquire(path)
    lock.release()
