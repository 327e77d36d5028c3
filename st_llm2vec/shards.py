"""A folder of shards of vectors, each complete or not there, and a manifest.json with counts, hashes and settings.

The name of a shard holds a hash of what it is made of, so a run that was killed goes on where it was, and leaves what
an undisturbed run leaves, byte for byte. Once the manifest lists all shards, the files of an earlier state are removed;
until then, texts that did not change take their vectors from them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .atomic import DRAFTS, published
from .errors import InvalidInputError
from .ingestion import Passage, Passages
from .readers import require_pyarrow

MANIFEST = "manifest.json"
FORMATS = ("parquet", "npy")
COLUMNS = ("id", "text", "embedding")  # of a shard, beside the metadata
Schema = list[tuple[str, str, bool]]  # of the metadata: name, type, whether it comes in lists


class Embed(Protocol):
    """Passages to their vectors; `total` is what is to be encoded in all."""

    total: int

    def each(self, batches: Iterable[tuple[Any, list[Passage]]]) -> Iterator[tuple[Any, list[Passage], Any]]: ...


class Shards:
    """A folder of shards and its manifest.

    Args:
        folder: Where they are.
        setting: What the vectors depend on beside the texts.
        about: What the manifest says beside it.
        working: The folder is ours alone, and of no use to others: what is in it may go.

    Raises:
        InvalidInputError: The folder holds something else, or vectors of another model or setting.
    """

    def __init__(
        self, folder: Path, setting: dict[str, Any], about: dict[str, Any] | None = None, *, working: bool = False
    ) -> None:
        self.folder, self.setting, self.about = folder, setting, about or {}
        self.ending = "." + setting["format"]
        self.listed: list[dict[str, Any]] = []  # shards of the last run that came to its end
        if folder.exists() and not folder.is_dir():
            raise InvalidInputError(f"{folder} is a file. Give a folder, or a file that ends in .parquet or .npy.")
        manifest = read_manifest(folder)
        others = folder.is_dir() and any(not path.match(DRAFTS) for path in folder.iterdir())
        if manifest is None and others:
            raise InvalidInputError(f"{folder} has files in it, and no {MANIFEST}: choose a new or empty folder.")
        if manifest is None:
            return
        found = {name: manifest.get(name) for name in setting}
        if found == setting:
            self.listed = manifest["shards"]
        elif working:
            shutil.rmtree(folder)
        else:
            name = next(name for name in setting if found[name] != setting[name])
            what = "another model" if name == "fingerprint" else f"{name} {found[name]!r}, and not {setting[name]!r}"
            raise InvalidInputError(f"{folder} holds vectors of {what}. Choose another folder, or remove it.")

    def write(self, passages: Passages, embed: Embed, shard_size: int) -> list[dict[str, Any]]:
        """Write the shards that are not there yet.

        Returns:
            What the manifest says of each: its file, counts and hashes.
        """
        if read_manifest(self.folder) is None:
            self._publish_manifest(shards=[], complete=False)
        for draft in self.folder.glob(DRAFTS):  # of a run that was killed
            shutil.rmtree(draft)
        write = _write_parquet if self.setting["format"] == "parquet" else _write_npy
        schema = [(name, *passages.type_of(name)) for name in passages.fields]
        names = []
        for number, batch in enumerate(passages.batches(shard_size)):
            name = f"{number:05}-{self._digest(batch, schema)}{self.ending}"
            names.append(name)
            embed.total += 0 if self._is_there(name) else len(batch)
        known = self._known() if embed.total else None
        entries, counts = {}, {}

        def fresh() -> Iterator[tuple[Any, list[Passage]]]:
            for name, batch in zip(names, passages.batches(shard_size), strict=True):
                counts[name] = len(batch)
                if self._is_there(name):
                    continue
                places = [known.get(passage.content) if known else None for passage in batch]
                new = [passage for passage, place in zip(batch, places, strict=True) if place is None]
                embed.total -= len(batch) - len(new)
                yield (name, batch, places), new

        for (name, batch, places), _, new in embed.each(fresh()):
            write(self.folder / name, batch, known.filled(new, places) if known else new, schema)
            entries[name] = self._entry(name, len(batch))
        return [entries.get(name) or self._entry(name, counts[name]) for name in names]

    def finish(self, entries: list[dict[str, Any]]) -> None:
        """Publish the manifest, then remove the files that it does not list."""
        self._publish_manifest(shards=entries, complete=True)
        listed = {entry["file"] for entry in entries}
        for path in self.folder.iterdir():
            if path.suffix in (".parquet", ".npy", ".jsonl") and path.with_suffix(self.ending).name not in listed:
                path.unlink()

    def _publish_manifest(self, **content: Any) -> None:
        shards = content["shards"]
        content |= {"texts": sum(entry["texts"] for entry in shards)}
        with published(self.folder / MANIFEST) as draft:
            draft.write_text(
                json.dumps({**self.setting, **self.about, **content}, indent=1, ensure_ascii=False), encoding="utf-8"
            )

    def _digest(self, batch: list[Passage], schema: Any) -> str:
        digest = hashlib.sha256(json.dumps([self.setting, schema], sort_keys=True).encode())
        for passage in batch:
            digest.update(json.dumps(passage[:3], ensure_ascii=False).encode())
        return digest.hexdigest()[:16]

    def _is_there(self, name: str) -> bool:
        try:
            size = (self.folder / name).stat().st_size
        except FileNotFoundError:
            return False
        return all(entry["bytes"] == size for entry in self.listed if entry["file"] == name)

    def _entry(self, name: str, texts: int) -> dict[str, Any]:
        known = next((entry for entry in self.listed if entry["file"] == name), None)
        if known is not None:
            return known
        path = self.folder / name
        sizes = {"texts": texts, "dimension": embeddings(path).shape[1], "bytes": path.stat().st_size}
        return {"file": name, **sizes, "sha256": sha256_of(path)}

    def _known(self) -> Known | None:
        """The vectors of the last complete run, by what they depend on; None where there was none."""
        there = [entry["file"] for entry in self.listed if self._is_there(entry["file"])]
        return Known(self.folder, there) if there else None

    def join(self, entries: list[dict[str, Any]], target: Path) -> None:
        """Publish all shards as one file, and remove the folder."""
        paths = [self.folder / entry["file"] for entry in entries]
        with published(target) as draft:
            if self.ending == ".npy":
                shape = (sum(entry["texts"] for entry in entries), entries[0]["dimension"])
                whole = np.lib.format.open_memmap(draft, mode="w+", dtype=np.float32, shape=shape)
                start = 0
                for path in paths:
                    part = embeddings(path)
                    whole[start : start + len(part)] = part
                    start += len(part)
                whole.flush()
            else:
                parquet = require_pyarrow().parquet
                with parquet.ParquetWriter(draft, parquet.read_schema(paths[0])) as writer:
                    for path in paths:
                        writer.write_table(parquet.read_table(path))
        shutil.rmtree(self.folder)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder of shards says of itself; None where it says nothing."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if isinstance(found["shards"], list) and all({"file", "bytes"} <= set(entry) for entry in found["shards"]):
            return dict(found)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise InvalidInputError(f"{folder / MANIFEST} is damaged. Remove it to encode the shards again.")


def sha256_of(path: Path) -> str:
    """The hash of a file, which is never held as a whole."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# -- the files of a shard ----------------------------------------------------------------------------------------------


def embeddings(path: Path) -> Any:
    """The vectors of a shard, float32 (texts, dimension)."""
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    column = require_pyarrow().parquet.read_table(path, columns=["embedding"])["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def rows_of(path: Path) -> list[Passage]:
    """The passages of a shard."""
    if path.suffix == ".npy":
        with path.with_suffix(".jsonl").open(encoding="utf-8") as file:
            return [Passage(**json.loads(line)) for line in file]
    parquet = require_pyarrow().parquet
    names = [name for name in parquet.read_schema(path).names if name not in COLUMNS]
    return [
        Passage(row.pop("id"), row.pop("text"), {name: value for name, value in row.items() if value is not None})
        for row in parquet.read_table(path, columns=["id", "text", *names]).to_pylist()
    ]


def _write_npy(path: Path, batch: list[Passage], vectors: Any, schema: Schema) -> None:
    with published(path.with_suffix(".jsonl")) as draft, draft.open("w", encoding="utf-8") as file:
        for id, text, fields, *_ in batch:
            file.write(json.dumps({"id": id, "text": text, "metadata": fields}, ensure_ascii=False) + "\n")
    with published(path) as draft, draft.open("wb") as file:
        np.save(file, vectors)


def _write_parquet(path: Path, batch: list[Passage], vectors: Any, schema: Schema) -> None:
    pa = require_pyarrow()
    types = {"text": pa.string(), "bool": pa.bool_(), "integer": pa.int64(), "number": pa.float64()}
    columns = {
        "id": pa.array([p.id for p in batch], pa.string()),
        "text": pa.array([p.text for p in batch], pa.string()),
    }
    for name, kind, lists in schema:
        values = [p.metadata.get(name) for p in batch]
        if lists:
            values = [value if isinstance(value, list) or value is None else [value] for value in values]
        columns[name] = pa.array(values, pa.list_(types[kind]) if lists else types[kind])
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    with published(path) as draft:
        pa.parquet.write_table(pa.table(columns), draft)


class Known:
    """Vectors of shards that are there, by what they depend on."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._paths = [folder / name for name in names]
        self._sql = sqlite3.connect("")
        self._sql.execute("CREATE TABLE known (hash BLOB PRIMARY KEY, shard INTEGER, place INTEGER) WITHOUT ROWID")
        for shard, path in enumerate(self._paths):
            rows = ((_hash(passage.content), shard, place) for place, passage in enumerate(rows_of(path)))
            self._sql.executemany("INSERT OR IGNORE INTO known VALUES (?, ?, ?)", rows)

    def get(self, content: str) -> tuple[int, int] | None:
        """The shard and the place of a vector."""
        found: tuple[int, int] | None = self._sql.execute(
            "SELECT shard, place FROM known WHERE hash = ?", (_hash(content),)
        ).fetchone()
        return found

    def filled(self, new: Any, places: list[tuple[int, int] | None]) -> Any:
        """New vectors, in their order, between those that have a place here."""
        if len(new) == len(places):
            return new
        old = self.vectors([place for place in places if place is not None])
        vectors = np.empty((len(places), old.shape[1]), dtype=np.float32)
        fresh = np.array([place is None for place in places])
        if fresh.any():
            vectors[fresh] = new
        vectors[~fresh] = old
        return vectors

    def vectors(self, places: list[tuple[int, int]]) -> Any:
        """The vectors at these places, float32 (places, dimension)."""
        order = sorted(range(len(places)), key=places.__getitem__)  # each shard is opened once
        found: Any = None
        for shard, group in groupby(order, lambda i: places[i][0]):
            vectors = embeddings(self._paths[shard])
            found = np.empty((len(places), vectors.shape[1]), dtype=np.float32) if found is None else found
            chosen = list(group)
            found[chosen] = vectors[[places[i][1] for i in chosen]]
        return found


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
