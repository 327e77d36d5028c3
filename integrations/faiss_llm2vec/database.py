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

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from faiss_llm2vec import connections, files, filters, lexical
from faiss_llm2vec.connections import named
from faiss_llm2vec.filters import Ids
from faiss_llm2vec.manifest import FORMAT, READABLE, Manifest
from faiss_llm2vec.records import Documents
from faiss_llm2vec.rows import Row, checksum, row_digest, with_docids
from st_llm2vec.errors import StoreCorruptedError, StoreError, StoreNotFoundError

_BATCH = 900  # bound values per statement; SQLite before 3.32 allows 999
_LEAST_ROW = 16  # bytes that a document takes in the file, at the very least
# Up to this size, SQLite's structure is checked even by mmap=True: a crafted tree could have rows without end.
_QUICKLY_CHECKED = 1 << 26
COLUMNS = "docid, id, text, metadata, checksum"


class Database:
    """An open `store.db`, its content frozen as of one moment but for changes between `begin` and `commit`.

    Attributes:
        private: whether this is a copy in memory or on a private disk file, which no change reaches.
    """

    def __init__(self, path: Path, sql: sqlite3.Connection, found: tuple[int, int] | None = None) -> None:
        self.path = path
        self.sql = sql
        self.private = found is None
        self.closed = False
        self._found = found  # device and inode of the file

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> None:
        """Writes a new database file, complete and on the disk on return."""
        with named(path):
            sql = connections.connect(path, "rwc")
            sql.execute("PRAGMA page_size = 16384")  # texts are longer than rows of numbers
            sql.execute("PRAGMA journal_mode = WAL")
            sql.execute("PRAGMA synchronous = FULL")  # COMMIT returns when the disk has it
            sql.executescript(f"BEGIN; {connections.SCHEMA}")
            _set_manifest(sql, manifest)
            sql.execute("COMMIT")
            sql.close()

    @classmethod
    def open(cls, path: Path) -> Database:
        """Opens a database, its content frozen as it is now.

        Raises:
            StoreNotFoundError: There is no such file.
            StoreCorruptedError: SQLite cannot read it, or it has other tables than those of a store.
        """
        if files.regular(path) is None:
            if files.folder(path.parent / "segments") and any((path.parent / "segments").iterdir()):
                raise StoreCorruptedError(f"{path} is missing; without it the segments beside it cannot be read.")
            raise StoreNotFoundError(
                f"{path.parent} is no store. Make one with FaissStore.create({str(path.parent)!r})."
            )
        sql, found = connections.open_frozen(path)
        database = cls(path, sql, found)
        try:
            connections.check_schema(path, sql)
        except BaseException:
            database.close()
            raise
        return database

    @classmethod
    def in_memory(cls, path: Path, manifest: Manifest, rows: Iterable[Row]) -> Database:
        """A copy of what is left of the database at `path`, for a store opened with recover=True."""
        sql = connections.connect(None)
        sql.executescript(connections.SCHEMA)
        _set_manifest(sql, manifest)
        database = cls(path, sql)
        kept = list(rows)
        documents = Documents(
            ids=[row.id for row in kept],
            texts=[row.text for row in kept],
            metadata=[row.metadata for row in kept],
            fields=[row.fields for row in kept],
        )
        database._insert([row.docid for row in kept], documents)
        return database

    def manifest(self) -> Manifest:
        """The current manifest.

        Raises:
            StoreCorruptedError: It was damaged or edited.
            StoreError: It was written by a newer version of this package.
        """
        with named(self.path):
            rows = self.sql.execute("SELECT json, checksum FROM manifest LIMIT 2").fetchall()
        if len(rows) != 1 or not isinstance(rows[0][0], str) or checksum(rows[0][0]) != rows[0][1]:
            raise StoreCorruptedError(f"{self.path}: the manifest is damaged or was edited.")
        if (found := _format(rows[0][0])) not in READABLE:
            raise StoreError(f"{self.path} has format {found!s:.20}, and this version {FORMAT}: upgrade st-llm2vec.")
        try:
            manifest = Manifest.from_json(rows[0][0])
        except ValueError as error:
            raise StoreCorruptedError(f"{self.path}: the manifest is not what a store writes: {error}.") from error
        if manifest.count > self.most_rows:
            raise StoreCorruptedError(f"{self.path} is too small for the {manifest.count} documents of its manifest.")
        return manifest

    def _bytes(self) -> int:
        pages, size = (self.sql.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        return int(pages * size)

    def in_place(self) -> bool:
        """Whether the file at the path is still the one that was opened."""
        status = files.regular(self.path)
        return status is not None and files.identity(status) == self._found

    def log_size(self) -> int:
        """Bytes of the write-ahead log."""
        with suppress(OSError):
            return os.stat(f"{self.path}-wal").st_size
        return 0

    def empty_log(self) -> None:
        """Has SQLite move the log into the database, as far as readers let it, so that the next writer begins it anew.

        Done just before a state is frozen, that state needs no log, and keeps it from growing only until it is left.
        """
        with suppress(sqlite3.OperationalError):  # a reader that may not write
            self._leave()
            self.sql.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def keep_a_copy(self) -> None:
        """Copies what is seen to a disk file without a name, and leaves the shared file alone from then on."""
        with named(self.path):
            copy = connections.copied(self.sql)
        self.sql.close()
        self.sql, self.private = copy, True

    def freeze(self) -> Manifest:
        """Freezes the content as it is now, and returns the manifest."""
        if not self.private:
            with named(self.path):
                self._leave()
                self.sql.execute("BEGIN")
        return self.manifest()

    def begin(self) -> Manifest:
        """Leaves the frozen view for the newest one, which nobody else can change until `commit` or `freeze`."""
        with named(self.path):
            self._leave()
            self.sql.execute("BEGIN IMMEDIATE")
        return self.manifest()

    def _leave(self) -> None:
        if self.sql.in_transaction:
            self.sql.execute("ROLLBACK")

    def commit(
        self, manifest: Callable[[], Manifest], *, remove: Sequence[int], docids: Sequence[int], insert: Documents
    ) -> Manifest:
        """Publishes a change after `begin`, all or nothing, durable on return.

        Args:
            manifest: returns what shall hold, but for `generation`, `count` and `digest`, which are worked out here.
                Called last: what it names has to be on the disk when it returns.
            remove: ids of documents to delete.
            docids, insert: documents to insert, and their ids; they may reuse ids in `remove`.
        """
        with named(self.path):
            removed = self.rows(remove)
            self._remove(removed)
            digest = self._insert(docids, insert)
            for row in removed:
                digest ^= row.checksum
            wanted = manifest()
            committed = replace(
                wanted,
                format=FORMAT,
                generation=wanted.generation + 1,
                count=wanted.count - len(removed) + len(insert),
                digest=wanted.digest ^ digest,
            )
            _set_manifest(self.sql, committed)
            self.sql.execute("COMMIT")
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
        with named(self.path):
            return filters.matching(self.sql, where, everything or self._docids)

    def _docids(self) -> Ids:
        return np.sort(np.fromiter((docid for (docid,) in self.sql.execute("SELECT docid FROM docs")), dtype=np.int64))

    def everything(self) -> Iterator[Row]:
        """All documents by ascending id, unchecked."""
        with named(self.path):
            yield from map(Row._make, self.sql.execute(f"SELECT {COLUMNS} FROM docs ORDER BY docid"))  # noqa: S608

    def live(self, manifest: Manifest) -> Ids:
        """Ids of all documents, ascending, having checked that none was added or taken away behind the manifest.

        Raises:
            StoreCorruptedError: The rows are not those of the manifest.
        """
        with named(self.path):
            # One more than there should be is enough to know.
            query = "SELECT docid, checksum FROM docs ORDER BY docid LIMIT ?"
            rows = self.sql.execute(query, (manifest.count + 1,))
            try:
                pairs = np.fromiter(rows, dtype=np.dtype((np.int64, 2)))
            except (TypeError, ValueError, OverflowError):
                raise StoreCorruptedError(f"{self.path}: a checksum of a document is no whole number.") from None
        if len(pairs) != manifest.count or int(np.bitwise_xor.reduce(pairs[:, 1])) != manifest.digest:
            raise StoreCorruptedError(
                f"{self.path} holds {len(pairs)} documents that are not the {manifest.count} that were written."
            )
        return np.ascontiguousarray(pairs[:, 0])

    @property
    def most_rows(self) -> int:
        """More documents than this are not in a file of this size."""
        return self._bytes() // _LEAST_ROW

    @property
    def small(self) -> bool:
        return self._bytes() <= _QUICKLY_CHECKED

    def check_pages(self, *, thorough: bool) -> None:
        """Lets SQLite check the structure of its file.

        Raises:
            StoreCorruptedError: It is damaged.
        """
        with named(self.path):
            pragma = "integrity_check" if thorough else "quick_check"
            if (answer := self.sql.execute(f"PRAGMA {pragma}(1)").fetchone()[0]) != "ok":
                raise StoreCorruptedError(f"{self.path}: {answer}")

    def vacuum(self) -> None:
        """Gives the space of deleted documents back, if the disk has room for a copy meanwhile."""
        with suppress(sqlite3.OperationalError):
            if lexical.exists(self.sql):
                lexical.optimize(self.sql)
            self.sql.execute("VACUUM")

    def close(self) -> None:
        self.closed = True
        self.sql.close()

    def _where_in(self, column: str, values: Sequence[Any]) -> Iterator[Row]:
        with named(self.path):
            for start in range(0, len(values), _BATCH):
                part = values[start : start + _BATCH]
                marks = ", ".join("?" * len(part))
                # Only names of ours and question marks go into the text.
                query = f"SELECT {COLUMNS} FROM docs WHERE {column} IN ({marks})"  # noqa: S608
                yield from map(Row._make, self.sql.execute(query, part))

    def _insert(self, docids: Sequence[int], documents: Documents) -> int:
        """Returns the XOR of the checksums."""
        columns = docids, documents.ids, documents.texts, documents.metadata
        checksums = np.frombuffer(b"".join(map(row_digest, *columns)), dtype="<i8")
        rows = zip(*columns, checksums.tolist(), strict=True)
        self.sql.executemany("INSERT INTO docs VALUES (?, ?, ?, ?, ?)", rows)
        self.sql.executemany("INSERT INTO fields VALUES (?, ?, ?, ?)", with_docids(docids, documents.fields))
        if lexical.exists(self.sql):
            lexical.add(self.sql, docids, documents.texts)
        return int(np.bitwise_xor.reduce(checksums))

    def _remove(self, rows: Sequence[Row]) -> None:
        if lexical.exists(self.sql):
            lexical.remove(self.sql, ((row.docid, row.text) for row in rows))
        self.sql.executemany("DELETE FROM docs WHERE docid = ?", ((row.docid,) for row in rows))
        self.sql.executemany(
            "DELETE FROM fields WHERE field = ? AND type = ? AND value = ? AND docid = ?",
            with_docids([row.docid for row in rows], [row.fields for row in rows]),
        )


def _format(text: str) -> str | int:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return FORMAT  # for from_json to say what is wrong
    found = found.get("format", FORMAT) if isinstance(found, dict) else FORMAT
    return found if isinstance(found, int) else repr(found)


def _set_manifest(sql: sqlite3.Connection, manifest: Manifest) -> None:
    text = json.dumps(asdict(manifest))
    sql.execute("INSERT OR REPLACE INTO manifest VALUES (1, ?, ?)", (text, checksum(text)))
