"""A folder of shards from a stranger: an error that says what is wrong, and nothing outside is read or removed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from fake_encoder import FakeEncoder

from st_llm2vec import encode_corpus
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.stored_vectors import StoredVectors

TEXTS = [{"text": f"text {i}", "year": i} for i in range(6)]
Lie = Callable[[Path, dict[str, Any]], None]


def encoded(folder: Path, format: str = "parquet", **options: Any) -> Path:
    encode_corpus(FakeEncoder(), TEXTS, folder, format=format, **{"shard_size": 3, **options})
    return folder


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def write_manifest(folder: Path, manifest: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))


def forge(folder: Path, number: int = 0) -> None:
    """Make the manifest fit a shard that was changed, as who hands over the folder would."""
    manifest = manifest_of(folder)
    path = folder / manifest["shards"][number]["file"]
    manifest["shards"][number] |= {"bytes": path.stat().st_size, "sha256": hash_of(path)}
    if path.suffix == ".npy":
        manifest["shards"][number]["rows_sha256"] = hash_of(path.with_suffix(".jsonl"))
    write_manifest(folder, manifest)


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(folder: Path) -> None:
    with StoredVectors(folder).passages() as passages:
        assert len(passages) == 6


NAMES = ["/etc/passwd", "../x.parquet", "..", "", 5, None, "a/00000-0123456789abcdef.parquet", "00000-x.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_names_shards_and_nothing_else(tmp_path: Path, name: Any) -> None:
    folder = encoded(tmp_path / "vectors")
    manifest = manifest_of(folder)
    manifest["shards"][0]["file"] = name
    write_manifest(folder, manifest)
    for use in (read, encoded):
        with pytest.raises(InvalidInputError, match=r"manifest\.json is damaged"):
            use(folder)


FIELDS: dict[str, list[Any]] = {
    "texts": [0, -1, 1.5, "3", None, True, 10**30],
    "dimension": [0, -8, "8", [8], 10**9],
    "bytes": [-1, "1", None],
    "sha256": ["", 7, "g" * 64],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in FIELDS for value in FIELDS[field]])
def test_counts_of_another_kind_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    folder = encoded(tmp_path / "vectors")
    manifest = manifest_of(folder)
    manifest["shards"][0][field] = value
    write_manifest(folder, manifest)
    with pytest.raises(InvalidInputError, match="damaged"):
        read(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": None},
        {"fingerprint": 5},
        {"model": "a\x1b]0;b"},
        {"model": "x" * 5000},
        {"prompt": 5},
        {"format": "npy"},
        {"shards": ["file", "bytes"]},
        {"shards": [["file", "bytes"]]},
        {"shards": [{"file": "00000-0123456789abcdef.parquet", "bytes": 1}]},
        {"more": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]},
    ],
)
def test_what_encode_does_not_write_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = encoded(tmp_path / "vectors")
    write_manifest(folder, manifest_of(folder) | changes)
    with pytest.raises(InvalidInputError, match="damaged"):
        read(folder)


@pytest.mark.parametrize("left_out", ["task", "prompt", "fingerprint", "complete", "format", "shards"])
def test_what_encode_always_writes_is_there(tmp_path: Path, left_out: str) -> None:
    folder = encoded(tmp_path / "vectors")
    write_manifest(folder, {name: value for name, value in manifest_of(folder).items() if name != left_out})
    with pytest.raises(InvalidInputError, match=f"{left_out} is missing"):
        read(folder)


def test_no_shards_at_all_are_not_finished(tmp_path: Path) -> None:
    folder = encoded(tmp_path / "vectors")
    write_manifest(folder, manifest_of(folder) | {"shards": []})
    with pytest.raises(InvalidInputError, match="not finished"):
        read(folder)


@pytest.mark.parametrize("kind", ["FIFO", "link", "nested"])
def test_a_manifest_that_is_no_file_of_ours_ends_at_once(tmp_path: Path, kind: str) -> None:
    folder = encoded(tmp_path / "vectors")
    path = folder / "manifest.json"
    if kind == "link":
        path.rename(tmp_path / "elsewhere.json")
        path.symlink_to(tmp_path / "elsewhere.json")
    else:
        path.unlink()
        os.mkfifo(path) if kind == "FIFO" else path.write_text("[" * 100_000)
    with pytest.raises(InvalidInputError, match="damaged"):
        read(folder)


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_a_link_in_the_place_of_a_shard_is_not_followed(tmp_path: Path, format: str) -> None:
    folder = encoded(tmp_path / "vectors", format)
    for path in sorted(folder.iterdir()):
        if path.suffix == (".jsonl" if format == "npy" else ".parquet"):
            path.rename(tmp_path / path.name)
            path.symlink_to(tmp_path / path.name)
    with pytest.raises(InvalidInputError, match="is missing or was changed"):
        read(folder)


def vectors_as(change: Callable[[Any], Any]) -> Lie:
    return lambda path, entry: np.save(path, change(np.load(path)))


def columns_as(change: Callable[[Any], Any]) -> Lie:
    return lambda path, entry: pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)


def with_one(value: float) -> Callable[[Any], Any]:
    def change(vectors: Any) -> Any:
        vectors[1, 2] = value
        return vectors

    return change


def lines_as(change: Callable[[list[str]], list[str]]) -> Lie:
    def lie(path: Path, entry: dict[str, Any]) -> None:
        rows = path.with_suffix(".jsonl")
        rows.write_text("".join(line + "\n" for line in change(rows.read_text().splitlines())))

    return lie


def embedding_as(rows: list[Any], kind: Any) -> Lie:
    return columns_as(lambda table: table.set_column(table.num_columns - 1, "embedding", pa.array(rows, kind)))


NPY: dict[str, Lie] = {
    "fewer vectors": vectors_as(lambda v: v[:2]),
    "more vectors": vectors_as(lambda v: np.concatenate([v, v])),
    "another dimension": vectors_as(lambda v: v[:, :1]),
    "one axis": vectors_as(lambda v: v[:, 0]),
    "float64": vectors_as(lambda v: v.astype("f8")),
    "big-endian": vectors_as(lambda v: v.astype(">f4")),
    "complex": vectors_as(lambda v: v.astype("c8")),
    "texts": vectors_as(lambda v: v.astype("U8")),
    "nan": vectors_as(with_one(np.nan)),
    "infinite": vectors_as(with_one(np.inf)),
    "pickle": lambda path, entry: np.array([{}], dtype=object).dump(path),
    "archive": lambda path, entry: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "header only": lambda path, entry: path.write_bytes(path.read_bytes()[:128]),
    "nothing": lambda path, entry: path.write_bytes(b"x"),
    "fewer lines": lines_as(lambda lines: lines[:2]),
    "more lines": lines_as(lambda lines: [*lines, '{"id": "more", "text": "a", "metadata": {}}']),
    "a line of another kind": lines_as(lambda lines: [*lines[:2], "[]"]),
    "a line without a text": lines_as(lambda lines: [*lines[:2], '{"id": "a", "metadata": {}}']),
    "a text that is none": lines_as(lambda lines: [*lines[:2], '{"id": "a", "text": 5, "metadata": {}}']),
    "nested metadata": lines_as(lambda lines: [*lines[:2], '{"id": "a", "text": "a", "metadata": {"a": {"b": 1}}}']),
    "a half character": lines_as(lambda lines: [*lines[:2], '{"id": "a", "text": "\\ud800", "metadata": {}}']),
    "nested without end": lines_as(lambda lines: [*lines[:2], "[" * 100_000]),
}
PARQUET: dict[str, Lie] = {
    "fewer rows": columns_as(lambda table: table[:2]),
    "no texts": columns_as(lambda table: table.drop(["text"])),
    "no vectors": columns_as(lambda table: table.drop(["embedding"])),
    "texts that are numbers": columns_as(lambda table: table.set_column(1, "text", pa.array([1, 2, 3]))),
    "a text that is missing": columns_as(lambda table: table.set_column(1, "text", pa.array(["a", None, "b"]))),
    "metadata that is bytes": columns_as(lambda table: table.set_column(2, "year", pa.array([b"a", b"b", b"c"]))),
    "metadata that is nested": columns_as(lambda table: table.set_column(2, "year", pa.array([{"a": 1}] * 3))),
    "lists of several lengths": embedding_as([[0.5] * 4, [0.5] * 12, [0.5] * 8], pa.list_(pa.float32())),
    "another dimension": embedding_as([[0.5] * 4] * 3, pa.list_(pa.float32(), 4)),
    "float64": embedding_as([[0.5] * 8] * 3, pa.list_(pa.float64(), 8)),
    "a missing vector": embedding_as([[0.5] * 8, None, [0.5] * 8], pa.list_(pa.float32(), 8)),
    "a missing number": embedding_as([[0.5] * 8, [None] * 8, [0.5] * 8], pa.list_(pa.float32(), 8)),
    "nan": embedding_as([[0.5] * 8, [float("nan")] * 8, [0.5] * 8], pa.list_(pa.float32(), 8)),
    "no parquet": lambda path, entry: path.write_bytes(b"PAR1" + bytes(40) + b"PAR1"),
}
LIES = [("npy", name) for name in NPY] + [("parquet", name) for name in PARQUET]


@pytest.mark.parametrize(("format", "name"), LIES)
def test_a_shard_of_something_else_ends_in_our_error(tmp_path: Path, format: str, name: str) -> None:
    folder = encoded(tmp_path / "vectors", format)
    entry = manifest_of(folder)["shards"][0]
    {"npy": NPY, "parquet": PARQUET}[format][name](folder / entry["file"], entry)
    forge(folder)
    with pytest.raises(InvalidInputError, match=entry["file"].partition(".")[0]):
        read(folder)


def test_texts_beside_vectors_that_were_changed_are_noticed(tmp_path: Path) -> None:
    folder = encoded(tmp_path / "vectors", "npy")
    rows = min(folder.glob("*.jsonl"))
    rows.write_text(rows.read_text().replace("text 0", "text 9"))
    with pytest.raises(InvalidInputError, match="is missing or was changed"):
        read(folder)


def test_a_small_file_of_many_vectors_does_not_fill_the_memory(tmp_path: Path) -> None:
    folder = encoded(tmp_path / "vectors")
    manifest = manifest_of(folder)
    manifest["shards"][0] |= {"texts": 1 << 30}
    write_manifest(folder, manifest)
    with pytest.raises(InvalidInputError, match="which no vectors of texts fit into"):
        read(folder)


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_a_shard_that_was_changed_is_encoded_again(tmp_path: Path, format: str) -> None:
    folder = encoded(tmp_path / "vectors", format)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = min(folder.glob(f"*.{format}"))
    path.write_bytes(before[path.name][:-9] + bytes([before[path.name][-9] ^ 1]) + before[path.name][-8:])
    encoded(folder, format)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_files_of_others_in_the_folder_stay(tmp_path: Path) -> None:
    folder = encoded(tmp_path / "vectors")
    others = [folder / name for name in ("mine.parquet", "notes.jsonl", "a.npy")]
    for path in others:
        path.write_text("mine")
    (folder / "b.npy").mkdir()
    (folder / ".draft-link").symlink_to(tmp_path)
    encoded(folder, shard_size=2)
    assert all(path.read_text() == "mine" for path in others)
    assert len(list(folder.glob("0*.parquet"))) == 3


def test_a_vector_that_is_not_finite_is_never_kept(tmp_path: Path) -> None:
    class Broken(FakeEncoder):
        def encode_document(self, inputs: Any, **options: Any) -> Any:
            vectors = super().encode_document(inputs, **options)
            vectors[["text 4" in text for text in inputs]] = np.nan
            return vectors

    with pytest.raises(InvalidInputError, match="a vector that is not finite for '5'"):
        encode_corpus(Broken(), TEXTS, tmp_path / "vectors", shard_size=3)
    assert len(list((tmp_path / "vectors").glob("*.parquet"))) == 1
