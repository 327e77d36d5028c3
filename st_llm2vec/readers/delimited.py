"""Rows from .csv and .tsv files, typed by column.

A column is read as numbers, or as true and false, if every cell that is not empty is one (a whole number has no leading
zero), else as text. Empty cells are missing values.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .table import Numbered, Table, has_half_characters

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_BOOL = {"true": True, "false": False}


def _cells(table: Table, report: Callable[[int, str], None]) -> Iterator[tuple[int, list[str], list[str]]]:
    """The lines of a .csv or .tsv file: number, header, cells."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than csv's 128 KiB
    # Bytes that are no UTF-8 come through as lone surrogates, so that a row with some does not shift the others.
    with table.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        file.seek(0)
        marks = "\t" if table.ending == ".tsv" else next((mark for mark in ",;\t|" if mark in first), ",")
        reader = csv.reader(file, delimiter=marks, strict=True)
        header: list[str] | None = None
        while True:
            start = reader.line_num + 1  # of the row to come: quoted fields may span lines
            try:
                cells = next(reader, None)
            except csv.Error as error:
                report(start, f"not valid CSV ({error}).")
                if header is None:
                    return
                continue
            if cells is None:
                return
            if any(map(has_half_characters, cells)):
                report(start, "a byte is not UTF-8. Save the file as UTF-8.")
                if header is None:
                    return
            elif not cells:
                continue  # a blank line
            elif header is None:
                header = [name.strip() or f"column_{place}" for place, name in enumerate(cells, 1)]
                if twice := next((name for name in header if header.count(name) > 1), None):
                    report(start, f"two columns are called {twice!r}. Rename one.")
                    return
            elif len(cells) != len(header):
                report(start, f"more or fewer fields than the {len(header)} of the header.")
            else:
                yield start, header, cells


def _kind(cell: str) -> str:
    if (number := _NUMBER.fullmatch(cell)) is not None:
        if number[1] is None and number[2] is None:
            return "integer" if abs(int(cell)) < 2**63 else "text"
        return "number" if math.isfinite(float(cell)) else "text"
    return "bool" if cell.lower() in _BOOL else "text"


_VALUE: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "number": float,
    "bool": lambda cell: _BOOL[cell.lower()],
    "text": str,
}


def _kinds(table: Table) -> dict[str, str]:
    """What each column of a file holds, by all of its cells."""
    kinds: dict[str, str] = {}
    for number, header, cells in _cells(table, lambda number, what: None):
        for name, cell in zip(header, cells, strict=True):
            before = kinds.get(name)
            if before == "text" or not (stripped := cell.strip()):
                continue
            kind = _kind(stripped)
            if before is None or {before, kind} == {"integer", "number"}:
                kinds[name] = kind if before is None else "number"
            elif kind != before:
                kinds[name] = "text"
                if name not in (table.texts or ()):
                    table.note(
                        f"{table.name}, line {number}: {stripped!r:.60} makes column {name!r} a column of texts."
                    )
    return kinds


def read_csv(table: Table) -> Iterator[Numbered]:
    kinds = {} if table.texts is None else _kinds(table)
    for number, header, cells in _cells(table, table.bad):
        if table.texts is None:
            yield number, dict(zip(header, cells, strict=True))
            continue
        row: dict[str, Any] = {}
        try:
            for name, cell in zip(header, cells, strict=True):
                stripped = cell.strip()
                kind = "text" if name in table.texts or not stripped else kinds[name]
                row[name] = None if not stripped else cell if kind == "text" else _VALUE[kind](stripped)
        except (KeyError, ValueError):  # a moment ago, this cell was not there
            table.bad(number, "the file was changed while it was read. Run it again.")
            continue
        yield number, row
