"""Which files the inputs name, and what is done about what cannot be read."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import InvalidInputError, LLM2VecError
from ..readers import TABLES, TEXT_COLUMN, has_half_characters
from ..readers.documents import DOCUMENTS

STDIN = "-"
ENDINGS = tuple(dict.fromkeys([*TABLES, *DOCUMENTS]))
POLICIES = ("stop", "skip")
MANIFEST = "manifest.json"  # of the vectors that encode writes, beside its shards
_SHARD = re.compile(r"[0-9]{5,18}-[0-9a-f]{16}\.(parquet|npy)", re.ASCII)
_DATASET_NOTES = {"state.json", "dataset_info.json"}  # what `datasets` saves beside its rows
_SHOWN = 20  # errors that are kept of those that were passed over


@dataclass(frozen=True)
class Reading:
    """How inputs are read.

    Args:
        text_columns: Columns of the text: the first of them that a row has.
        id_column: Column of the id, a text or a whole number. Default: FILE:LINE for rows, FILE#CHUNK for documents.
        metadata: Columns that become metadata. Default: all others.
        whole_txt: A .txt file is one document; else, each line is a text.
        ending: Read every file as if its name ended so.
        on_error: "stop" at what cannot be read, or "skip" and tell.

    Raises:
        InvalidInputError: A value that none of them has.
    """

    text_columns: tuple[str, ...] = (TEXT_COLUMN,)
    id_column: str | None = None
    metadata: tuple[str, ...] | None = None
    whole_txt: bool = False
    ending: str | None = None
    on_error: str = "stop"

    def __post_init__(self) -> None:
        if self.on_error not in POLICIES:
            raise InvalidInputError(f"on_error must be one of {', '.join(POLICIES)}, got {self.on_error!r}.")
        if self.ending is not None and self.ending not in ENDINGS:
            raise InvalidInputError(f"ending must be one of {', '.join(ENDINGS)}, got {self.ending!r}.")
        if not self.text_columns or not all(self.text_columns):
            raise InvalidInputError(f"text_columns must name a column, got {list(self.text_columns)}.")


class Source(NamedTuple):
    """A file to read, what ids and messages call it, and the ending that says how."""

    path: Path
    name: str
    ending: str


@dataclass
class Report:
    """What was passed over, and what should be said."""

    on_error: str = "stop"
    errors: list[str] = field(default_factory=list)
    skipped: int = 0
    notes: list[str] = field(default_factory=list)

    def __call__(self, error: LLM2VecError) -> None:
        if self.on_error == "stop":
            raise error
        self.skipped += 1
        if len(self.errors) < _SHOWN:
            self.errors.append(str(error))

    def note(self, text: str) -> None:
        """Something to say once the reading is over."""
        self.notes.append(text)


def is_shard_name(name: object) -> bool:
    """Whether a shard has this name; it is no path, so it leads nowhere else."""
    return isinstance(name, str) and _SHARD.fullmatch(name) is not None


def find(inputs: Iterable[str | Path], reading: Reading, report: Report, exclude: Path | None = None) -> list[Source]:
    """The files of the inputs, each once, in the order of the inputs; those of a folder by their names.

    Hidden files are passed over, and so are, in folders and globs, files of other kinds; the latter are told.

    Args:
        inputs: Files, folders, globs, or "-" for standard input.
        reading: How they are read.
        report: Gets links that lead nowhere or outside of their folder.
        exclude: A folder or file that is not looked into: the output.

    Raises:
        InvalidInputError: An input that is not there, has nothing to read, or has an ending that is not read.
    """
    finder = _Finder(reading, report, None if exclude is None else os.path.realpath(exclude))
    for given in inputs:
        finder.add(os.fspath(given))
    if finder.others:
        kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(finder.others.items()))
        report.note(f"Files of other kinds were passed over: {kinds}.")
    return list(finder.found.values())


class _Finder:
    def __init__(self, reading: Reading, report: Report, exclude: str | None) -> None:
        self._reading, self._report, self._exclude = reading, report, exclude
        self.found: dict[str, Source] = {}  # by the real path
        self.others: Counter[str] = Counter()  # files that are not read, by their ending
        self._seen = 0  # files to read, the same one perhaps twice

    def add(self, given: str) -> None:
        """The files of one input."""
        if given == STDIN:
            self.found[STDIN] = Source(Path(STDIN), STDIN, self._reading.ending or ".txt")
            return
        if not given.strip():  # of a variable that is not set; the path of no text is the folder one is in
            raise InvalidInputError(f"An input must be a file, a folder or a glob, got {given!r}.")
        name = os.path.normpath(given)
        paths = [name] if os.path.lexists(name) else sorted(glob.glob(name, recursive=True))
        if not paths and glob.has_magic(name):
            raise InvalidInputError(f"No file matches {given}.")
        if not paths:
            raise FileNotFoundError(f"There is no file {given}.")
        before = self._seen
        for path in paths:
            if os.path.realpath(path) == self._exclude:  # which a glob matches, too
                continue
            if os.path.isdir(path):
                self._walk(Path(path), named=name == path)
            elif name == path and self._ending(path) is None:
                ending = Path(path).suffix
                raise InvalidInputError(f"{path} ends in {ending!r}. Give a file that ends in {', '.join(ENDINGS)}.")
            else:
                self._take(Path(path))
        if self._seen == before:
            raise InvalidInputError(f"{given} has no file that ends in {', '.join(ENDINGS)}.")

    def _ending(self, path: str) -> str | None:
        ending = Path(path).suffix.lower()
        return self._reading.ending or (ending if ending in ENDINGS else None)

    def _take(self, path: Path) -> None:
        ending = self._ending(path.name)
        if ending is None:
            self.others[path.suffix.lower() or "without ending"] += 1
            return
        self._seen += 1
        if has_half_characters(str(path)):
            shown = os.fsencode(path).decode("utf-8", "replace")
            self._report(InvalidInputError(f"the name of {shown} is not UTF-8, and so no id. Rename the file."))
        elif not path.exists():
            self._report(InvalidInputError(f"{path} is a link to nothing. Remove it."))
        else:
            self.found.setdefault(os.path.realpath(path), Source(path, path.as_posix(), ending))

    def _walk(self, folder: Path, *, named: bool) -> None:
        root = os.path.realpath(folder)
        for place, folders, files in os.walk(folder, onerror=self._unreadable):
            real = {name: os.path.realpath(os.path.join(place, name)) for name in (*folders, *files)}
            shown = [name for name in sorted(real) if not name.startswith(".") and real[name] != self._exclude]
            folders[:] = [name for name in folders if name in shown]
            if MANIFEST in files and any(map(is_shard_name, files)):
                self._skip_vectors(Path(place), named=named and Path(place) == folder)
                continue
            notes = _DATASET_NOTES if set(files) >= _DATASET_NOTES else set()
            for name in shown:
                path = Path(place, name)
                if path.is_symlink() and os.path.commonpath([root, real[name]]) != root:
                    self._seen += 1
                    self._report(
                        InvalidInputError(
                            f"{path} is a link to {real[name]}, outside of {folder}. Give that file itself instead."
                        )
                    )
                elif (path.is_file() and name not in notes) or (path.is_symlink() and not path.exists()):
                    self._take(path)
                elif not path.is_dir() and name not in notes:
                    self.others["special files"] += 1
            folders[:] = sorted(folders)

    def _skip_vectors(self, place: Path, *, named: bool) -> None:
        """Pass over texts that `encode` has written with their vectors: they were read from somewhere already."""
        if named:
            raise InvalidInputError(
                f"{place} holds vectors that encode wrote. Make a store of them with st-llm2vec index --from-vectors; "
                "to encode its texts again, give what it was made of."
            )
        self._report.note(f"{place} was passed over: it holds vectors that encode wrote.")

    def _unreadable(self, error: OSError) -> None:
        self._report(InvalidInputError(f"{error.filename} cannot be read ({error.strerror})."))
