"""Rows from .txt, .jsonl and .json files: a text or an object per line, or a list of objects."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from typing import Any

from .table import TEXT_COLUMN, Numbered, Table, decoded

_KINDS = {str: "string", int: "number", float: "number", bool: "boolean", list: "array", type(None): "null"}


def _lines(table: Table) -> Iterator[tuple[int, str]]:
    with lzma.open(table.path) if table.path.suffix == ".xz" else table.path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = table.tried(decoded, line, number, first=number == 1)
            if text is not None and (stripped := text.strip()):
                yield number, stripped


def read_txt(table: Table) -> Iterator[Numbered]:
    """A row for every line that is not blank."""
    for number, line in _lines(table):
        yield number, {TEXT_COLUMN: line}


def read_jsonl(table: Table) -> Iterator[Numbered]:
    """A row for every line that is not blank."""
    for number, line in _lines(table):
        if (row := table.tried(as_object, line, number)) is not None:
            yield number, row


def read_json(table: Table) -> Iterator[Numbered]:
    """A row for every object of the list, or for the one object; the file is read as a whole."""
    value = table.tried(loaded, table.path.read_bytes(), None)
    for number, item in enumerate(value if isinstance(value, list) else [] if value is None else [value], 1):
        if (row := table.tried(_checked, item, number, "item")) is not None:
            yield number, row


def as_object(line: str) -> dict[str, Any]:
    """The object of a line of JSON.

    Raises:
        ValueError: It is no JSON, or another value.
    """
    return _checked(loaded(line))


def loaded(content: str | bytes) -> Any:
    """JSON's value of a text.

    Raises:
        ValueError: It is no JSON; NaN is none.
    """
    text = decoded(content) if isinstance(content, bytes) else content
    try:
        return json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error}).") from error


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no JSON; write null")


def _checked(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = _KINDS[type(value)]
        raise ValueError(f'a JSON {kind}, and not an object such as {{"{TEXT_COLUMN}": "..."}}.')
    return value
