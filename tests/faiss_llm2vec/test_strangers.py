"""Stores of strangers: links, pipes, names that lead elsewhere, SQL that runs, contents of wrong types, and lies.

Each ends in one of our errors, soon, and nothing outside of the store is read, changed or removed.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import time

import numpy as np
import pytest
from fuzz import DIMENSION, HANGS, edit_manifest, fuzz, rewrite

from faiss_llm2vec import FaissStore
from st_llm2vec.errors import InvalidInputError, LLM2VecError, StoreCorruptedError, StoreError


@pytest.fixture
def path(tmp_path):
    """A closed store of three documents in two segments."""
    vectors = np.eye(3, DIMENSION, dtype="f4")
    with FaissStore.create(tmp_path / "store", None) as store:
        store.add(["a", "b"], ids=["a", "b"], metadata=[{"n": 1}, {"n": 2}], vectors=vectors[:2])
        store.add(["c"], ids=["c"], vectors=vectors[2:])
    return tmp_path / "store"


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("letter.txt", "00000009.faiss", "store.db"):
        (folder / name).write_text("mine")
    yield folder
    assert {file.name: file.read_text() for file in folder.iterdir()} == dict.fromkeys(
        ("letter.txt", "00000009.faiss", "store.db"), "mine"
    )


def use(path, **options):
    """Everything that reads or writes files of a store."""
    with FaissStore.open(path, **options) as store:
        store.search(np.ones(DIMENSION), k=3)
        store.get(where={})
        problems = store.verify()
        if not options.get("recover"):
            store.upsert(["z"], ids=["b"], vectors=np.eye(1, DIMENSION))
            store.compact()
        return problems


def refused(path, match="", **options):
    started = time.process_time()
    with pytest.raises(StoreError, match=match):
        use(path, **options)
    assert time.process_time() - started < HANGS


def sql(path, *statements):
    with sqlite3.connect(path / "store.db") as connection:
        for statement in statements:
            connection.execute(*((statement,) if isinstance(statement, str) else statement))
    connection.close()


def segment(path, number=0):
    return sorted((path / "segments").iterdir())[number]


# -- links, pipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"recover": True}], ids=["read", "mmap", "recover"])
def test_a_link_in_place_of_segments_is_refused(path, outside, options):
    shutil.rmtree(path / "segments")
    (path / "segments").symlink_to(outside, target_is_directory=True)
    refused(path, "symbolic link", **options)


def test_a_link_in_place_of_an_empty_stores_segments_is_refused_at_the_first_write(tmp_path, outside):
    FaissStore.create(tmp_path / "s", None).close()
    (tmp_path / "s" / "segments").rmdir()
    (tmp_path / "s" / "segments").symlink_to(outside, target_is_directory=True)
    with FaissStore.open(tmp_path / "s") as store, pytest.raises(StoreCorruptedError, match="symbolic link"):
        store.add(["a"], vectors=np.ones((1, 4)))


@pytest.mark.parametrize("name", ["store.db", "store.db-wal", "store.db-shm", "store.db-journal", "lock", "segment"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_what_is_no_regular_file_is_refused(path, outside, name, kind):
    file = segment(path) if name == "segment" else path / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(outside / ("letter.txt" if kind == "link" else "none"))
    refused(path, file.name)
    assert not (outside / "none").exists()


def test_a_rollback_journal_cannot_have_sqlite_delete_a_file(path, outside):
    """It may name a super-journal, which SQLite reads, and deletes if nothing in it is a journal of its own."""
    (path / "store.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(512))
    refused(path, "store.db-journal")


def test_a_hard_link_is_read_and_not_written(path, outside):
    os.link(path / "store.db", outside.parent / "backup.db")
    before = (outside.parent / "backup.db").read_bytes()
    with FaissStore.open(path) as store:
        assert len(store) == 3
        with pytest.raises(StoreError, match="cannot be written"):
            store.delete(["a"])
    assert (outside.parent / "backup.db").read_bytes() == before


# -- names -------------------------------------------------------------------------------------------------------------

NAMES = [
    "../outside/letter.txt", "../../outside/00000009.faiss", "OUTSIDE/00000009.faiss", "./00000001.faiss", "", ".",
    "..", "00000001.faiss/", "a\\..\\00000001.faiss", "C:\\00000001.faiss", "00000001.faiss\n", "00000001.faiss\0",
    "lock", "notes.txt", "\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18.faiss", None, 7, ["00000001.faiss"],
]  # fmt: skip


@pytest.mark.parametrize("part", ["vectors", "index"])
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_every_name_in_a_manifest_stays_inside(path, outside, part, name):
    if isinstance(name, str):
        name = name.replace("OUTSIDE", str(outside))

    def edit(manifest):
        manifest["segments"][0][part] = {"name": name, "size": 4, "sha256": "0" * 64}

    edit_manifest(path, edit)
    for options in ({}, {"mmap": True}, {"recover": True}):
        refused(path, "named like", **options)


def test_an_index_that_names_another_file_is_refused(tmp_path, outside):
    """FAISS keeps inverted lists in another file if the index says so, and opens it."""
    import faiss

    path, vectors = tmp_path / "s", np.random.default_rng(0).random((5000, 8), dtype="f4")
    with FaissStore.create(path, None, kind="ivf", metric="l2") as store:
        store.add(["x"] * 5000, vectors=vectors)
    index = faiss.index_factory(8, "IVF4,Flat")
    index.train(vectors)
    lists = faiss.OnDiskInvertedLists(4, index.code_size, str(tmp_path / "lists"))
    index.replace_invlists(lists)
    index.add(vectors)
    content = faiss.serialize_index(index).tobytes()
    assert b"ilod" in content
    rewrite(path, next((path / "segments").glob("*.index.faiss")), content)
    for options in ({}, {"mmap": True}):
        refused(path, "names another file", **options)
    with FaissStore.open(path, recover=True) as store:  # without the index
        assert len(store.search(vectors[0])) == 10
        assert "names another file" in store.missing[0]


def test_vectors_that_look_like_the_name_of_a_file_are_read(tmp_path):
    vectors = np.random.default_rng(0).random((5000, 8), dtype="f4")
    with FaissStore.create(tmp_path / "s", None, kind="sq8") as store:
        store.add([str(i) for i in range(5000)], vectors=vectors)
    file = next((tmp_path / "s" / "segments").glob("*.index.faiss"))
    content = bytearray(file.read_bytes())
    content[-100:-96] = b"ilod"  # among the codes
    rewrite(tmp_path / "s", file, bytes(content))
    for mmap in (False, True):
        with FaissStore.open(tmp_path / "s", mmap=mmap) as store:
            assert store.search(vectors[7])[0].text == "7"


@pytest.mark.parametrize("name", [None, 3, b"store", ["store"], "a\0b", "\ud800"], ids=repr)
def test_what_is_no_path_is_refused(name):
    for use_path in (lambda: FaissStore.create(name, None), lambda: FaissStore.open(name)):
        with pytest.raises(InvalidInputError, match="path must be one that a file can have"):
            use_path()


def test_whatever_is_a_path_is_taken(path):
    class Somewhere:
        def __fspath__(self):
            return str(path)

    for named in (Somewhere(), str(path), path):
        with FaissStore.open(named) as store:
            assert len(store) == 3
    for name in ("a" * 999, str(path.parent / ("a" * 999))):
        for use_path in (lambda: FaissStore.create(name, None), lambda: FaissStore.open(name)):  # noqa: B023
            with pytest.raises(StoreError):
                use_path()


# -- SQL ---------------------------------------------------------------------------------------------------------------

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"
SCHEMAS = {
    "view": ["DROP TABLE manifest", f"CREATE VIEW manifest AS {ENDLESS} max(i) AS json, 1 AS checksum FROM n"],
    "trigger": [f"CREATE TRIGGER t AFTER INSERT ON docs BEGIN INSERT INTO manifest {ENDLESS} i, 'x', i FROM n; END"],
    "index": ["CREATE INDEX i ON docs (length(text))"],
    "column": ["ALTER TABLE docs ADD COLUMN more TEXT AS (hex(zeroblob(1000000000)))"],
    "table": ["CREATE TABLE more (x)"],
    "check": ["DROP TABLE manifest", "CREATE TABLE manifest (only INTEGER, json TEXT, checksum INTEGER)"],
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_database_that_defines_anything_else_is_refused(path, name):
    sql(path, *SCHEMAS[name])
    for options in ({}, {"mmap": True}, {"recover": True}):
        refused(path, "not the database of a store", **options)


def test_a_database_that_was_analyzed_is_still_a_store(path):
    sql(path, "ANALYZE")
    assert use(path) == []


# -- types -------------------------------------------------------------------------------------------------------------

FIELDS = {
    "kind": [None, 7, "IVF100000000,Flat", "PQ8x24", "HNSW9999999", "x" * 10_000, ["flat"]],
    "metric": [None, "cos", 7, ["dot"], {}],
    "dimension": [None, -1, 0, True, "16", 2**40, 15, 1.5],
    "truncate_dim": ["4", 4, 0],
    "prompts": [[], "x", {"query": {"a": 1}}],
    "fingerprint": [7, {}],
    "generation": [None, -1, "x", 2**70, 1e300],
    "next_id": [None, 0, "x"],
    "next_segment": [None, "x", -4],
    "count": [None, -3, "3", 2, 4, 10**18],
    "digest": [None, "x", 2**64],
    "segments": [None, {}, 7, [None], [{}], [[]], [7], "x"],
    "unknown": [1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in FIELDS for value in FIELDS[name]])
def test_a_field_of_another_type_or_range_is_refused(path, name, value):
    edit_manifest(path, lambda manifest: manifest.update({name: value}))
    for options in ({}, {"mmap": True}):
        refused(path, "store.db|segments", **options)


@pytest.mark.parametrize("text", ["", "null", "[]", "7", "{", "[" * 100_000, '{"kind": NaN}', "{}", '"x"', "9" * 5000])
def test_a_manifest_that_is_no_object_is_refused(path, text):
    edit_manifest(path, text)
    for options in ({}, {"recover": True}):
        refused(path, "store.db", **options)


@pytest.mark.parametrize(
    "value", ["x'00'", "7", "CAST(x'ff' AS TEXT)", "zeroblob(10)"], ids=["bytes", "number", "no UTF-8", "zeros"]
)
def test_a_manifest_that_is_no_text_is_refused(path, value):
    sql(path, f"UPDATE manifest SET json = {value}")
    refused(path, "store.db")


@pytest.mark.parametrize("metadata", ["[]", "7", "{", '{"a": {"b": 1}}', '{"$a": 1}', "[" * 5000, '{"a": NaN}', "null"])
def test_metadata_that_a_store_never_writes_is_an_error_where_it_is_read(path, metadata):
    from faiss_llm2vec.rows import Row, checksum, row_digest

    digest = int.from_bytes(row_digest(0, "a", "a", metadata), "little", signed=True)
    assert Row(0, "a", "a", metadata, digest).sound
    sql(path, ("UPDATE docs SET metadata = ?, checksum = ? WHERE id = 'a'", (metadata, digest)))
    rows = sqlite3.connect(path / "store.db").execute("SELECT checksum FROM docs").fetchall()
    edit_manifest(path, lambda manifest: manifest.update(digest=int(np.bitwise_xor.reduce([row[0] for row in rows]))))
    with FaissStore.open(path) as store:
        for read in (lambda: store.get(["a"]), lambda: store.search(np.ones(DIMENSION)), lambda: store.delete(["a"])):
            with pytest.raises(StoreCorruptedError, match="metadata of document 'a'"):
                read()
        assert any("metadata of document 'a'" in problem for problem in store.verify())
    with FaissStore.open(path, recover=True) as store:
        assert [record.id for record in store.get(where={})] == ["b", "c"]
    assert checksum("x") != checksum("y")


@pytest.mark.parametrize("value", ["NULL", "'x'", "x'00'", "1.5", "1e300"])
def test_a_checksum_that_is_no_number_is_refused(path, value):
    if value == "NULL":
        sql(path, "PRAGMA writable_schema = 1", "UPDATE docs SET checksum = '' WHERE id = 'a'")
    else:
        sql(path, f"UPDATE docs SET checksum = {value} WHERE id = 'a'")
    refused(path, "store.db")


# -- lies --------------------------------------------------------------------------------------------------------------


def headers(path, change):
    """Changes the first segment's bytes, and has the manifest agree."""
    content = bytearray(segment(path).read_bytes())
    change(content)
    rewrite(path, segment(path), bytes(content))


LIES = {
    "metric": lambda data: data.__setitem__(slice(33, 37), struct.pack("<i", 1)),
    "inner metric": lambda data: data.__setitem__(slice(37, 41), b"IxF2"),
    "dimension": lambda data: data.__setitem__(slice(4, 8), struct.pack("<i", 8)),
    "count": lambda data: data.__setitem__(slice(8, 16), struct.pack("<q", 1)),
    "huge count": lambda data: data.__setitem__(slice(8, 16), struct.pack("<q", 1 << 60)),
    "length": lambda data: data.__setitem__(slice(74, 82), struct.pack("<q", 1 << 40)),
    "class": lambda data: data.__setitem__(slice(0, 4), b"IwFl"),
    "more": lambda data: data.extend(bytes(64)),
    "less": lambda data: data.__delitem__(slice(-8, None)),
    "ids": lambda data: data.__setitem__(slice(-8, None), struct.pack("<q", 77)),
    "negative ids": lambda data: data.__setitem__(slice(-16, -8), struct.pack("<q", -1)),
}


@pytest.mark.parametrize("name", LIES)
def test_a_vector_file_that_is_not_what_the_manifest_says_is_refused(path, name):
    headers(path, LIES[name])
    for options in ({}, {"mmap": True}):
        refused(path, segment(path).name, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 0.0, 2.0])
def test_vectors_that_a_store_never_keeps_are_refused_or_reported(path, value):
    headers(path, lambda data: data.__setitem__(slice(82, 86), struct.pack("<f", value)))
    refused(path, "unit length")
    with FaissStore.open(path, mmap=True) as store:  # which does not read them when it opens
        assert any("unit length" in problem for problem in store.verify())


@pytest.mark.parametrize("lie", ["dimension", "metric", "rows"])
def test_an_index_over_something_else_is_refused(tmp_path, lie):
    import faiss

    path, vectors = tmp_path / "s", np.random.default_rng(0).standard_normal((4200, 16)).astype("f4")
    with FaissStore.create(path, None, kind="sq8", metric="l2") as store:
        store.add(["x"] * 4200, vectors=vectors)
    if lie == "dimension":
        vectors = vectors[:, :8].copy()
    index = faiss.index_factory(
        vectors.shape[1], "SQ8", faiss.METRIC_INNER_PRODUCT if lie == "metric" else faiss.METRIC_L2
    )
    index.train(vectors)
    index.add(vectors[:4100] if lie == "rows" else vectors)
    rewrite(path, next((path / "segments").glob("*.index.faiss")), faiss.serialize_index(index).tobytes())
    for options in ({}, {"mmap": True}):
        refused(path, "is no index over 4200 vectors of dimension 16", **options)


def test_a_state_of_many_documents_in_a_small_file_is_refused_at_once(path):
    def edit(manifest):
        manifest["count"] = manifest["segments"][0]["rows"] = 10**15

    edit_manifest(path, edit)
    refused(path, "too small")


def test_fuzzed_manifests_and_headers_end_in_our_errors(tmp_path):
    tally = fuzz(tmp_path, cases=60, seconds=HANGS, derandomize=True)
    assert sum(tally.values()) >= 60
    assert all(name == "opened" or issubclass(kind, LLM2VecError) for name, kind in tally), tally


def test_json_of_a_manifest_is_what_it_was(path):
    """What `edit_manifest` writes back unchanged opens: the edits above are refused for themselves."""
    edit_manifest(path, lambda manifest: None)
    assert use(path) == []
    assert json.loads('{"a": 1}') == {"a": 1}


def test_segments_that_name_a_file_twice_are_refused(path):
    def edit(manifest):
        manifest["segments"][1]["vectors"] = manifest["segments"][0]["vectors"]

    edit_manifest(path, edit)
    refused(path, "name a file twice")


def test_a_document_with_two_vectors_is_reported(path):
    """Of the first document, the second segment has another one."""
    import faiss

    second = sorted((path / "segments").iterdir())[1]
    ids = [struct.unpack("<q", file.read_bytes()[-8:])[0] for file in (second, segment(path))]
    index = faiss.IndexIDMap(faiss.IndexFlatIP(DIMENSION))
    index.add_with_ids(np.eye(2, DIMENSION, k=2, dtype="f4"), np.array(sorted(ids)))
    rewrite(path, second, faiss.serialize_index(index).tobytes())
    edit_manifest(path, lambda manifest: manifest["segments"][1].update(rows=2))
    with FaissStore.open(path, mmap=True) as store:
        assert any("two vectors" in problem for problem in store.verify())
