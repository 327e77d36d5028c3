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
from .ingestion import MANIFEST, Passage, Passages, is_shard_name
from .readers import require_pyarrow
from .shard_files import (
    embeddings,
    entry_of,
    is_as_listed,
    is_there,
    read_manifest,
    require_vectors,
    rows_of,
    write_npy,
    write_parquet,
)

FORMATS = ("parquet", "npy")


class Embed(Protocol):
    """Passages to their vectors; `total` is what is to be encoded in all."""

    total: int

    def each(
        self, batches: Iterable[tuple[Any, list[Passage]]], *, ordered: bool
    ) -> Iterator[tuple[Any, list[Passage], Any]]: ...


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
        self._found: dict[str, bool] = {}  # whether a shard was there when this run began
        manifest = manifest_of(folder)
        if manifest is None:
            return
        found = {name: manifest.get(name) for name in setting}
        if found == setting:
            self.listed = manifest["shards"]
        elif working:
            shutil.rmtree(folder)
        else:
            name = next(name for name in setting if found[name] != setting[name])
            what = "another model" if name == "fingerprint" else f"{name}={found[name]!r}, not {name}={setting[name]!r}"
            raise InvalidInputError(f"{folder} holds vectors made with {what}. Choose another folder, or remove it.")

    def write(self, passages: Passages, embed: Embed, shard_size: int) -> list[dict[str, Any]]:
        """Write the shards that are not there yet, each as soon as it is encoded.

        Returns:
            What the manifest says of each: its file, counts and hashes.
        """
        if read_manifest(self.folder) is None:
            self._publish_manifest(shards=[], complete=False)
        for draft in self.folder.glob(DRAFTS):  # of a run that was killed
            if draft.is_dir() and not draft.is_symlink():
                shutil.rmtree(draft)
        write = write_parquet if self.setting["format"] == "parquet" else write_npy
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

        for (name, batch, places), _, new in embed.each(fresh(), ordered=False):
            write(self.folder / name, batch, known.filled(new, places) if known else new, schema)
            entries[name] = self._entry(name, len(batch))
        return [entries.get(name) or self._entry(name, counts[name]) for name in names]

    def finish(self, entries: list[dict[str, Any]]) -> None:
        """Publish the manifest, then remove the files that it does not list."""
        self._publish_manifest(shards=entries, complete=True)
        listed = {entry["file"] for entry in entries}
        for path in self.folder.iterdir():
            shard = path.with_suffix(self.ending).name if path.suffix in (".parquet", ".npy", ".jsonl") else ""
            if is_shard_name(shard) and shard not in listed and path.is_file():  # what others put there is theirs
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
        """Whether a shard is there and, if a manifest lists it, as it was written."""
        if name not in self._found:
            listed = [entry for entry in self.listed if entry["file"] == name]
            path = self.folder / name
            self._found[name] = is_as_listed(path, listed[0]) if listed else is_there(path)
        return self._found[name]

    def _entry(self, name: str, texts: int) -> dict[str, Any]:
        entry = next((entry for entry in self.listed if entry["file"] == name and self._found.get(name)), None)
        if entry is None:
            entry = entry_of(self.folder / name, texts)
            require_vectors(self.folder / name, entry)
        return entry

    def _known(self) -> Known | None:
        """The vectors of the last complete run, by what they depend on; None where there was none."""
        there = [entry for entry in self.listed if self._is_there(entry["file"])]
        for entry in there:
            require_vectors(self.folder / entry["file"], entry)
        return Known(self.folder, [entry["file"] for entry in there]) if there else None

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


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder of shards; None of one that is new or empty.

    Raises:
        InvalidInputError: It is a file, or a folder that holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{folder} is a file. Give a folder, or a file that ends in .parquet or .npy.")
    manifest = read_manifest(folder)
    if manifest is None and folder.is_dir() and any(not path.match(DRAFTS) for path in folder.iterdir()):
        raise InvalidInputError(f"{folder} has files in it, and no {MANIFEST}: choose a new or empty folder.")
    return manifest


class Known:
    """Vectors of shards that are there, by what they depend on."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._paths = [folder / name for name in names]
        self._sql = sqlite3.connect("")
        self._sql.execute("CREATE TABLE known (hash BLOB PRIMARY KEY, shard INTEGER, place INTEGER) WITHOUT ROWID")
        for shard, path in enumerate(self._paths):
            rows = ((hash_of(passage.content), shard, place) for place, passage in enumerate(rows_of(path)))
            self._sql.executemany("INSERT OR IGNORE INTO known VALUES (?, ?, ?)", rows)

    def get(self, content: str) -> tuple[int, int] | None:
        """The shard and the place of a vector."""
        found: tuple[int, int] | None = self._sql.execute(
            "SELECT shard, place FROM known WHERE hash = ?", (hash_of(content),)
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


def hash_of(text: str) -> bytes:
    """Return 16 bytes that stand for a text where texts are looked up."""
    return hashlib.sha256(text.encode()).digest()[:16]
