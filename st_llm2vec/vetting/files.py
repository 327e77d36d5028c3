"""Files of a checkpoint from anywhere: regular ones, in their own folder, of a sane size, JSON that ends."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InvalidCheckpointError, LLM2VecError, MissingExtraError

MAX_BYTES = 1 << 26  # of a JSON file; the largest published ones (tokenizer.json of 256,000 tokens) have half of it
MAX_DEPTH = 32  # of JSON; published files nest less than 10 deep, and Python's own limit is the stack's
MAX_NUMBER = 10**40  # tokenizers write 10**30 for "no limit"; floats end at 10**308
MAX_NAME = 255  # bytes of a file's name, or of a folder's on the way to it: file systems take no more
MAX_PATH = 1024  # characters of a path inside a folder; published ones have less than 100
_FILES = (".json", ".safetensors", ".jinja", ".txt", ".model", ".md")
# Files besides JSON that libraries read whole. Weights are mapped, and what else lies in a folder is left alone.
_READ_WHOLE = re.compile(r"(vocab|merges)\.txt|README\.md|.*\.(jinja|model)")
_REMEDY = "Do not use this checkpoint, or download it again from where you trust it."


def require_files(folder: Path) -> None:
    """Raises where an entry of a folder is no regular file, or a link that leads out of the repository.

    Links stay inside the folder itself or, in the hub's cache, inside the repository's own blobs.

    Raises:
        InvalidCheckpointError: A link to elsewhere or to nothing, a FIFO, a device, a folder in the place of a file, or
            a text of more bytes than any published one has.
    """
    inside = _own(folder)
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            _require_inside(path, inside)
        is_folder = path.is_dir() and path.suffix not in _FILES
        if not is_folder:
            require_regular(path)
            if _READ_WHOLE.fullmatch(path.name):
                _require_small(path)


def require_file(folder: Path, name: str) -> Path:
    """The regular file of this name in a folder, or below it, by way of no link that leads out.

    Raises:
        InvalidCheckpointError: As `require_files`; also where there is no file.
    """
    _require_inside(folder / name, _own(folder))
    require_regular(folder / name)
    return folder / name


def require_regular(path: Path) -> None:
    """Raises `InvalidCheckpointError` where a path is no regular file, or a link to none."""
    if not path.is_file():
        raise InvalidCheckpointError(f"{str(path)!r} is {_kind(path)}, not a regular file. {_REMEDY}")


def _require_inside(path: Path, inside: list[Path]) -> None:
    real = Path(os.path.realpath(path))  # resolve() raises where links go in a circle
    if not any(real.is_relative_to(place) for place in inside):
        raise InvalidCheckpointError(
            f"{str(path)!r} is a link to {str(real)!r}, which is not in its own folder. Copy the file "
            "there if it is yours; a checkpoint of somebody else's must not read files of this machine."
        )


def _require_small(path: Path) -> None:
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InvalidCheckpointError(f"{path} has {size:,} bytes; such files have at most {MAX_BYTES:,}. {_REMEDY}")


def _own(folder: Path) -> list[Path]:
    """Where links in a folder may lead: into it, or into the blobs of the hub's repository that it is a part of."""
    folder = folder.resolve()
    for snapshots in folder.parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            return [folder, snapshots.parent / "blobs"]
    return [folder]


def _kind(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link to nothing"
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def can_be_path(path: Any) -> bool:
    """Whether a file can have this path: a text that the system can write, no part of it too long for a name."""
    try:
        parts = os.fsencode(path).split(b"/") if isinstance(path, str) else []
    except UnicodeEncodeError:  # half a character, as JSON can spell
        return False
    return bool(parts) and all(len(part) <= MAX_NAME and b"\0" not in part for part in parts)


def leaves(path: str) -> bool:
    """Whether the name of a file is no path below the folder of the file that names it, on any system."""
    return (
        os.path.isabs(path)
        or bool(re.match(r"[A-Za-z]:|[\\/]", path))
        or ".." in re.split(r"[\\/]", path)
        or len(path) > MAX_PATH
        or not can_be_path(path)
    )


def require_below(file: Path, name: Any) -> Path:
    """The path that a file means by a name of another one.

    Raises:
        InvalidCheckpointError: The name is no text, or leads out of the folder, be it by a link on the way.
    """
    if not isinstance(name, str) or leaves(name):
        raise InvalidCheckpointError(
            f"{file} names {name!r:.200}, which is no path inside its own folder. Such a file was not written by "
            f"save_pretrained. {_REMEDY}"
        )
    if os.path.lexists(path := file.parent / name):
        _require_inside(path, _own(file.parent))
    return path


def read_json(path: Path, kind: type = dict) -> Any:
    """The content of a JSON file; empty if there is no such file.

    Raises:
        InvalidCheckpointError: No regular file, no JSON, another kind, too large, or nested too deep.
    """
    if not os.path.lexists(path):
        return kind()
    if not path.is_file():
        raise InvalidCheckpointError(f"{path} is {_kind(path)}, not a regular file. {_REMEDY}")
    _require_small(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidCheckpointError(f"{path} is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise InvalidCheckpointError(f"{path} is nested more than {MAX_DEPTH} deep. {_REMEDY}") from error
    if not isinstance(content, kind):
        raise InvalidCheckpointError(f"{path} holds a {type(content).__name__}, not a {kind.__name__}.")
    return content


def require_shallow(path: Path, content: Any) -> None:
    """Raises `InvalidCheckpointError` where JSON is nested too deep, or holds a number that nothing can use."""
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidCheckpointError(f"{path} is nested more than {MAX_DEPTH} deep. {_REMEDY}")
        below = []
        for value in level:
            if isinstance(value, dict):
                below += [item for item in value.values() if isinstance(item, (dict, list, int))]
            elif isinstance(value, list):
                below += [item for item in value if isinstance(item, (dict, list, int))]
            elif abs(value) > MAX_NUMBER:
                raise InvalidCheckpointError(f"{path} holds a number of {len(str(value))} digits. {_REMEDY}")
        level = below


@contextmanager
def opening(folder: Path | str, options: Iterable[str] = ()) -> Iterator[None]:
    """Says of an error that another library raises about a checkpoint's content whose content it is.

    The tables of `vetting` are what is known to go wrong; the libraries that open a checkpoint raise whatever they
    come across (KeyError, TypeError, AssertionError, a panic of tokenizers).

    Args:
        folder: The checkpoint.
        options: Names of what the caller asked for besides, which may be at fault as well.

    Raises:
        InvalidCheckpointError, MissingExtraError.
    """
    try:
        yield
    except LLM2VecError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"{folder} needs a package that is not installed: {error}") from error
    except (Exception, RecursionError) as error:
        of_machine = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if of_machine or getattr(error, "errno", None) or "os error" in str(error):
            raise
        raise _unreadable(folder, error, options) from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of tokenizers, which is no Exception
            raise _unreadable(folder, error, options) from error
        raise


def _unreadable(folder: Path | str, error: BaseException, options: Iterable[str]) -> InvalidCheckpointError:
    said = " ".join(str(error).split())[:500]
    if asked := ", ".join(sorted(options)):
        return InvalidCheckpointError(
            f"{folder} cannot be opened with the options {asked} ({type(error).__name__}: {said}). Correct or leave "
            "out the option that this is about; else its files do not fit each other, or this version of transformers."
        )
    return InvalidCheckpointError(
        f"{folder} cannot be opened; its files do not fit each other, or this version of transformers "
        f"({type(error).__name__}: {said}). Download it again, or update transformers."
    )
