"""Checked passages, in a temporary database on the disk: memory stays flat, and what was checked is what is encoded.

The database (SQLite) lies in the system's temporary folder, without a name, and is gone when the process ends,
however it ends.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from ..errors import InvalidInputError
from .sources import Report

LATE = "late_chunk"  # field of the metadata: a hash of the document that a late chunk is read in, and its place there
_INSERT = "INSERT INTO passages (id, parent, place, text, metadata, document, start) VALUES (?, ?, ?, ?, ?, ?, ?)"
_SELECT = "SELECT n, id, text, metadata, document, start FROM passages WHERE n > ? ORDER BY n LIMIT ?"
_AT_ONCE = 32  # texts in memory
_KINDS = {str: "text", bool: "bool", int: "integer", float: "number"}


class Passage(NamedTuple):
    """A text to encode.

    Attributes:
        id, text, metadata: What it is called, what it says, and what is known about it.
        document, start: For late chunking, the document that it is read in, and its first character there.
        number: Its place in the database.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    document: str | None = None
    start: int = 0
    number: int = 0

    @property
    def content(self) -> str:
        """What its vector depends on."""
        return content_of(self.text, self.metadata)


def content_of(text: str, metadata: Mapping[str, Any]) -> str:
    """What the vector of a passage depends on, from what is stored of it: the text, and for late chunks the place."""
    return f"{metadata[LATE]} {text}" if metadata.get(LATE) else text


class Text(NamedTuple):
    """A row or a document as it was read, before it is split into passages.

    Attributes:
        name: The id of the row, or the name of the document.
        place: Where it is, for errors.
        pages: Their numbers, if they have any, and texts; a row is one page.
        metadata: What is known about it.
        document: It is a document rather than a row.
        marked: Its headings are marked as in Markdown.
    """

    name: str
    place: str
    pages: list[tuple[int | None, str]]
    metadata: dict[str, Any]
    document: bool = False
    marked: bool = False


class Passages:
    """Checked passages, in a temporary database. Made by `read_texts` and `split`; use it in a `with` block.

    Attributes:
        origin: What was read, for errors.
        report: What was passed over, and what else should be known.
        columns: Of the metadata, as they were read.
        fields: Of the metadata of passages, with the types of their values.
        cut: Texts that are longer than what the encoder reads.
        taken: Fields of documents that their chunks call something else, with their counts.
    """

    def __init__(self, report: Report, origin: str = "") -> None:
        self.report, self.origin = report, origin
        self.columns: set[str] = set()
        self.fields: dict[str, set[str]] = {}
        self.cut = 0
        self.taken: Counter[str] = Counter()
        self.sql = sqlite3.connect("")
        self.sql.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE passages (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, parent TEXT NOT NULL,"
            " place TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL,"
            " document INTEGER, start INTEGER NOT NULL);"
            "CREATE TABLE documents (n INTEGER PRIMARY KEY, text TEXT NOT NULL);"
            "CREATE TABLE texts (n INTEGER PRIMARY KEY, id TEXT UNIQUE, place TEXT NOT NULL, content TEXT NOT NULL);"
        )

    def __enter__(self) -> Passages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sql.close()

    def __len__(self) -> int:
        count: int = self.sql.execute("SELECT count(*) FROM passages").fetchone()[0]
        return count

    @property
    def characters(self) -> int:
        """Of all texts."""
        found: int = self.sql.execute("SELECT coalesce(sum(length(text)), 0) FROM passages").fetchone()[0]
        return found

    @property
    def mixed(self) -> list[str]:
        """Fields with values of several types, which are given as texts."""
        return sorted(name for name, types in self.fields.items() if len(_kinds(types)) > 1)

    def type_of(self, name: str) -> tuple[str, bool]:
        """What the values of a field are ("text", "bool", "integer" or "number"), and whether they come in lists."""
        kinds = _kinds(self.fields[name])
        return (kinds.pop() if len(kinds) == 1 else "text"), "list" in self.fields[name]

    def put(self, text: Text) -> None:
        """Keep a text until it is split; report the id of a row that was there before."""
        row = (None if text.document else text.name, text.place, json.dumps(text, ensure_ascii=False))
        try:
            self.sql.execute("INSERT INTO texts (id, place, content) VALUES (?, ?, ?)", row)
        except sqlite3.IntegrityError:
            (before,) = self.sql.execute("SELECT place FROM texts WHERE id = ?", row[:1]).fetchone()
            self.report(_given_already(text.place, text.name, before))
        except sqlite3.OperationalError as error:
            raise _no_room(error) from error
        else:
            self.columns.update(text.metadata)

    @property
    def texts(self) -> int:
        """How many texts are to be split."""
        count: int = self.sql.execute("SELECT count(*) FROM texts").fetchone()[0]
        return count

    def taken_out(self) -> Iterator[Text]:
        """The texts that were put, in their order; each is gone once the next is asked for."""
        while rows := self.sql.execute("SELECT n, content FROM texts ORDER BY n LIMIT ?", (_AT_ONCE,)).fetchall():
            self.sql.execute("DELETE FROM texts WHERE n <= ?", (rows[-1][0],))
            for _, content in rows:
                yield Text(*json.loads(content))

    def add(self, passages: list[Passage], parent: str, place: str) -> None:
        """Add the passages of one row or document, all or none; report an id that was there before."""
        first = read_in = None
        for id, text, fields, document, start, _ in passages:
            try:
                if document is not None and read_in is None:
                    read_in = self.sql.execute("INSERT INTO documents (text) VALUES (?)", (document,)).lastrowid
                row = (id, parent, place, text, json.dumps(fields, ensure_ascii=False), read_in, start)
                n = self.sql.execute(_INSERT, row).lastrowid
            except sqlite3.IntegrityError:
                (before,) = self.sql.execute("SELECT place FROM passages WHERE id = ?", (id,)).fetchone()
                if first is not None:
                    self.sql.execute("DELETE FROM passages WHERE n >= ?", (first,))
                self.report(_given_already(place, id, before))
                return
            except sqlite3.OperationalError as error:
                raise _no_room(error) from error
            first = n if first is None else first
        for passage in passages:
            for name, value in passage.metadata.items():
                self.fields.setdefault(name, set()).update(_types(value))

    def batches(self, size: int) -> Iterator[list[Passage]]:
        """The passages in their order, so many at once."""
        mixed = self.mixed
        last = 0
        while rows := self.sql.execute(_SELECT, (last, size)).fetchall():
            last = rows[-1][0]
            documents = {None: None, **{n: self._document(n) for n in {row[4] for row in rows} - {None}}}
            yield [
                Passage(id, text, _as_texts(json.loads(fields), mixed), documents[document], start, n)
                for n, id, text, fields, document, start in rows
            ]

    def _document(self, n: int) -> str:
        text: str = self.sql.execute("SELECT text FROM documents WHERE n = ?", (n,)).fetchone()[0]
        return text

    def having(self, ids: list[str]) -> set[str]:
        """Those of the ids that passages have."""
        # One by one: the JSON of some versions of SQLite ends a text at a NUL.
        return {id for id in ids if self.sql.execute("SELECT 1 FROM passages WHERE id = ?", (id,)).fetchone()}


def _given_already(place: str, id: str, before: str) -> InvalidInputError:
    return InvalidInputError(f"{place}: the id {id!r} is given already, in {before}.")


def _no_room(error: Exception) -> OSError:
    return OSError(f"no room for the texts in {tempfile.gettempdir()}: {error}. Set TMPDIR.")


def _types(value: Any) -> set[str]:
    if isinstance(value, list):
        return {"list", *(kind for item in value for kind in _types(item))}
    return {_KINDS[type(value)]}


def _kinds(types: set[str]) -> set[str]:
    return types - {"list", "integer"} if "number" in types else types - {"list"}


def _as_texts(fields: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(item) for item in value]
        return value if isinstance(value, str) else json.dumps(value)

    return fields | {name: text(fields[name]) for name in names if name in fields}
