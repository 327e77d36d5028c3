"""What a notebook shows of an object: a small table, in which everything is text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table.

    Args:
        caption: What it shows.
        header: Names of the columns.
        rows: Cells.
    """
    left = " style='text-align: left'"
    lines = [
        "".join(f"<th{left}>{escape(name)}</th>" for name in header),
        *("".join(f"<td{left}>{escape(str(cell))}</td>" for cell in row) for row in rows),
    ]
    return f"<table><caption>{escape(caption)}</caption>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
