"""Texts from .txt, .jsonl, .csv and .parquet files.

Every complaint names the file and the line.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import published as published  # noqa: PLC0414  (commands take it from here)
from ..errors import InvalidInputError, MissingExtraError

TEXT_COLUMN = "text"
Numbered = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """The rows of a file, each with the number of the line it came from."""

    path: Path
    numbers: list[int]
    values: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in the order in which they first appear."""
        return list(dict.fromkeys(name for row in self.values for name in row))

    def texts(self, column: str) -> list[str]:
        """The texts of one column.

        Raises:
            InvalidInputError: A row lacks the column, or has something in it that is no text.
        """
        return [self._text(number, row, column) for number, row in zip(self.numbers, self.values, strict=True)]

    def _text(self, number: int, row: dict[str, Any], column: str) -> str:
        where = f"{self.path}, line {number}"
        if column not in row:
            has = ", ".join(map(repr, row)) or "nothing"
            raise InvalidInputError(
                f"{where}: there is no column {column!r}; it has {has}. Name the column of the text."
            )
        text = row[column]
        if not isinstance(text, str):
            raise InvalidInputError(f"{where}: {column!r} is {text!r:.60} ({type(text).__name__}), not a text.")
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise InvalidInputError(
                f"{where}: {column!r} has half of a character ({text!r:.60}), as JSON can spell and UTF-8 cannot. "
                "Write the character in full."
            )
        return text


def read_rows(path: Path) -> Rows:
    """Reads a whole file; its ending says how. The blank lines of a .txt or .jsonl file are skipped.

    Raises:
        InvalidInputError: Another ending, a line that cannot be read, or no rows at all.
        FileNotFoundError: There is no such file.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidInputError(f"{path} ends in {path.suffix!r}. Give a file that ends in {', '.join(READERS)}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    numbered = list(reader(path))
    if not numbered:
        raise InvalidInputError(f"{path} is empty: there is nothing to read.")
    return Rows(path, [number for number, _ in numbered], [row for _, row in numbered])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield number, _decoded(path, number, line)


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        # A byte order mark is what some editors put first; it is no text.
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8. Save the file as UTF-8."
        ) from error


def _read_txt(path: Path) -> Iterator[Numbered]:
    for number, line in _lines(path):
        if text := line.strip():
            yield number, {TEXT_COLUMN: text}


def _read_jsonl(path: Path) -> Iterator[Numbered]:
    for number, line in _lines(path):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidInputError(f"{path}, line {number}: not valid JSON ({error}).") from error
            if not isinstance(row, dict):
                raise InvalidInputError(
                    f"{path}, line {number}: a JSON {type(row).__name__}. Each line is an object: "
                    f'{{"{TEXT_COLUMN}": "..."}}.'
                )
            yield number, row


def _read_csv(path: Path) -> Iterator[Numbered]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than csv's 128 KiB
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    start = 2  # of the row to come: quoted fields may span lines, and the header is line 1
    try:
        for row in reader:
            if None in row or None in row.values():
                width = len(reader.fieldnames or ())
                raise InvalidInputError(f"{path}, line {start}: more or fewer fields than the {width} of the header.")
            yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise InvalidInputError(f"{path}, line {start}: not valid CSV ({error}).") from error


def _read_parquet(path: Path) -> Iterator[Numbered]:
    pyarrow = require_pyarrow()
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise InvalidInputError(f"{path} cannot be read as parquet: {error}") from error
    yield from enumerate(rows, 1)


READERS: dict[str, Callable[[Path], Iterator[Numbered]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def require_pyarrow() -> Any:
    """The pyarrow package, with `pyarrow.parquet` imported."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            '.parquet files need pyarrow. Install it with: pip install "st-llm2vec[all]"'
        ) from error
    return pyarrow
