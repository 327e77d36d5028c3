"""One file of rows: how it is to be read, and what becomes of a row that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError

TEXT_COLUMN = "text"
Numbered = tuple[int, dict[str, Any]]
Report = Callable[[InvalidInputError], None]  # what to do about a row that cannot be read


def stop(error: InvalidInputError) -> None:
    """The report of those who want whole files: raise the error."""
    raise error


@dataclass(frozen=True)
class Table:
    """A file of rows, and how it is to be read.

    Args:
        path: The file.
        name: What messages call it.
        ending: Of its name, which says how it is read; another one for a file that has none.
        texts: Columns of a .csv or .tsv file that are text, whatever stands in them; None: all.
        report: Gets each row that cannot be read; where it returns, the row is passed over.
        note: Gets what should be said, and is no error.
    """

    path: Path
    name: str
    ending: str
    texts: frozenset[str] | None = None
    report: Report = stop
    note: Callable[[str], None] = lambda text: None

    def bad(self, number: int | None, what: str, unit: str = "line") -> None:
        """Report a row."""
        place = "" if number is None else f", {unit} {number}:"
        self.report(InvalidInputError(f"{self.name}{place} {what}"))

    def tried(
        self, make: Callable[..., Any], value: Any, number: int | None, unit: str = "line", **options: Any
    ) -> Any:
        """What `make` makes of a value; None, and a report, where it raises ValueError."""
        try:
            return make(value, **options)
        except ValueError as error:
            self.bad(number, str(error), unit)
            return None


def has_half_characters(text: str) -> bool:
    """Whether a text has lone surrogates, which UTF-8 cannot write."""
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)


def decoded(line: bytes, *, first: bool = True) -> str:
    """A text from UTF-8, without a byte order mark where it may stand.

    Raises:
        ValueError: It is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte 0x{line[error.start]:02x} is not UTF-8. Save the file as UTF-8.") from error
