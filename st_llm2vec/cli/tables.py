"""Tables on the terminal in which nothing is cut."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .terminal import escaped

_WIDE = 32  # characters that the column of long texts has at least, if it has as many


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, wide: int | None = None, optional: Sequence[int] = ()
) -> list[str]:
    """Print a table as wide as the terminal, or wider where a word would be cut; nothing without rows.

    Args:
        header: Names of the columns.
        rows: Cells; those of the last column, which is what one copies, stay in one line.
        wide: Place of the column of long texts, which gets half of the room, and in which long words may be cut.
        optional: Places of columns to leave out where there is no room, the last first.

    Returns:
        The names of the columns that were left out.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return []
    console = Console()
    columns = [[Text(escaped(cell)) for cell in cells] for cells in zip(header, *rows, strict=True)]  # [x] is text
    lengths = [max(cell.cell_len for cell in cells) for cells in columns]
    words = [max(Text(word).cell_len for cell in cells for word in (*cell.plain.split(), "")) for cells in columns]
    widths = dict(enumerate([*words[:-1], lengths[-1]]))  # at least
    if wide is not None:
        widths[wide] = min(lengths[wide], _WIDE)
    narrow = console.is_terminal or "COLUMNS" in os.environ  # a file has room
    kept = list(optional) if narrow else []
    while kept and _line(widths) > console.width:
        del widths[kept.pop()]
    console.width = max(console.width, _line(widths))
    room = [(place, lengths[place]) for place in widths if place != wide]
    if wide is not None:
        room = [(wide, min(lengths[wide], console.width // 2)), *room, (wide, lengths[wide])]
    for place, most in room:
        widths[place] += max(0, min(most - widths[place], console.width - _line(widths)))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, width in widths.items():
        numeric = all(cell.plain.replace(".", "").lstrip("-").isdigit() for cell in columns[place][1:])
        table.add_column(columns[place][0], justify="right" if numeric else "left", width=width, overflow="fold")
    for cells in zip(*(columns[place][1:] for place in widths), strict=True):
        table.add_row(*cells)
    console.print(table)
    return [header[place] for place in optional if place not in widths]


def _line(widths: dict[int, int]) -> int:
    """Characters of a line, with what is between the columns."""
    return sum(widths.values()) + 3 * (len(widths) - 1) + 2
