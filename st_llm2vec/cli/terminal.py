"""What is shown of texts from files: control characters and reordering ones as escapes, so that they are seen only.

A document could otherwise write to the clipboard, set the title, move the cursor over what was printed, or pass for a
prompt of the shell.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
        f"\\u{ord(c):04x}" if unicodedata.category(c) in _HIDDEN and c not in keep and c not in _KEPT else c
        for c in text
    )


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


@contextmanager
def escaped_logs() -> Iterator[None]:
    """Until the block ends, whatever is logged, by any library, is shown as `message` shows it."""
    before = logging.getLogRecordFactory()

    class Record(logging.LogRecord):
        def getMessage(self) -> str:  # noqa: N802 - the name of the method
            return message(super().getMessage())

    logging.setLogRecordFactory(Record)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)
