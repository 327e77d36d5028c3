"""The header of a GGUF file, walked through before a library reads it: sizes that the file has, counts that end.

gguf's reader believes the lengths and counts of the file: an array of 2**60 numbers keeps it busy until the memory is
full. So each is compared with what is left of the file, and with what published models have.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from ..errors import InvalidCheckpointError
from .files import require_regular

MAX_KEYS = 1024  # published files have about 40
MAX_TENSORS = 1 << 16  # Llama 405B has 1,138
MAX_ITEMS = 1 << 20  # of an array, which is a vocabulary or its merges; Gemma 3 has 262,144 tokens
MAX_ITEM = 1024  # bytes of a text in an array; the longest published tokens have 256
MAX_TEXT = 1 << 20  # bytes of another text; chat templates have 30,000
MAX_HEADER = 1 << 26  # bytes before the tensors; Gemma 3 has 6 million
MAX_NAME = 256
MAX_DIMENSIONS = 4  # llama.cpp's own limit
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of numbers, by their type's number
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)


def require_sane_gguf(path: Path) -> None:
    """Raises where the header of a GGUF file claims what no published file does.

    Raises:
        InvalidCheckpointError: No regular file, another format, or lengths and counts that the file does not hold.
    """
    require_regular(path)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InvalidCheckpointError(f"{path} is no GGUF file: it does not begin with its four letters.")
        _Header(path, file, path.stat().st_size).walk()


class _Header:
    """A file that is read from its start."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def walk(self) -> None:
        (version,) = self.numbers("I")
        if version not in _VERSIONS:
            raise self.wrong("its version", f"one of {_VERSIONS}", version)
        tensors, keys = self.numbers("QQ")
        self.limit("keys", keys, MAX_KEYS)
        self.limit("tensors", tensors, MAX_TENSORS)
        for _ in range(keys):
            self.text("a key", MAX_NAME)
            (kind,) = self.numbers("I")
            self.value(kind)
        for _ in range(tensors):
            self.text("the name of a tensor", MAX_NAME)
            (dimensions,) = self.numbers("I")
            self.limit("dimensions of a tensor", dimensions, MAX_DIMENSIONS)
            self.numbers(f"{dimensions}QIQ")

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.text("a text", MAX_TEXT)
        elif kind == _ARRAY:
            items, count = self.numbers("IQ")
            self.limit("items of an array", count, MAX_ITEMS)
            if items == _STRING:
                for _ in range(count):
                    self.text("a text in an array", MAX_ITEM)
            elif items in _SIZES:
                self.skip(_SIZES[items] * count)
            else:
                raise self.wrong("an array", "one of numbers or texts", f"the type {items}")
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise self.wrong("a value", "a number, a text or an array", f"the type {kind}")

    def text(self, what: str, most: int) -> None:
        (length,) = self.numbers("Q")
        self.limit(f"bytes of {what}", length, most)
        try:
            self.bytes(length).decode()
        except UnicodeDecodeError as error:
            raise self.wrong(what, "UTF-8", str(error)) from error

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}")))

    def bytes(self, count: int) -> bytes:
        found = self.file.read(count)
        if len(found) < count or self.file.tell() > MAX_HEADER:
            raise self.cut_off()
        return found

    def skip(self, count: int) -> None:
        end = self.file.tell() + count
        if end > min(self.size, MAX_HEADER):
            raise self.cut_off()
        self.file.seek(end)

    def limit(self, what: str, found: int, most: int) -> None:
        if found > most:
            raise self.wrong(f"the number of {what}", f"at most {most:,}", f"{found:,}")

    def wrong(self, what: str, allowed: str, found: object) -> InvalidCheckpointError:
        return InvalidCheckpointError(f"{self.path} is damaged: {what} must be {allowed}, got {found}. Do not use it.")

    def cut_off(self) -> InvalidCheckpointError:
        return InvalidCheckpointError(
            f"{self.path} is cut off, or its header has more than {MAX_HEADER >> 20} MB. Download it again."
        )
