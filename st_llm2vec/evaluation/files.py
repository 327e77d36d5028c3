"""The files of a task: a folder with one file for each split, or one file alone."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..readers import TABLES, Table, text_of

ENDINGS = (".jsonl", ".jsonl.xz", ".csv", ".tsv", ".parquet")
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a task lies.

    Attributes:
        path: Folder or file.
        split: "test", "dev" or whatever the files are called.
        columns: Where the files' columns have other names than the kind's: the kind's -> the file's.
    """

    path: Path
    split: str = "test"
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_file(self) -> bool:
        """Whether there is one file, and so no other split."""
        return self.path.is_file()

    def rows(self, *columns: str, split: str | None = None, optional: tuple[str, ...] = ()) -> list[Row]:
        """The rows of a split, each with these columns, under the kind's names; None for an optional one not there.

        Raises:
            InvalidInputError: No such split, no rows, a line that cannot be read, or a column that is not there.
        """
        name = split or self.split
        files = [self.path] if self.is_file else shards(self.path, name)
        if not files:
            raise InvalidInputError(
                f"There is no {name}.jsonl (or .jsonl.xz, .csv, .tsv, .parquet) in {self.path}; it has "
                f"{', '.join(splits(self.path)) or 'no such file'}."
            )
        found = [self._row(place, row, columns, optional) for file in files for place, row in read(file)]
        if not found:
            raise InvalidInputError(f"{files[0]} is empty: there is nothing to score.")
        return found

    def _row(self, place: str, row: Row, columns: tuple[str, ...], optional: tuple[str, ...]) -> Row:
        found: Row = {"": place}
        for column in (*columns, *optional):
            name = self.columns.get(column, column)
            if name not in row and column in columns:
                raise InvalidInputError(f"{place}: there is no column {name!r}; it has {', '.join(map(repr, row))}.")
            found[column] = row.get(name)
        return found


def text(row: Row, column: str) -> str:
    """The text in a column."""
    return text_of(row, (column,), row[""])


def number(row: Row, column: str) -> float:
    """The number in a column; of a CSV file, the number that the text spells."""
    try:
        found = float(row[column])
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InvalidInputError(f"{row['']}: {column!r} must be a number, got {row[column]!r:.60}.")
    return found


def texts(row: Row, column: str) -> list[str]:
    """The texts in a column that holds one or a list of them; an empty one is none."""
    value = row[column]
    found = [value] if isinstance(value, str) else value if isinstance(value, list) else [None]
    if not all(isinstance(each, str) for each in found):
        raise InvalidInputError(f"{row['']}: {column!r} must be a text or a list of texts, got {value!r:.60}.")
    return [each for each in found if each]


def ending(file: Path) -> str | None:
    """Which of `ENDINGS` a file's name has."""
    return next((end for end in sorted(ENDINGS, key=len, reverse=True) if file.name.endswith(end)), None)


def splits(folder: Path) -> list[str]:
    """The names of the tables in a folder, shards and endings left away."""
    found = set()
    for file in folder.iterdir() if folder.is_dir() else ():
        if end := ending(file):
            stem, _, shard = file.name.removesuffix(end).rpartition("-")
            found.add(stem if stem and shard.isdigit() else file.name.removesuffix(end))
    return sorted(found)


def shards(folder: Path, name: str) -> list[Path]:
    """The file `name` in a folder, or its shards `name-00`, `name-01`, ... in order."""
    found = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if end := ending(file):
            shard = file.name.removesuffix(end).removeprefix(name)
            if file.name.startswith(name) and (not shard or (shard[0] == "-" and shard[1:].isdigit())):
                found.append(file)
    return found


def columns_of(file: Path) -> set[str]:
    """The columns of a file's first row."""
    return set(next((row for _, row in read(file)), {}))


def read(file: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with the place that an error names; all cells of a .csv or .tsv file are texts.

    Raises:
        InvalidInputError: Another ending, or a line that cannot be read.
        MissingExtraError: A parquet file, without pyarrow.
    """
    end = ending(file)
    if end is None:
        raise InvalidInputError(f"{file} must end in one of {', '.join(ENDINGS)}.")
    try:
        for line, row in TABLES[end.removesuffix(".xz")](Table(file, str(file), end)):
            yield f"{file}, line {line}", row
    except lzma.LZMAError as error:
        raise InvalidInputError(f"{file} cannot be read as {end}: {error}") from error
