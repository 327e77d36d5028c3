"""Files in: rows from tables, and documents from .md, .html, .pdf; every complaint names the file and the line.

    table.py       one file of rows, and what becomes of a row that cannot be read
    lines.py       .txt, .jsonl, .json
    delimited.py   .csv, .tsv
    columnar.py    .parquet, .arrow
    documents.py   .md, .html, .pdf, and .txt as a whole

The types of values are those of JSON. Dates are text: as they stand in the file, and as ISO 8601, which sorts, where a
format has a type for them. Empty cells, null and NaN are missing values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from .columnar import PAGE_BY_PAGE, plain, read_arrow, read_parquet, require_pyarrow
from .delimited import read_csv
from .lines import loaded, read_json, read_jsonl, read_txt
from .table import TEXT_COLUMN, Numbered, Report, Table, has_half_characters, stop

__all__ = [
    "PAGE_BY_PAGE",
    "TABLES",
    "TEXT_COLUMN",
    "Report",
    "Rows",
    "Table",
    "has_half_characters",
    "iter_rows",
    "loaded",
    "plain",
    "read_rows",
    "require_pyarrow",
    "stop",
    "text_of",
]

TABLES: dict[str, Callable[[Table], Iterator[Numbered]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,  # what `datasets` saves
}


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
        return [
            text_of(row, (column,), f"{self.path}, line {number}")
            for number, row in zip(self.numbers, self.values, strict=True)
        ]


def iter_rows(path: Path) -> Iterator[Numbered]:
    """Read a file row by row, each with the number of its line, as `read_rows` does."""
    if path.suffix.lower() not in TABLES:
        raise InvalidInputError(f"{path} ends in {path.suffix!r}. Give a file that ends in {', '.join(TABLES)}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return TABLES[path.suffix.lower()](Table(path, str(path), path.suffix.lower()))


def read_rows(path: Path) -> Rows:
    """Read a whole file; its ending says how. The blank lines of a .txt or .jsonl file are skipped.

    Raises:
        InvalidInputError: Another ending, a line that cannot be read, or no rows at all.
        FileNotFoundError: There is no such file.
    """
    numbered = list(iter_rows(path))
    if not numbered:
        raise InvalidInputError(f"{path} is empty: there is nothing to read.")
    return Rows(path, [number for number, _ in numbered], [row for _, row in numbered])


def text_of(row: dict[str, Any], columns: tuple[str, ...], where: str) -> str:
    """The text of a row: that of the first of the columns that it has, and that is not missing there.

    Raises:
        InvalidInputError: It has none of them, or something that is no text.
    """
    column = next((name for name in columns if row.get(name) is not None), None)
    if column is None and (blank := [name for name in columns if name in row]):
        raise InvalidInputError(f"{where}: the text is missing, in {' and '.join(map(repr, blank))}.")
    if column is None:
        has = ", ".join(map(repr, row)) or "nothing"
        wanted = " or ".join(map(repr, columns))
        raise InvalidInputError(f"{where}: there is no column {wanted}; it has {has}. Name the column of the text.")
    text = row[column]
    if not isinstance(text, str):
        raise InvalidInputError(f"{where}: {column!r} is {text!r:.60} ({type(text).__name__}), not a text.")
    if has_half_characters(text):
        raise InvalidInputError(
            f"{where}: {column!r} has half of a character ({text!r:.60}), as JSON can spell and UTF-8 cannot. "
            "Write the character in full."
        )
    return text
