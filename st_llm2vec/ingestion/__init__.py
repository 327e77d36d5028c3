"""Inputs to passages: files, folders, globs and rows, read, split and checked before the first text is encoded.

sources.py     which files the inputs name
passages.py    what was read, in a temporary database on the disk
splitting.py   texts to passages, which needs the tokenizer of an encoder
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..readers import TABLES, TEXT_COLUMN, Table, has_half_characters, plain, text_of
from ..readers.documents import DOCUMENTS, Document, read_text
from ..types import gives_names
from .passages import Passage, Passages, Text, content_of
from .sources import ENDINGS, MANIFEST, STDIN, Reading, Report, Source, find, is_shard_name
from .splitting import no_text, split

__all__ = [
    "ENDINGS",
    "MANIFEST",
    "STDIN",
    "Passage",
    "Passages",
    "Reading",
    "Records",
    "Report",
    "content_of",
    "find",
    "is_shard_name",
    "metadata_value",
    "read_texts",
    "split",
]

_OF_CHUNKS = ("source", "chunk", "heading")  # fields that a chunk of a document has
_UNITS = {".parquet": "row", ".arrow": "row", ".json": "item"}


class Records:
    """Rows or texts of a program, such as a data set of Hugging Face's `datasets`, in the place of files.

    Args:
        rows: Mappings of column names to values, or texts.

    Raises:
        InvalidInputError: A mapping of several data sets, a data frame, or something that has no rows.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any] | str]) -> None:
        if isinstance(rows, Mapping):
            raise InvalidInputError(f"inputs is a mapping of {', '.join(map(repr, rows))}; give one of them.")
        if gives_names(rows):
            raise InvalidInputError(
                f"inputs must be paths or rows, got a {type(rows).__name__} of columns: give its rows as dicts, "
                "df.to_dict('records') in pandas and df.to_dicts() in Polars."
            )
        if not isinstance(rows, Iterable):
            raise InvalidInputError(f"inputs must be paths or rows, got {type(rows).__name__}.")
        self._rows = rows

    def numbered(self, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows, counted from 1."""
        for number, row in enumerate(self._rows, 1):
            if isinstance(row, str):
                yield number, {TEXT_COLUMN: row}
            elif isinstance(row, Mapping):
                yield number, {name: plain(value) for name, value in row.items()}
            else:
                report(InvalidInputError(f"row {number} is a {type(row).__name__}; give texts or dicts."))


def read_texts(inputs: Iterable[str | Path] | Records, reading: Reading, *, exclude: Path | None = None) -> Passages:
    """Read inputs as a whole, and check all that can be checked without an encoder.

    Args:
        inputs: Files, folders, globs and "-" for standard input; or rows.
        reading: How they are read.
        exclude: A folder or file that is not looked into: the output.

    Returns:
        Passages that `split` is to make; close them.

    Raises:
        InvalidInputError: Something cannot be read or indexed, and is not to be passed over; or there is no text.
        OSError: There is no room for the texts in the system's temporary folder.
    """
    report = Report(reading.on_error)
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs if isinstance(inputs, Records) else list(inputs)
    origin = "the rows" if isinstance(inputs, Records) else ", ".join(map(str, inputs)) or "an empty list"
    with ExitStack() as stack:
        passages = stack.enter_context(Passages(report, origin))
        reader = _Reader(reading, passages)
        if isinstance(inputs, Records):
            reader.rows("", "row", inputs.numbered(report))
        else:
            for source in find(inputs, reading, report, exclude):
                reader.source(source)
        if not passages.texts:
            raise no_text(passages)
        _refuse_ignored(reading, reader)
        stack.pop_all()
    return passages


def _refuse_ignored(reading: Reading, reader: _Reader) -> None:
    """Raise InvalidInputError for what was asked for and had nothing to do with the inputs."""
    if unseen := [name for name in reading.metadata or () if name not in reader.seen]:
        raise InvalidInputError(
            f"no row has a column {unseen[0]!r}, which is to become metadata. There are "
            f"{', '.join(map(repr, sorted(reader.seen))) or 'none'}."
        )
    columns = {"text_columns": reading.text_columns != (TEXT_COLUMN,), "id_column": reading.id_column is not None}
    if not reader.tables and (asked := [name for name, given in columns.items() if given]):
        raise InvalidInputError(f"no input has columns, so {asked[0]} names none. Leave it out.")
    if reading.whole_txt and not reader.whole:
        raise InvalidInputError("no input is a .txt file to read as a document. Leave out txt.")


class _Reader:
    """Turns sources into texts."""

    def __init__(self, reading: Reading, passages: Passages) -> None:
        self._reading, self._passages = reading, passages
        self._report = passages.report
        self._texts = frozenset((*reading.text_columns, *filter(None, [reading.id_column])))
        self.seen: set[str] = set()  # columns
        self.tables = self.whole = 0  # inputs with rows, and .txt files that are documents

    def source(self, source: Source) -> None:
        with ExitStack() as stack:
            try:
                if source.name == STDIN:
                    copy = stack.enter_context(tempfile.NamedTemporaryFile())
                    shutil.copyfileobj(sys.stdin.buffer, copy)
                    copy.flush()
                    source = source._replace(path=Path(copy.name))
                whole = source.ending == ".txt" and self._reading.whole_txt
                self.whole += whole
                if source.ending in DOCUMENTS or whole:
                    self._document(source)
                else:
                    table = Table(*source, self._texts, self._report, self._report.note)
                    self.rows(source.name, _UNITS.get(source.ending, "line"), TABLES[source.ending](table))
            except OSError as error:
                if not error.strerror:  # ours, or of a library
                    raise
                self._report(InvalidInputError(f"{source.name} cannot be read ({error.strerror})."))

    def rows(self, name: str, unit: str, numbered: Iterator[tuple[int, dict[str, Any]]]) -> None:
        """Put the text of every row."""
        self.tables += 1
        number, skipped = 0, self._report.skipped
        for number, row in numbered:
            place = f"{name}, {unit} {number}" if name else f"{unit} {number}"
            try:
                id, text, fields = self._row(row, place, f"{name}:{number}" if name else str(number))
            except InvalidInputError as error:
                self._report(error)
                continue
            if name:
                fields.setdefault("source", name)
            self._passages.put(Text(id, place, [(None, text)], fields))
        if not number and skipped == self._report.skipped:
            self._report.note(f"{name or 'The input'} has no rows.")

    def _row(self, row: dict[str, Any], place: str, id: str) -> tuple[str, str, dict[str, Any]]:
        reading = self._reading
        self.seen.update(row)
        text = text_of(row, reading.text_columns, place)
        if not text.strip():
            raise InvalidInputError(f"{place}: the text is empty.")
        if (column := reading.id_column) is not None:
            id = _id(row, column, place)
        taken = {*reading.text_columns, reading.id_column}
        names = [name for name in row if name not in taken] if reading.metadata is None else reading.metadata
        return id, text, {name: metadata_value(name, row[name], place) for name in names if row.get(name) is not None}

    def _document(self, source: Source) -> None:
        name, report = source.name, self._report
        try:
            document = DOCUMENTS.get(source.ending, read_text)(source.path)
        except ValueError as error:  # InvalidInputError is one
            report(InvalidInputError(f"{name}: {error}"))
            return
        try:
            base = self._fields(document, name)
        except InvalidInputError as error:
            report(error)
            return
        if document.empty:
            report.note(f"{name}: {document.empty} pages have no text.")
        if any(page.text.strip() for page in document.pages):
            pages = [(page.number, page.text) for page in document.pages]
            self._passages.put(Text(name, name, pages, base, document=True, marked=document.marked))
        else:
            report(InvalidInputError(f"{name} has no text."))

    def _fields(self, document: Document, name: str) -> dict[str, Any]:
        self.seen.update(document.fields)
        chosen = self._reading.metadata
        own = {key: value for key, value in document.fields.items() if chosen is None or key in chosen}
        self._passages.taken.update(key for key in own if key in _OF_CHUNKS)
        own = {key: value for key, value in own.items() if key not in _OF_CHUNKS}
        fields = {**own, "source": name, "title": document.title}
        return {key: metadata_value(key, value, name) for key, value in fields.items()}


def _id(row: dict[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    if value is None:
        has = ", ".join(map(repr, row))
        raise InvalidInputError(f"{place}: there is no id in the column {column!r}; it has {has}.")
    id = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(id, str) or not id.strip() or has_half_characters(id):
        raise InvalidInputError(f"{place}: the id {value!r:.60} is neither a text nor a whole number.")
    return id


def metadata_value(name: str, value: Any, place: str) -> Any:
    """Return a value of the metadata, if it can be one.

    Raises:
        InvalidInputError: It cannot.
    """
    if not isinstance(name, str) or not name or name.startswith("$") or has_half_characters(name):
        raise InvalidInputError(f"{place}: a column is called {name!r}; a name is a text that does not start with '$'.")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            good = not has_half_characters(item)
        elif isinstance(item, float):
            good = math.isfinite(item)
        else:
            good = isinstance(item, int) and -(2**63) <= item < 2**63
        if not good:
            raise InvalidInputError(
                f"{place}: the column {name!r} is {value!r:.60} ({type(value).__name__}). Metadata are texts, numbers, "
                "true, false, or lists of those: flatten it, or choose the columns that become metadata."
            )
    return value
