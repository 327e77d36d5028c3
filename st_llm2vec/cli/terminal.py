"""What is shown of texts from files: control characters and reordering ones as escapes, so that they are seen only.

A document could otherwise write to the clipboard, set the title, move the cursor over what was printed, or pass for a
prompt of the shell.
"""

from __future__ import annotations

import logging
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (bidirectional overrides), surrogates, line separators
_KEPT = "\u200c\u200d"  # joiners: letters of Persian and Hindi, and emoji, are made of them


def escaped(text: str, keep: str = "") -> str:
    """The text with every character that a terminal acts on as its escape; letters of all languages stay.

    Args:
        keep: Control characters that may stay, such as newlines in a message.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escape(c) if unicodedata.category(c) in _HIDDEN and c not in keep and c not in _KEPT else c for c in text
    )


def _escape(char: str) -> str:
    """As JSON spells it, so that JSON stays what it is: beyond the first plane, two halves."""
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def message(text: str) -> str:
    """A message whose further lines are indented, so that none looks like a line of the shell."""
    return escaped(text.replace("\r\n", "\n"), keep="\n\t").replace("\n", "\n  ")


def escaped_all(value: Any) -> Any:
    """`escaped` for every text in JSON's kinds of values, keys included; newlines and tabs stay."""
    if isinstance(value, str):
        return escaped(value, keep="\n\t")
    if isinstance(value, dict):
        return {escaped_all(key): escaped_all(item) for key, item in value.items()}
    return [escaped_all(item) for item in value] if isinstance(value, list) else value


class Commands(TyperGroup):
    """Commands whose usage errors show what was typed, which may be names of files from anywhere, as `message` does."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _escaped_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, context: Any) -> Any:
        with _escaped_usage():
            return super().invoke(context)


@contextmanager
def _escaped_usage() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code") and isinstance(getattr(error, "message", None), str):  # of click
            error.message = message(error.message)  # type: ignore[attr-defined]
        raise


@contextmanager
def escaped_notes() -> Iterator[None]:
    """Until the block ends, whatever any library logs or warns of is shown as `message` shows it."""
    factory, show = logging.getLogRecordFactory(), warnings.showwarning

    class Record(logging.LogRecord):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if self.exc_info:  # a formatter would write the traceback as it is
                self.exc_text = message("".join(traceback.format_exception(*self.exc_info)).rstrip())

        def getMessage(self) -> str:  # noqa: N802 - the name of the method
            return message(super().getMessage())

    def show_escaped(said: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        show(category(message(str(said))), category, *place, **options)

    logging.setLogRecordFactory(Record)
    warnings.showwarning = show_escaped  # type: ignore[assignment]
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        warnings.showwarning = show
