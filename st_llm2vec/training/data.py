"""The data sets of a stage: rows from a file or from Python, checked, drawn and hashed before a model is loaded."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from ..errors import InvalidInputError
from ..readers import TEXT_COLUMN, Rows, read_rows
from ..recipes import DataSet
from .streams import as_row, file_hash, is_stream, read_stream


@dataclass(frozen=True)
class Source:
    """A data set that was read.

    Args:
        rows: Those that are trained on, drawn and repeated as asked.
        columns: Their texts, by column.
        sha256: Of the file, or of the rows as JSON lines.
        vectors: What a teacher makes of the stage's texts, (different texts, dimensions).
        index: Which of these is that of each text, (rows, columns).
        stream: The one column of texts, which is read while training; there are no rows then.
    """

    data: DataSet
    rows: Rows
    columns: dict[str, list[str]]
    sha256: str
    vectors: np.ndarray | None = None
    index: np.ndarray | None = None
    stream: IterableDataset | None = None

    def record(self) -> dict[str, Any]:
        """Return what a model card says of it."""
        file = Path(self.data.file).name if isinstance(self.data.file, str) else None
        rows = len(self.rows) if self.stream is None else None
        known = {"file": file, "sha256": self.sha256, "rows": rows, "columns": list(self.columns)}
        return {name: value for name, value in known.items() if value is not None}


def read_source(name: str, data: DataSet, *, pairs: bool, seed: int, least: int = 2) -> Source:
    """Read one data set.

    Args:
        pairs: Whether a row is an anchor, a positive and hard negatives; else it is one text.
        seed: Of the rows that a limit or weight draws.
        least: Columns that pairs have at least.

    Raises:
        InvalidInputError: A column that is not there, something that is no text, or too few columns.
        FileNotFoundError: There is no such file.
    """
    if is_stream(data):
        stream, digest = read_stream(name, data)
        return Source(data, Rows(Path(name), [], []), {TEXT_COLUMN: []}, digest, stream=stream)
    rows, digest = _from_rows(name, data.file) if not isinstance(data.file, str) else _from_file(Path(data.file))
    rows = _drawn(rows, data, random.Random(f"{seed} {name}"))  # noqa: S311 - a sample, not a secret
    columns = tuple(rows.columns)
    names = data.columns or (columns if pairs else (TEXT_COLUMN,))
    if not pairs and len(names) != 1:
        raise InvalidInputError(f"columns of {name!r}: this stage trains on one column, got {', '.join(names)}.")
    texts = {column: values for given in names for column, values in _column(rows, given).items()}
    if pairs and len(texts) < least:
        raise InvalidInputError(
            f"{rows.path} has the one column {names[0]!r}; supervised training takes an anchor, a positive "
            "and, if there are any, hard negatives: --columns question,answer."
        )
    return Source(data, rows, texts, digest)


def _from_file(file: Path) -> tuple[Rows, str]:
    return read_rows(file), file_hash(file)


def _from_rows(name: str, given: Any) -> tuple[Rows, str]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidInputError(f"data.{name} must be a file or rows, such as a list of dicts, got {given!r:.80}.")
    values = [as_row(name, row) for row in given]
    if not values:
        raise InvalidInputError(f"data.{name} is empty: there is nothing to train on.")
    digest = hashlib.sha256()
    for row in values:
        digest.update(json.dumps(row, ensure_ascii=False, sort_keys=True, default=str).encode() + b"\n")
    return Rows(Path(name), list(range(1, len(values) + 1)), values), digest.hexdigest()


def _drawn(rows: Rows, data: DataSet, chooser: random.Random) -> Rows:
    """The rows after limit and weight, in their order."""
    chosen = list(range(len(rows)))
    if data.limit is not None and data.limit < len(chosen):
        chosen = sorted(chooser.sample(chosen, data.limit))
    whole, part = divmod(data.weight, 1)
    more = sorted(chooser.sample(chosen, round(part * len(chosen))))
    chosen = chosen * int(whole) + more
    if not chosen:
        raise InvalidInputError(f"{rows.path}: weight={data.weight} of {len(rows)} rows leaves none.")
    return Rows(rows.path, [rows.numbers[i] for i in chosen], [rows.values[i] for i in chosen])


def _column(rows: Rows, name: str) -> dict[str, list[str]]:
    """The texts of a column; of a column of lists, as many columns as the shortest list has texts."""
    first = rows.values[0].get(name)
    if not isinstance(first, list):
        return {name: rows.texts(name)}
    width = len(first)
    for number, row in zip(rows.numbers, rows.values, strict=True):
        if not isinstance(row.get(name), list) or not row[name]:
            raise InvalidInputError(f"{rows.path}, line {number}: {name!r} must be a list of texts, as in other rows.")
        width = min(width, len(row[name]))
    if not width:
        raise InvalidInputError(f"{rows.path}, line {rows.numbers[0]}: {name!r} is an empty list.")
    split = [{f"{name}_{i + 1}": row[name][i] for i in range(width)} for row in rows.values]
    each = Rows(rows.path, rows.numbers, split)
    return {column: each.texts(column) for column in split[0]}


def tuples(source: Source) -> Dataset:
    """The rows as anchor, positive and hard negatives, in the order of their columns."""
    return Dataset.from_dict(source.columns)


def texts(source: Source) -> list[str] | IterableDataset:
    """The texts of the one column, or the stream of them."""
    if source.stream is not None:
        return source.stream
    (column,) = source.columns.values()
    return column
