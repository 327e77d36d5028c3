"""What is on the disk: crashes, torn writes, damage, two writers, folders that move or cannot be written."""

from __future__ import annotations

import errno
import os
import resource
import runpy
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from faiss_llm2vec import FaissStore, database
from faiss_llm2vec.files import leftovers
from st_llm2vec.errors import StoreCorruptedError, StoreError, StoreLockedError, StoreMismatchError

BLOCK = 4096
CRASH = runpy.run_path(str(Path(__file__).with_name("crash.py")))


def content(path, **options):
    """Everything a store says it has, read by a store object of its own; it must be sound."""
    with FaissStore.open(path, **options) as store:
        assert store.verify() == []
        return {record.id: (record.text, record.metadata) for record in store.get(where={})}


def flip(path, position=-30):
    """Changes one byte of a file; by default one of the last vector, which stands before the ids."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def segments(store):
    return sorted((store.path / "segments").iterdir())


# -- crashes -----------------------------------------------------------------------------------------------------------


def test_kill_9_loses_nothing_durable_and_leaves_nothing_half_done(tmp_path):
    """A few of what `python tests/faiss_llm2vec/crash.py` does for 200 kills and 20,000 documents."""
    script = Path(__file__).with_name("crash.py")
    command = [sys.executable, script, "--kills", "8", "--docs", "300", "--path", tmp_path / "s"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "8 kills" in run.stdout
    assert "torn or missing last writes: each store opened" in run.stdout


def change_add(store):
    store.add(["five " * 1500, "six"], ids=["5", "6"], metadata=[{"v": 2}] * 2, vectors=np.eye(16)[:2])


def change_upsert(store):
    store.upsert(["zero again " * 700], ids=["0"], metadata=[{"v": 2}], vectors=np.eye(16)[:1])


def change_delete(store):
    store.delete(["1", "2"])


def change_compact(store):
    store.delete(["3"])
    store.compact()


@pytest.mark.parametrize("change", [change_add, change_upsert, change_delete, change_compact])
def test_a_torn_last_write_leaves_the_state_before_or_after(tmp_path, encoder, change):
    """Cuts each file that the last change wrote at every block boundary, or leaves it out, as a power cut can."""
    live, names = tmp_path / "live", [str(i) for i in range(5)]
    with FaissStore.create(live, encoder) as store:
        for name in names:  # five segments
            store.add([f"text {name} " * 300], ids=[name], metadata=[{"v": 1}])
        if change is change_compact:
            store.delete(["3"])
        before, files_before = content(live), CRASH["read_all"](live)
        change(store)
        after, files_after = content(live), CRASH["read_all"](live)
    outcomes, torn = [], tmp_path / "torn"
    for name, files in CRASH["torn_copies"](files_before, files_after):
        CRASH["write_all"](torn, files)
        found = content(torn)
        assert found in (before, after), f"{name} torn"
        if name != CRASH["LOG"]:
            assert found == before
        outcomes.append(found == after)
        with FaissStore.open(torn, encoder) as store:  # and life goes on
            store.upsert(["next"], ids=["next"])
            assert len(segments(store)) == store.stats()["segments"]  # what the torn change left is swept
        assert content(torn).keys() == found.keys() | {"next"}
    assert len(outcomes) > 1
    assert False in outcomes or before == after


def test_vectors_are_flushed_before_the_commit_and_the_commit_waits_for_the_disk(store, monkeypatch):
    """What a kill cannot show, since the system keeps what a dead process wrote; a power cut would."""
    flushed, real = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (flushed.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle))
    )
    last_before_commit = database._set_manifest

    def check(sql, manifest):
        assert {str(path) for path in [*segments(store), store.path / "segments"]} <= set(flushed)
        assert sql.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        last_before_commit(sql, manifest)

    monkeypatch.setattr(database, "_set_manifest", check)
    store.add(["a"])
    assert len(segments(store)) == 1


def test_a_new_store_is_in_its_folder_when_it_has_been_made(tmp_path, monkeypatch):
    """Its name, too, would be lost in a power cut: the folder around it is flushed last."""
    flushed, real = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (flushed.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle))
    )
    FaissStore.create(tmp_path / "store", None).close()
    assert flushed[-1] == str(tmp_path)


def test_what_no_segment_names_is_swept_and_nothing_else(store):
    store.add(["a"], ids=["a"])
    named = segments(store)
    lost = store.path / "segments" / "00000077.faiss"
    lost.write_bytes(b"of a write that was killed")
    store.close()
    with FaissStore.open(store.path, None) as again:
        assert leftovers(store.path, again._access.contents.manifest) == [lost]
        again.delete(["a"])
        assert segments(again)[: len(named)] == named or not segments(again)


@pytest.mark.parametrize("step", ["vectors", "rows", "commit"])
def test_a_change_that_fails_midway_changes_nothing(store, monkeypatch, step):
    """Fails before the segment is written, after it, and just before the COMMIT."""
    store.add(["kept"], ids=["kept"])
    before = store.stats()

    def fail(*args, **options):
        raise KeyboardInterrupt

    target = {
        "vectors": ("faiss_llm2vec.segments._write"),
        "rows": ("faiss_llm2vec.database.with_docids"),
        "commit": ("faiss_llm2vec.database._set_manifest"),
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(target, fail)
        with pytest.raises(KeyboardInterrupt):
            store.upsert(["new", "lost"], ids=["kept", "lost"])
    assert store.stats() == before
    assert [hit.id for hit in store.search("kept")] == ["kept"]
    assert store.upsert(["new", "found"], ids=["kept", "found"]) == ["kept", "found"]
    assert content(store.path) == {"kept": ("new", {}), "found": ("found", {})}


def test_an_interrupt_after_the_commit_is_noticed_by_the_next_change(store, monkeypatch):
    commit = database.Database.commit

    def interrupted(*args, **options):
        commit(*args, **options)
        raise KeyboardInterrupt

    store.add(["a"], ids=["a"])
    with monkeypatch.context() as patch:
        patch.setattr(database.Database, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.add(["b"], ids=["b"])
    assert {hit.id for hit in store.search("b")} == set("ab")  # a search notices as well
    store.add(["c"], ids=["c"])
    assert {hit.id for hit in store.search("b")} == set("abc") == content(store.path).keys()


def test_a_full_disk_is_an_error_and_changes_nothing(store):
    store.add(["kept"], ids=["kept"])
    before = content(store.path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # First the vectors do not fit; then they do, and the texts do not.
        for texts, limit in ((["x"] * 4000, 100_000), (["x" * 1_000_000], 100_000)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with pytest.raises(StoreError, match="Nothing was changed"):
                store.add(texts)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert len(segments(store)) == 1  # no file of vectors is left behind, whole or half
            assert store.verify() == []
            assert content(store.path) == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store.add(["fits"])
    assert len(content(store.path)) == 2


@pytest.mark.parametrize("step", ["write", "flush", "folder", "rows", "manifest"])
def test_no_space_left_at_any_step_changes_nothing(store, monkeypatch, step):
    store.add(["kept"], ids=["kept"])
    before, files = content(store.path), segments(store)

    def full(*args, **options):
        if step in ("rows", "manifest"):
            raise sqlite3.OperationalError("database or disk is full")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {
        "write": "faiss_llm2vec.segments.faiss.write_index",
        "flush": "os.fsync",
        "folder": "faiss_llm2vec.segments.sync_folder",
        "rows": "faiss_llm2vec.database.with_docids",
        "manifest": "faiss_llm2vec.database._set_manifest",
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        for change in (lambda: store.add(["lost"]), lambda: store.upsert(["lost"], ids=["kept"])):
            with pytest.raises(StoreError, match=r"(No space left|disk is full).*Nothing was changed"):
                change()
    assert content(store.path) == before
    assert store.search("kept", k=1)[0].score > 0.999
    store.add(["fits"], ids=["fits"])
    assert content(store.path).keys() == {"kept", "fits"}
    assert len(segments(store)) == len(files) + 1  # what the failed changes wrote was removed


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(store, tmp_path):
    """Three documents in two segments, closed; and a way to damage its rows."""
    store.add(["a", "b"], ids=["a", "b"], metadata=[{"n": 1}, {"n": 2}])
    store.add(["c"], ids=["c"])
    store.close()

    def edit(statement):
        with sqlite3.connect(store.path / "store.db") as sql:
            sql.execute(statement)
        sql.close()

    store.edit = edit
    return store


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_segment_is_named_and_the_rest_can_be_served(damaged, encoder, harm):
    segment = segments(damaged)[1]
    {"flip": flip, "truncate": lambda path: os.truncate(path, 100), "remove": Path.unlink}[harm](segment)
    with pytest.raises(StoreCorruptedError, match=segment.name):
        FaissStore.open(damaged.path)
    if harm == "flip":  # mmap=True does not read the vectors; verify does
        with FaissStore.open(damaged.path, mmap=True) as store:
            assert segment.name in store.verify()[0]
    else:
        with pytest.raises(StoreCorruptedError, match=segment.name):
            FaissStore.open(damaged.path, mmap=True)
    files = CRASH["read_all"](damaged.path)
    with FaissStore.open(damaged.path, encoder, recover=True) as store:
        assert {hit.id for hit in store.search("a")} == {"a", "b"}
        assert [record.text for record in store.get(["c"])] == ["c"]  # can be encoded again
        assert segment.name in store.missing[0]
        assert "'c'" in store.missing[1]
        assert store.verify() == list(store.missing)
        with pytest.raises(StoreError, match="recover=True"):
            store.add(["d"])
    assert {name: data for name, data in CRASH["read_all"](damaged.path).items() if name in files} == files


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE docs SET text = 'edited' WHERE id = 'b'",
        "UPDATE docs SET id = 'edited' WHERE id = 'b'",
        "UPDATE docs SET metadata = '{}' WHERE id = 'b'",
        "UPDATE docs SET text = x'00ff' WHERE id = 'b'",
        "UPDATE docs SET text = CAST(x'ff' AS TEXT) WHERE id = 'b'",
        "UPDATE docs SET docid = 77 WHERE id = 'b'",
    ],
)
def test_an_edited_row_is_never_served(damaged, statement):
    damaged.edit(statement)
    if "docid = 77" in statement:
        with pytest.raises(StoreCorruptedError, match=r"no vector for documents \[77\]"):
            FaissStore.open(damaged.path)
    else:
        with FaissStore.open(damaged.path) as store:
            assert any("was edited" in problem for problem in store.verify())
            with pytest.raises(StoreCorruptedError, match="was edited"):
                store.search(np.ones(16))
            with pytest.raises(StoreCorruptedError, match="was edited"):
                store.get(where={})
    with FaissStore.open(damaged.path, recover=True) as store:
        assert {hit.id for hit in store.search(np.ones(16))} == {"a", "c"}
        assert len(store) == 2
        assert "1 of 3 documents" in store.missing[0]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM docs WHERE id = 'b'", "2 documents that are not the 3"),
        ("INSERT INTO docs SELECT 9, 'z', text, metadata, checksum FROM docs WHERE id = 'a'", "4 documents"),
        ("UPDATE manifest SET json = replace(json, 'fake-1', 'fake-2')", "manifest is damaged"),
        ("DELETE FROM manifest", "manifest is damaged"),
        ("DROP TABLE manifest", "not the database of a store"),
        ("DROP TABLE docs", "not the database of a store"),
    ],
)
def test_a_manifest_and_rows_that_disagree_do_not_open(damaged, statement, message):
    damaged.edit(statement)
    for mmap in (False, True):
        with pytest.raises(StoreCorruptedError, match=f"store.db.*{message}"):
            FaissStore.open(damaged.path, mmap=mmap)


@pytest.mark.parametrize(
    "statement", ["DELETE FROM fields WHERE value = 2", "UPDATE fields SET value = 7 WHERE value = 2"]
)
def test_edited_filter_rows_are_found_by_verify_and_rebuilt_by_recover(damaged, statement):
    damaged.edit(statement)
    with FaissStore.open(damaged.path) as store:
        assert any("filters are not safe" in problem for problem in store.verify())
    with FaissStore.open(damaged.path, recover=True) as store:
        assert [record.id for record in store.get(where={"n": 2})] == ["b"]


@pytest.mark.parametrize("harm", ["empty", "garbage", "cut", "missing"])
def test_a_damaged_database_file_is_named(damaged, harm):
    path = damaged.path / "store.db"
    size = path.stat().st_size
    if harm == "missing":
        path.unlink()
    elif harm == "garbage":
        path.write_bytes(os.urandom(size))
    else:
        os.truncate(path, 0 if harm == "empty" else size - BLOCK)
    with pytest.raises(StoreCorruptedError, match=r"store\.db"):
        FaissStore.open(damaged.path)


@pytest.mark.parametrize("size", [512, BLOCK, 16_384])  # a sector, a block of the file system, a page of SQLite
def test_recover_reads_around_a_damaged_page(tmp_path, size):
    names = [f"{i:03d}" for i in range(300)]
    with FaissStore.create(tmp_path / "s", None) as store:
        store.add([name * 100 for name in names], ids=names, vectors=np.random.default_rng(0).random((300, 4)))
    data = bytearray((tmp_path / "s" / "store.db").read_bytes())
    start = data.index(b"150" * 101) // size * size
    data[start : start + size] = bytes(size)
    (tmp_path / "s" / "store.db").write_bytes(data)
    with pytest.raises(StoreCorruptedError, match=r"store\.db"):
        FaissStore.open(tmp_path / "s")
    with FaissStore.open(tmp_path / "s", recover=True) as store:
        assert 240 < len(store) < 300
        assert {"000", "299"} <= {hit.id for hit in store.search(np.ones(4), k=300)}
        assert f"{300 - len(store)} of 300 documents" in store.missing[0]


def test_a_newer_format_is_not_read(damaged, monkeypatch):
    monkeypatch.setattr(database, "READABLE", (0,))
    with pytest.raises(StoreError, match="upgrade st-llm2vec"):
        FaissStore.open(damaged.path)


# -- two at once -------------------------------------------------------------------------------------------------------


def test_the_second_writer_is_locked_out_until_the_first_closes(store, encoder, make_encoder):
    store.add(["a"], ids=["a"])
    with FaissStore.open(store.path, encoder) as second:
        for change in (lambda: second.add(["b"]), lambda: second.delete(["a"]), second.compact):
            with pytest.raises(StoreLockedError, match="Close that one first"):
                change()
        assert second.search("a", k=1)[0].id == "a"
        assert encoder.encoded == ["a", "a"]  # "b" was refused before it was encoded
        store.add(["c"], ids=["c"])
        store.close()
        second.add(["b"], ids=["b"])  # from the newest state, not the one it opened
        assert {hit.id for hit in second.search("c")} == content(store.path).keys() == {"a", "b", "c"}


def test_another_process_is_locked_out_and_death_frees_the_lock(store):
    store.add(["a"])
    code = (
        "import sys; from faiss_llm2vec import FaissStore\n"
        f"store = FaissStore.open({str(store.path)!r}); store.delete(['zzz']); print('writing', flush=True); input()"
    )
    command = [sys.executable, "-c", code]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "StoreLockedError" in refused.stderr
    store.close()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        with FaissStore.open(store.path) as second:
            with pytest.raises(StoreLockedError):
                second.delete(["zzz"])
            writer.kill()
            writer.wait()
            assert second.delete(["zzz"]) == 0


@pytest.mark.parametrize("mmap", [False, True])
def test_a_reader_goes_on_seeing_what_it_opened(store, encoder, mmap):
    store.add(["a", "b"], ids=["a", "b"], metadata=[{"n": 1}, {"n": 2}])
    with FaissStore.open(store.path, encoder, mmap=mmap) as reader:
        store.upsert(["new"], ids=["a"])
        store.delete(["b"])
        store.add(["c"], ids=["c"])
        store.compact()  # removes the very files that the reader opened
        assert [hit.id for hit in reader.search("b")] == ["b", "a"]
        assert [record.text for record in reader.get(["a", "b", "c"])] == ["a", "b"]
        assert reader.count({"n": 2}) == 1
    assert content(store.path).keys() == {"a", "c"}


def test_opening_while_a_writer_compacts_takes_the_newer_state(store, monkeypatch):
    """The writer removes the files between the reader's look at the manifest and its opening of them."""
    store.add(["a"], ids=["a"])
    store.add(["b"], ids=["b"])
    real = database.Database.live

    def live(self, manifest):
        monkeypatch.setattr(database.Database, "live", real)
        store.compact()
        return self.live(manifest)

    monkeypatch.setattr(database.Database, "live", live)
    assert content(store.path).keys() == {"a", "b"}


def test_a_state_of_another_model_is_not_written_to(tmp_path, make_encoder):
    """A store opened while it had no vectors meets the dimension that another writer has set since."""
    with FaissStore.create(tmp_path / "s", None) as first, FaissStore.open(tmp_path / "s", make_encoder(8)) as second:
        first.add(["a"], vectors=np.ones((1, 4)))
        first.close()
        for _ in range(2):
            with pytest.raises(StoreMismatchError, match=r"4.*8"):
                second.add(["b"])


# -- folders -----------------------------------------------------------------------------------------------------------


def test_the_folder_can_be_moved_and_copied(store, tmp_path):
    store.add(["a"], ids=["a"])
    shutil.copytree(store.path, tmp_path / "copy ? of # 100%")  # while open, with its write-ahead log
    store.close()
    store.path.rename(tmp_path / "moved")
    for name in ("moved", "copy ? of # 100%"):
        assert content(tmp_path / name) == {"a": ("a", {})}


def test_a_folder_that_cannot_be_written_can_be_read():
    """As another user, since nothing is read-only to root."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        with FaissStore.create(path, None) as store:
            store.add(["a"], ids=["a"], vectors=np.ones((1, 4)))
        for item in (Path(folder), path, path / "segments"):
            item.chmod(0o555)
        (path / "lock").chmod(0o444)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            assert content(path) == {"a": ("a", {})}
            with FaissStore.open(path, mmap=True) as store:
                assert store.search(np.ones(4))[0].id == "a"
                with pytest.raises(StoreError, match=r"cannot be written.*can be read"):
                    store.delete(["a"])
            with pytest.raises(StoreError, match="cannot make a store"):
                FaissStore.create(Path(folder) / "t", None)
        finally:
            if root:
                os.seteuid(0)
            for item in (Path(folder), path, path / "segments"):
                item.chmod(0o755)


def test_nothing_is_pickled(store):
    store.add(["a"])
    assert {path.suffix for path in store.path.rglob("*") if path.is_file()} <= {
        "",
        ".db",
        ".db-wal",
        ".db-shm",
        ".faiss",
    }
    source = Path(sys.modules[FaissStore.__module__].__file__).parent
    assert not [
        path
        for path in source.glob("*.py")
        if "import pickle" in path.read_text() or "allow_pickle" in path.read_text()
    ]
