"""Texts, metadata and the manifest in SQLite. Its COMMIT is the one commit point of a store.

A change first writes the vectors to a new segment file and flushes it (segments.py), then one SQLite transaction
inserts and deletes rows and replaces the manifest, which lists the segment files with their size and sha256. So after
a crash

  * before the COMMIT reached the disk: SQLite drops the torn tail of its write-ahead log (every frame has a checksum),
    the old manifest counts, and the new file is named by nothing: ignored by readers, removed by the next writer;
  * after it: everything is there, because the segment was on the disk before.

Files are never changed after a manifest named them. The write-ahead log also gives readers their isolation: a reader
holds one read transaction, and goes on seeing the rows that belong to the segments it opened.

SQLite keeps no checksums of its own pages, so each row carries one of its content, and the manifest carries the number
of rows and the XOR of those: an edited row, a row too many and a row too few are all seen.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from faiss_llm2vec import filters
from faiss_llm2vec.filters import FieldRows, Ids
from faiss_llm2vec.records import Documents
from faiss_llm2vec.segments import Entry, File
from st_llm2vec.errors import StoreCorruptedError, StoreError, StoreNotFoundError

FORMAT = 1
_BATCH = 10_000  # bound values per statement; SQLite allows 32,766
_COLUMNS = "docid, id, text, metadata, checksum"

_SCHEMA = f"""
CREATE TABLE docs (docid INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, text TEXT NOT NULL, metadata TEXT NOT NULL,
                   checksum INTEGER NOT NULL);
{filters.SCHEMA};
CREATE TABLE manifest (only INTEGER PRIMARY KEY CHECK (only = 1), json TEXT NOT NULL, checksum INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Manifest:
    """What a store is and which files belong to it; replaced as a whole by every commit."""

    kind: str
    metric: str
    dimension: int | None = None  # unknown until the first vector
    truncate_dim: int | None = None  # vectors are cut to their first so many numbers
    model_dimension: int | None = None  # before the cut
    fingerprint: str | None = None  # of the model; None for a store of bare vectors
    prompts: dict[str, Any] | None = None
    pooling: str | None = None
    format: int = FORMAT
    generation: int = 0  # one more with every commit
    next_id: int = 0  # ids are never reused
    next_segment: int = 1
    count: int = 0  # rows of `docs`
    digest: int = 0  # XOR of their checksums
    segments: list[Entry] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        fields = json.loads(text)
        fields["segments"] = [
            Entry(
                rows=entry["rows"],
                vectors=File(**entry["vectors"]),
                index=File(**entry["index"]) if entry["index"] else None,
            )
            for entry in fields["segments"]
        ]
        return cls(**fields)


class Row(NamedTuple):
    """One document as stored."""

    docid: int
    id: str
    text: str
    metadata: str  # JSON object
    checksum: int

    @property
    def sound(self) -> bool:
        try:
            return self.checksum == _integer(_row_digest(*self[:4]))
        except TypeError:  # damage made a column NULL or a number
            return False


def _row_digest(docid: int, id: str, text: str, metadata: str) -> bytes:
    content = f"{docid} {len(id)} {len(text)} {id}{text}{metadata}"
    return hashlib.blake2b(content.encode(), digest_size=8).digest()


def checksum(*values: object) -> int:
    """64 bits over `values`: with the lengths in front, no two lists of values are the same text."""
    parts = [value if isinstance(value, str) else repr(value) for value in values]
    content = f"{[*map(len, parts)]}{''.join(parts)}"
    return _integer(hashlib.blake2b(content.encode(), digest_size=8).digest())


def _integer(digest: bytes) -> int:
    """64 bits of BLAKE2b, as SQLite's signed integer."""
    return int.from_bytes(digest, "little", signed=True)


class Database:
    """An open `store.db`."""

    def __init__(self, path: Path, sql: sqlite3.Connection) -> None:
        self.path = path
        self.sql = sql

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> None:
        """Writes a new database file, complete and on the disk on return."""
        with _named(path):
            sql = _connect(str(path))
            sql.execute("PRAGMA page_size = 16384")  # texts are longer than rows of numbers
            sql.execute("PRAGMA journal_mode = WAL")
            sql.execute("PRAGMA synchronous = FULL")
            sql.executescript(f"BEGIN; {_SCHEMA}")
            _set_manifest(sql, manifest)
            sql.execute("COMMIT")
            sql.close()

    @classmethod
    def open(cls, path: Path) -> Database:
        """Opens a database, its content frozen as it is now until `thaw`.

        Raises:
            StoreNotFoundError: There is no such file.
            StoreCorruptedError: SQLite cannot read it.
        """
        if not path.is_file():
            if (path.parent / "segments").is_dir():
                raise StoreCorruptedError(f"{path} is missing; without it the segments beside it cannot be read.")
            raise StoreNotFoundError(
                f"{path.parent} is no store. Make one with FaissStore.create({str(path.parent)!r})."
            )
        log = path.with_name(path.name + "-wal")
        with _named(path):
            sql = _connect(f"{path.absolute().as_uri()}?mode=rw")
            try:
                sql.execute("BEGIN")
                sql.execute("SELECT checksum FROM manifest").fetchone()
            except sqlite3.OperationalError:
                # A write-ahead log needs a folder that can be written, unless the last writer left none behind.
                sql.close()
                if log.exists() and log.stat().st_size:
                    raise
                sql = _connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
                sql.execute("BEGIN")
            except BaseException:
                sql.close()
                raise
            sql.execute("PRAGMA cache_size = -65536")  # KiB; the default 2 MiB is far below the table of fields
            return cls(path, sql)

    @classmethod
    def in_memory(cls, path: Path, manifest: Manifest, rows: Iterable[Row]) -> Database:
        """A copy of what is left of the database at `path`, for a store opened with recover=True."""
        sql = _connect(":memory:")
        sql.executescript(_SCHEMA)
        _set_manifest(sql, manifest)
        database = cls(path, sql)
        kept = list(rows)
        documents = Documents(
            ids=[row.id for row in kept],
            texts=[row.text for row in kept],
            metadata=[row.metadata for row in kept],
            fields=_field_rows(kept),
        )
        database._insert([row.docid for row in kept], documents)
        return database

    def manifest(self) -> Manifest:
        """The current manifest.

        Raises:
            StoreCorruptedError: It was damaged or edited.
            StoreError: It was written by a newer version of this package.
        """
        with _named(self.path):
            rows = self.sql.execute("SELECT json, checksum FROM manifest").fetchall()
        if len(rows) != 1 or checksum(rows[0][0]) != rows[0][1]:
            raise StoreCorruptedError(f"{self.path}: the manifest is damaged or was edited.")
        if (found := json.loads(rows[0][0]).get("format")) != FORMAT:
            raise StoreError(f"{self.path} has format {found}, this version reads {FORMAT}: upgrade st-llm2vec.")
        return Manifest.from_json(rows[0][0])

    def thaw(self) -> None:
        """Leaves the frozen view for the current one."""
        with _named(self.path):
            if self.sql.in_transaction:
                self.sql.execute("ROLLBACK")
            self.sql.execute("PRAGMA synchronous = FULL")  # COMMIT returns when the disk has it

    def commit(
        self, manifest: Callable[[], Manifest], *, remove: Sequence[int], docids: Sequence[int], insert: Documents
    ) -> Manifest:
        """Publishes a change, all or nothing, durable on return.

        Args:
            manifest: returns what shall hold, but for `generation`, `count` and `digest`, which are worked out here.
                Called last: what it names has to be on the disk when it returns.
            remove: ids of documents to delete.
            docids, insert: documents to insert, and their ids; they may reuse ids in `remove`.
        """
        with _named(self.path):
            self.sql.execute("BEGIN IMMEDIATE")
            try:
                removed = self.rows(remove)
                self._remove(removed)
                digest = self._insert(docids, insert)
                for row in removed:
                    digest ^= row.checksum
                wanted = manifest()
                committed = replace(
                    wanted,
                    generation=wanted.generation + 1,
                    count=wanted.count - len(removed) + len(insert),
                    digest=wanted.digest ^ digest,
                )
                _set_manifest(self.sql, committed)
                self.sql.execute("COMMIT")
            except BaseException:
                if self.sql.in_transaction:
                    self.sql.execute("ROLLBACK")
                raise
        return committed

    def rows(self, docids: Sequence[int]) -> list[Row]:
        """The documents with these ids, in their order.

        Raises:
            StoreCorruptedError: One is missing, damaged or was edited.
        """
        found = {row.docid: row for row in self._where_in("docid", [int(docid) for docid in docids])}
        for docid in docids:
            if docid not in found:
                raise StoreCorruptedError(f"{self.path}: document {docid} is missing.")
            if not found[docid].sound:
                raise StoreCorruptedError(
                    f"{self.path}: document {found[docid].id!r} (row {docid}) is damaged or was edited. "
                    "FaissStore.open(path, recover=True) serves the others."
                )
        return [found[docid] for docid in docids]

    def docids(self, ids: Sequence[str]) -> dict[str, int]:
        """The ids of those of `ids` that exist."""
        return {row.id: row.docid for row in self._where_in("id", ids)}

    def matching(self, where: Any, everything: Callable[[], Ids] | None = None) -> Ids:
        """Ids of the documents that match a filter, ascending.

        Args:
            everything: returns the ids of all documents, ascending, if the caller has them.
        """
        with _named(self.path):
            return filters.matching(self.sql, where, everything or self._docids)

    def _docids(self) -> Ids:
        return np.sort(np.fromiter((docid for (docid,) in self.sql.execute("SELECT docid FROM docs")), dtype=np.int64))

    def everything(self) -> Iterator[Row]:
        """All documents by ascending id, unchecked."""
        with _named(self.path):
            yield from map(Row._make, self.sql.execute(f"SELECT {_COLUMNS} FROM docs ORDER BY docid"))  # noqa: S608

    def live(self, manifest: Manifest) -> Ids:
        """Ids of all documents, ascending, having checked that none was added or taken away behind the manifest.

        Raises:
            StoreCorruptedError: The rows are not those of the manifest.
        """
        with _named(self.path):
            rows = self.sql.execute("SELECT docid, checksum FROM docs ORDER BY docid")
            pairs = np.fromiter(rows, dtype=np.dtype((np.int64, 2)))
        if len(pairs) != manifest.count or int(np.bitwise_xor.reduce(pairs[:, 1])) != manifest.digest:
            raise StoreCorruptedError(
                f"{self.path} holds {len(pairs)} documents that are not the {manifest.count} that were written."
            )
        return np.ascontiguousarray(pairs[:, 0])

    def check_pages(self, *, thorough: bool) -> None:
        """Lets SQLite check the structure of its file.

        Raises:
            StoreCorruptedError: It is damaged.
        """
        with _named(self.path):
            pragma = "integrity_check" if thorough else "quick_check"
            if (answer := self.sql.execute(f"PRAGMA {pragma}(1)").fetchone()[0]) != "ok":
                raise StoreCorruptedError(f"{self.path}: {answer}")

    def damage(self, manifest: Manifest) -> list[str]:
        """Reads everything and returns what is wrong with it."""
        problems = []
        count = digest = expected = 0
        try:
            self.check_pages(thorough=True)
            for row in self.everything():
                count, digest = count + 1, digest ^ row.checksum
                if not row.sound:
                    problems.append(f"{self.path}: document {row.id!r} (row {row.docid}) is damaged or was edited.")
                    continue
                for entry in filters.field_rows(json.loads(row.metadata)):
                    expected ^= checksum(*entry, row.docid)
            for entry in self.sql.execute("SELECT field, type, value, docid FROM fields"):
                expected ^= checksum(*entry)
        except (StoreCorruptedError, sqlite3.Error) as error:
            return [*problems, str(error)]
        if (count, digest) != (manifest.count, manifest.digest):
            problems.append(f"{self.path}: {count} documents that are not the {manifest.count} that were written.")
        if expected and not problems:
            problems.append(f"{self.path}: the table of fields does not agree with the metadata; filters are not safe.")
        return problems

    def salvage(self) -> Iterator[Row]:
        """All documents that can still be read and are what was written; reads around damaged pages."""
        found: set[int] = set()
        for order in ("ASC", "DESC"):
            with suppress(sqlite3.DatabaseError):  # a damaged page: go on from the other end, up to it
                for values in self.sql.execute(f"SELECT {_COLUMNS} FROM docs ORDER BY docid {order}"):  # noqa: S608
                    row = Row._make(values)
                    if row.docid not in found and row.sound:
                        found.add(row.docid)
                        yield row

    def vacuum(self) -> None:
        """Gives the space of deleted documents back, if the disk has room for a copy meanwhile."""
        with suppress(sqlite3.OperationalError):
            self.sql.execute("VACUUM")

    def close(self) -> None:
        self.sql.close()

    def _where_in(self, column: str, values: Sequence[Any]) -> Iterator[Row]:
        with _named(self.path):
            for start in range(0, len(values), _BATCH):
                part = values[start : start + _BATCH]
                marks = ", ".join("?" * len(part))
                # Only names of ours and question marks go into the text.
                query = f"SELECT {_COLUMNS} FROM docs WHERE {column} IN ({marks})"  # noqa: S608
                yield from map(Row._make, self.sql.execute(query, part))

    def _insert(self, docids: Sequence[int], documents: Documents) -> int:
        """Returns the XOR of the checksums."""
        columns = docids, documents.ids, documents.texts, documents.metadata
        checksums = np.frombuffer(b"".join(map(_row_digest, *columns)), dtype="<i8")
        rows = zip(*columns, checksums.tolist(), strict=True)
        self.sql.executemany("INSERT INTO docs VALUES (?, ?, ?, ?, ?)", rows)
        self.sql.executemany("INSERT INTO fields VALUES (?, ?, ?, ?)", _with_docids(docids, documents.fields))
        return int(np.bitwise_xor.reduce(checksums))

    def _remove(self, rows: Sequence[Row]) -> None:
        self.sql.executemany("DELETE FROM docs WHERE docid = ?", ((row.docid,) for row in rows))
        self.sql.executemany(
            "DELETE FROM fields WHERE field = ? AND type = ? AND value = ? AND docid = ?",
            _with_docids([row.docid for row in rows], _field_rows(rows)),
        )


def _set_manifest(sql: sqlite3.Connection, manifest: Manifest) -> None:
    text = json.dumps(asdict(manifest))
    sql.execute("INSERT OR REPLACE INTO manifest VALUES (1, ?, ?)", (text, checksum(text)))


def _field_rows(rows: Iterable[Row]) -> list[FieldRows]:
    return [filters.field_rows(json.loads(row.metadata)) for row in rows]


def _with_docids(docids: Iterable[int], fields: Iterable[FieldRows]) -> list[tuple[str, str, Any, int]]:
    # Sorted, so that inserting walks the primary key once instead of jumping about in it.
    return sorted(
        (field, type, value, docid)
        for docid, entries in zip(docids, fields, strict=True)
        for field, type, value in entries
    )


def _connect(target: str) -> sqlite3.Connection:
    # isolation_level=None: transactions begin and end where we say. Threads take turns by the store's own lock.
    return sqlite3.connect(target, uri=True, isolation_level=None, check_same_thread=False, timeout=30)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into the store's, with the name of the file."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if str(error).startswith("no such"):
            raise StoreCorruptedError(f"{path}: {error}; it is not the database of a store.") from error
        if str(error).startswith("Could not decode"):
            raise StoreCorruptedError(f"{path} is damaged or was edited: {error}") from error
        # No damage: disk full, no permission, busy.
        raise StoreError(f"{path}: {error}. Nothing was changed.") from error
    except sqlite3.DatabaseError as error:
        raise StoreCorruptedError(f"{path}: {error}") from error
