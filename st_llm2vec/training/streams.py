"""Data sets that are read while training and never held whole: a file of any size, or a `datasets.IterableDataset`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

from datasets import IterableDataset

from ..errors import InvalidInputError
from ..readers import TEXT_COLUMN, iter_rows, text_of
from ..recipes import DataSet, TrainingSettings

HASHED = 1000  # rows of a stream without a file, by which a resumed run knows it
SHUFFLED = 10_000  # chunks among which the next one is drawn


def is_stream(data: DataSet) -> bool:
    """Whether a data set is to be read while training."""
    return isinstance(data.file, IterableDataset) if data.stream is None else data.stream


def check_streams(settings: TrainingSettings) -> None:
    """Refuse what a stream cannot do.

    Raises:
        InvalidInputError: A stream of rows in memory, outside of MNTP, beside another data set, with a weight, or with
            no end to training.
    """
    data: Mapping[str, DataSet] = settings.data or {}
    for name, each in data.items():
        if not is_stream(each):
            continue
        if not isinstance(each.file, str | IterableDataset):
            raise InvalidInputError(
                f"data.{name}: stream is for a file, got rows of type {type(each.file).__name__}. Leave it out, or "
                "give a datasets.IterableDataset, such as Dataset.to_iterable_dataset()."
            )
        if settings.objective != "mntp":
            raise InvalidInputError(
                f"data.{name} is a stream, which is for mntp: {settings.objective} never has a text twice in a batch, "
                "and looks at all of them for that. Give rows or a file, perhaps with a limit."
            )
        if len(data) > 1:
            raise InvalidInputError(
                f"data.{name} is a stream and must be the only data set, got {', '.join(data)}. Join them before, such "
                "as with datasets.interleave_datasets."
            )
        if each.weight != 1:
            raise InvalidInputError(f"data.{name} is a stream, which has no weight, got {each.weight}. Leave it out.")
        if settings["max_steps"] is None:
            raise InvalidInputError(
                f"data.{name} is a stream, whose end is not known: give max_steps, not epochs={settings.epochs}."
            )


def read_stream(name: str, data: DataSet) -> tuple[IterableDataset, str]:
    """Open a stream as its one column of texts, of which the first ones are looked at.

    Returns:
        The stream, and a hash: of the file, else of the first rows.

    Raises:
        InvalidInputError: A column that is not there, no texts, more than one column asked for, or a stream that is
            another one when it is read again.
        FileNotFoundError: There is no such file.
    """
    columns = data.columns or (TEXT_COLUMN,)
    if len(columns) != 1:
        raise InvalidInputError(f"columns of {name!r}: this stage trains on one column, got {', '.join(columns)}.")
    (column,) = columns
    where = str(data.file) if isinstance(data.file, str) else f"data.{name}"
    given = {"rows": data.file, "name": name, "column": column, "where": where, "limit": data.limit}
    stream = IterableDataset.from_generator(_texts, gen_kwargs=given)
    first = list(islice(_texts(**given), HASHED))
    if not first:
        raise InvalidInputError(f"{where} is empty: there is nothing to train on.")
    if next(_texts(**given), None) != first[0]:
        raise InvalidInputError(
            f"{where} must begin anew each time it is read, got another first row, or none, the second time. Make what "
            "it reads, such as a generator or an open file, within the function that is given to from_generator."
        )
    if isinstance(data.file, str):
        return stream, file_hash(Path(data.file))
    return stream, hashlib.sha256(json.dumps(first, ensure_ascii=False).encode()).hexdigest()


def endless(stream: IterableDataset) -> IterableDataset:
    """Go round a stream, which was shuffled, each time in another order.

    A trainer that resumes skips the batches of one pass, so all of them have to be of one.
    """
    return IterableDataset.from_generator(_rounds, gen_kwargs={"stream": stream}, features=stream.features)


def _rounds(stream: IterableDataset) -> Iterator[Any]:
    for number in count():
        stream.set_epoch(number)
        yield from stream


def file_hash(file: Path) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def as_row(name: str, row: Any) -> dict[str, Any]:
    """Return a row that was given from Python as columns; a text is one.

    Raises:
        InvalidInputError: It is something else.
    """
    if isinstance(row, str):
        return {TEXT_COLUMN: row}
    if not isinstance(row, Mapping):
        raise InvalidInputError(f"data.{name} must be texts, or rows with columns, got {row!r:.80} among them.")
    return dict(row)


def _texts(rows: Any, name: str, column: str, where: str, limit: int | None) -> Iterator[dict[str, str]]:
    given = iter_rows(Path(rows)) if isinstance(rows, str) else enumerate((as_row(name, row) for row in rows), 1)
    for number, row in islice(given, limit):
        yield {TEXT_COLUMN: text_of(row, (column,), f"{where}, line {number}")}
