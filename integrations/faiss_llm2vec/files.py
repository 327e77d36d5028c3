"""The files of a store: regular files and nothing else, made exclusively, and read by FAISS within bounds.

A store can come from a stranger, by git, in an archive or on a mounted disk. A link, pipe or device in the place of a
file is refused, whatever it leads to, and a FAISS file is looked at before FAISS reads it: it must not name another
file, and not claim to hold more than it has bytes.
"""

from __future__ import annotations

import hashlib
import mmap as _mmap
import os
import re
import stat
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from faiss_llm2vec.kinds import METRICS, faiss
from faiss_llm2vec.manifest import File, Manifest, is_file_name
from st_llm2vec.errors import StoreCorruptedError, StoreError

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# Opening a pipe waits for its other end, unless told not to.
_READ = os.O_RDONLY | _NO_LINKS | getattr(os, "O_NONBLOCK", 0)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINKS

_KINDS_OF_FILE = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)
# A FAISS header: dimension, rows, two numbers of no meaning, is_trained, metric (with an argument above 1).
_HEADER = struct.Struct("<4siqqq?i")
_FLAT = {b"IxFI": faiss.METRIC_INNER_PRODUCT, b"IxF2": faiss.METRIC_L2}
_LENGTH = struct.Struct("<Q")
_ELSEWHERE = b"ilod"  # FAISS's mark of inverted lists in another file, whose name follows

_DRAFT = re.compile(r"\.store-[0-9a-f]{32}\.db(-wal|-shm|-journal)?", re.ASCII)  # of an interrupted `create`

_limits = threading.Lock()  # FAISS keeps its bounds per process


def regular(path: Path) -> os.stat_result | None:
    """The status of a regular file, None if there is nothing.

    Raises:
        StoreCorruptedError: There is a link, folder, pipe or device.
    """
    return _status(path, stat.S_ISREG, "regular file")


def folder(path: Path) -> os.stat_result | None:
    """The status of a folder, None if there is nothing.

    Raises:
        StoreCorruptedError: There is a link or anything else.
    """
    return _status(path, stat.S_ISDIR, "folder")


def _status(path: Path, is_right: Any, wanted: str) -> os.stat_result | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error
    if not is_right(found.st_mode):
        kind = next((name for is_kind, name in _KINDS_OF_FILE if is_kind(found.st_mode)), "a device")
        raise StoreCorruptedError(
            f"{path} must be a {wanted}, got {kind}. A store never makes one there, and it is not followed; put the "
            f"{wanted} itself in its place, if you know that it belongs there."
        )
    return found


def identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def is_draft(name: str) -> bool:
    """Whether `FaissStore.create` gives this name to the database that it is making."""
    return _DRAFT.fullmatch(name) is not None


def leftovers(path: Path, manifest: Manifest) -> list[Path]:
    """Files of ours in a store that nothing names; what others put there is theirs."""
    named = {file.name for entry in manifest.segments for file in entry.files}
    drafts = [file for file in _files_in(path) if is_draft(file.name)]
    if folder(path / "segments") is None:
        return drafts
    ours = [file for file in _files_in(path / "segments") if is_file_name(file.name)]
    return drafts + [file for file in ours if file.name not in named]


def _files_in(path: Path) -> list[Path]:
    with os.scandir(path) as entries:
        return [Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # Windows keeps files that a reader maps; the next writer sweeps them
            path.unlink(missing_ok=True)


def write(index: Any, path: Path) -> File:
    """Writes a FAISS index to a new file, flushed to the disk, and returns its size and checksum."""
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, _WRITE, 0o666), "wb") as stream:

        def take(block: bytes) -> int:
            digest.update(block)
            return stream.write(block)

        writer = faiss.PyCallbackIOWriter(take, 1 << 20)
        (faiss.write_index_binary if isinstance(index, faiss.IndexBinary) else faiss.write_index)(index, writer)
        stream.flush()
        os.fsync(stream.fileno())
        size = stream.tell()
    return File(path.name, size, digest.hexdigest())


def difference(path: Path, file: File, *, content: bool) -> str | None:
    """Says how a file differs from the one that was written; None if it does not."""
    try:
        with _opened(path) as descriptor:
            return _difference(path, descriptor, file, content)
    except (StoreError, OSError) as error:
        return f"{path} is missing or cannot be read ({error})."


def _difference(path: Path, descriptor: int, file: File, content: bool) -> str | None:
    size = os.fstat(descriptor).st_size
    if size != file.size:
        return f"{path} has {size} bytes; {file.size} were written."
    if not content:
        return None
    digest = hashlib.sha256()
    for block in iter(lambda: os.read(descriptor, 1 << 20), b""):
        digest.update(block)
    return None if digest.hexdigest() == file.sha256 else f"{path} is not what was written (its sha256 differs)."


def read_vectors(path: Path, *, rows: int, dimension: int, metric: str, mmap: bool) -> Any:
    """The faiss.IndexIDMap over a flat index in a file, which must have this shape and metric.

    Raises:
        StoreCorruptedError: It is another kind of file, or has another shape or metric.
    """
    with _opened(path) as descriptor:
        _check_header(path, descriptor, rows, dimension, metric)
        return _read(path, descriptor, faiss.read_index, mmap=mmap)


def read_index(path: Path, *, mmap: bool) -> Any:
    """The FAISS index in a file, whatever its class.

    Raises:
        StoreCorruptedError: FAISS cannot read it, or it would have FAISS read another file.
    """
    with _opened(path) as descriptor:
        binary = os.read(descriptor, 2) == b"IB"
        read = faiss.read_index_binary if binary else faiss.read_index
        if _may_name_a_file(descriptor):
            _read_alone(path, descriptor, read)
        return _read(path, descriptor, read, mmap=mmap)


def _check_header(path: Path, descriptor: int, rows: int, dimension: int, metric: str) -> None:
    """Everything in a vector file but its vectors and ids: from that, its size follows."""
    start = os.read(descriptor, 2 * _HEADER.size + _LENGTH.size)
    size = len(start) + rows * (4 * dimension + 8) + _LENGTH.size
    if os.fstat(descriptor).st_size == size and len(start) == 2 * _HEADER.size + _LENGTH.size:
        outer, inner = _HEADER.unpack_from(start), _HEADER.unpack_from(start, _HEADER.size)
        (numbers,) = _LENGTH.unpack_from(start, 2 * _HEADER.size)
        wanted = dimension, rows, METRICS[metric]
        shapes = {(header[1], header[2], header[6]) for header in (outer, inner)}
        fits = outer[0] == b"IxMp" and _FLAT.get(inner[0]) == METRICS[metric] and numbers == rows * dimension
        if fits and shapes == {wanted}:
            return
    raise StoreCorruptedError(
        f"{path} does not hold {rows} vectors of dimension {dimension} for metric {metric!r}, as the manifest says."
    )


def _may_name_a_file(descriptor: int) -> bool:
    """Whether the bytes of FAISS's mark are anywhere; where they are not, no other file can be named."""
    if os.fstat(descriptor).st_size == 0:
        return False
    with _mmap.mmap(descriptor, 0, access=_mmap.ACCESS_READ) as content:
        return content.find(_ELSEWHERE) >= 0


def _read_alone(path: Path, descriptor: int, read: Any) -> None:
    """Has FAISS read an index to the end without other files; it asks for a mark with a read of its very length."""
    os.lseek(descriptor, 0, os.SEEK_SET)

    def give(size: int) -> bytes:
        block = os.read(descriptor, size)
        return b"" if block == _ELSEWHERE else block

    try:
        with _bounded(os.fstat(descriptor).st_size):
            read(faiss.PyCallbackIOReader(give, 1 << 20))
    except (RuntimeError, MemoryError) as error:
        raise StoreCorruptedError(f"{path} names another file or is damaged; FAISS did not read on.") from error


def _read(path: Path, descriptor: int, read: Any, *, mmap: bool) -> Any:
    # IO_FLAG_MMAP_IFC maps flat vectors as well; plain IO_FLAG_MMAP maps inverted lists only.
    flags = faiss.IO_FLAG_MMAP_IFC if mmap else 0
    os.lseek(descriptor, 0, os.SEEK_SET)
    # By its descriptor, it is the file that was looked at, whatever its name (FAISS takes names in UTF-8 only).
    name = f"/dev/fd/{descriptor}"
    try:
        with _bounded(os.fstat(descriptor).st_size):
            return read(name if os.path.exists(name) else str(path), flags)
    except (RuntimeError, MemoryError, TypeError) as error:
        raise StoreCorruptedError(f"{path}: FAISS cannot read it ({str(error)[-200:]}).") from error


@contextmanager
def _bounded(size: int) -> Iterator[None]:
    """Keeps FAISS from reserving memory for more than a file can hold (a limit that FAISS before 1.14 lacks)."""
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):
        yield
        return
    with _limits:
        before = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(size + (1 << 20))
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of a regular file."""
    if regular(path) is None:
        raise StoreCorruptedError(f"{path} is missing.")
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        raise StoreCorruptedError(f"{path} cannot be read ({error}).") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StoreCorruptedError(f"{path} must be a regular file.")
        yield descriptor
    finally:
        os.close(descriptor)
