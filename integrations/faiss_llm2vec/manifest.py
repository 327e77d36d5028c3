"""The manifest of a store: what it is and which files belong to it; checked field by field where it is read.

Stores come from strangers as well. So no field is used before its type, its range and its agreement with the others
were seen, and a file has a name that `segments.py` gives, or none: no name leads out of the folder `segments`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from typing import Any

from faiss_llm2vec.kinds import KINDS, METRICS

FORMAT = 2  # with the name of the model
READABLE = (1, FORMAT)
# Numbers instead of "as many as memory holds", each far above what anyone stores.
_MOST_DIMENSIONS = 1 << 20
_MOST_NAME = 4096
_MOST_KIND = 100  # characters of a factory string
_MOST_OF = {"x": 16, "HNSW": 2048, "IVF": 1 << 20}  # in a factory string: bits per code, edges, lists; else:
_MOST_ELSE = 1 << 16

_FILE_NAME = re.compile(r"[0-9]{8,18}(-[0-9a-f]{32})?(\.index)?\.faiss", re.ASCII)


def is_file_name(name: object) -> bool:
    """Whether a store gives this name to files of segments; such a name is no path, so it leads nowhere else."""
    return isinstance(name, str) and _FILE_NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class File:
    """What the manifest says about one file."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """What the manifest says about one segment."""

    rows: int
    vectors: File
    index: File | None = None

    @property
    def files(self) -> list[File]:
        return [self.vectors] if self.index is None else [self.vectors, self.index]


@dataclass(frozen=True)
class Manifest:
    """What a store is and which files belong to it; replaced as a whole by every commit."""

    kind: str
    metric: str
    dimension: int | None = None  # unknown until the first vector
    truncate_dim: int | None = None  # vectors are cut to their first so many numbers
    model_dimension: int | None = None  # before the cut
    fingerprint: str | None = None  # of the model; None for a store of bare vectors
    model: str | None = None  # its name: an alias, an absolute path or a hub id
    revision: str | None = None  # of a hub id
    prompts: dict[str, Any] | None = None
    pooling: str | None = None
    format: int = FORMAT
    generation: int = 0  # one more with every commit
    next_id: int = 0  # ids are never reused
    next_segment: int = 1
    count: int = 0  # rows of `docs`
    digest: int = 0  # XOR of their checksums
    segments: list[Entry] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: It is not what a store writes; the message says which field.
        """
        found = _object("the manifest", _json(text), {field.name for field in fields_of(cls)}, {"kind", "metric"})
        for name, value in found.items():
            allowed, check = _FIELDS[name]
            if not check(value):
                raise ValueError(f"{name} must be {allowed}, got {value!r:.80}")
        manifest = cls(**{**found, "segments": [_entry(entry) for entry in found.get("segments", [])]})
        manifest._check_agreement()
        return manifest

    def _check_agreement(self) -> None:
        names = [file.name for entry in self.segments for file in entry.files]
        if len(set(names)) < len(names):
            raise ValueError("segments name a file twice")
        if self.count > sum(entry.rows for entry in self.segments):
            raise ValueError(f"count is {self.count}, more than the segments have rows")
        if self.segments and self.dimension is None:
            raise ValueError("dimension must be known where there are segments, got None")
        if self.truncate_dim is not None and self.dimension not in (None, self.truncate_dim):
            raise ValueError(f"dimension must be truncate_dim ({self.truncate_dim}), got {self.dimension}")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(what: str, value: Any, known: set[str], required: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or not required <= value.keys() <= known:
        raise ValueError(f"{what} must be an object with {', '.join(sorted(required))}, got {value!r:.80}")
    return value


def _entry(value: Any) -> Entry:
    names = {"rows", "vectors", "index"}
    entry = _object("a segment", value, names, names)
    if not _whole(1)(entry["rows"]):
        raise ValueError(f"rows of a segment must be a whole number of at least 1, got {entry['rows']!r:.80}")
    index = None if entry["index"] is None else _file(entry["index"])
    return Entry(rows=entry["rows"], vectors=_file(entry["vectors"]), index=index)


def _file(value: Any) -> File:
    names = {"name", "size", "sha256"}
    file = _object("a file", value, names, names)
    if not is_file_name(file["name"]):
        raise ValueError(f"a file of a segment must be named like '00000001.faiss', got {file['name']!r:.200}")
    if not _whole(0)(file["size"]) or not (isinstance(file["sha256"], str) and len(file["sha256"]) == 64):
        raise ValueError(f"size and sha256 of {file['name']} must be a number and 64 digits")
    return File(**file)


def _whole(least: int, most: int = 2**63 - 1) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_name(value: Any) -> bool:
    """Whether this can be the name of a model in a manifest."""
    return isinstance(value, str) and 0 < len(value) <= _MOST_NAME and value.isprintable()


def _is_kind(value: Any) -> bool:
    """A kind whose index can be built: a factory string of 10^8 lists would take the memory of the machine."""
    if not isinstance(value, str) or len(value) > _MOST_KIND or not value.isascii():
        return False
    numbers = re.findall(r"([A-Za-z]*)([0-9]+)", value)
    return value in KINDS or all(int(number) <= _MOST_OF.get(word, _MOST_ELSE) for word, number in numbers)


def _are_prompts(value: Any) -> bool:
    return isinstance(value, dict) and all(prompt is None or isinstance(prompt, str) for prompt in value.values())


_DIMENSION = f"a whole number from 1 to {_MOST_DIMENSIONS}, or null", _optional(_whole(1, _MOST_DIMENSIONS))
_TEXT = "text or null", _optional(_is_text)
_NAME = f"a printable text of at most {_MOST_NAME} characters, or null", _optional(is_name)
_COUNT = "a whole number of at least 0", _whole(0)
# Name -> what is allowed, in words and as a check.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "kind": (f"one of {', '.join(KINDS)} or a FAISS factory string of moderate numbers", _is_kind),
    "metric": (f"one of {', '.join(METRICS)}", lambda value: _is_text(value) and value in METRICS),
    "dimension": _DIMENSION,
    "truncate_dim": _DIMENSION,
    "model_dimension": _DIMENSION,
    "fingerprint": _TEXT,
    "model": _NAME,
    "revision": _NAME,
    "prompts": ("texts by name, or null", _optional(_are_prompts)),
    "pooling": _TEXT,
    "format": _COUNT,
    "generation": _COUNT,
    "next_id": _COUNT,
    "next_segment": _COUNT,
    "count": _COUNT,
    "digest": ("a whole number of 64 bits", _whole(-(2**63))),
    "segments": ("a list", lambda value: isinstance(value, list)),
}
