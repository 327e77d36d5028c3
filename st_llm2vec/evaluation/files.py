"""The files of a task: a folder with one file for each split, or one file alone."""

from __future__ import annotations

import csv
import json
import lzma
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, MissingExtraError

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
    if not isinstance(row[column], str):
        raise InvalidInputError(f"{row['']}: {column!r} must be a text, got {row[column]!r:.60}.")
    return str(row[column])


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
    """The rows of a file, each with the place that an error names.

    Raises:
        InvalidInputError: Another ending, or a line that cannot be read.
        MissingExtraError: A parquet file, without pyarrow.
    """
    end = ending(file)
    if end is None:
        raise InvalidInputError(f"{file} must end in one of {', '.join(ENDINGS)}.")
    if end == ".parquet":
        yield from _parquet(file)
        return
    with lzma.open(file, "rt", encoding="utf-8") if end.endswith(".xz") else file.open(encoding="utf-8-sig") as lines:
        try:
            if end in (".csv", ".tsv"):
                table = csv.DictReader(lines, delimiter="\t" if end == ".tsv" else ",")
                for row in table:
                    place = f"{file}, line {table.line_num}"
                    if None in row or None in row.values():
                        raise InvalidInputError(f"{place}: more or fewer fields than the header.")
                    yield place, row
            else:
                for count, line in enumerate(lines, 1):
                    if line.strip():
                        yield f"{file}, line {count}", _json(f"{file}, line {count}", line)
        except (UnicodeDecodeError, lzma.LZMAError, csv.Error) as error:
            raise InvalidInputError(f"{file} cannot be read as {end}, UTF-8: {error}") from error


def _json(place: str, line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{place}: not valid JSON ({error}).") from error
    if not isinstance(row, dict):
        raise InvalidInputError(f"{place}: must be a JSON object, got {line.strip():.60}.")
    return row


def _parquet(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            '.parquet files need pyarrow. Install it with: pip install "st-llm2vec[all]"'
        ) from error
    try:
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise InvalidInputError(f"{file} cannot be read as parquet: {error}") from error
    for count, row in enumerate(table.to_pylist(), 1):
        yield f"{file}, row {count}", row
