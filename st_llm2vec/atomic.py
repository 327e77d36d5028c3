"""Files and folders that appear complete or not at all: written beside their place, flushed, then renamed into it.

And the lock of one writer at a time.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InvalidInputError, LLM2VecError

if TYPE_CHECKING:
    from typing_extensions import Self

DRAFTS = ".draft-*"  # folders beside a target, which a process that was killed leaves
_PREFIX = DRAFTS[:-1]
_LOCK_FLAGS = (
    os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
)


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """Yield a place for a file or folder, which becomes `target`, durably, when the block ends without an error.

    The place has the name of `target`, in a folder of its own beside it. An existing file, or empty folder, is
    replaced; after an error, `target` is as it was.

    Raises:
        OSError: The disk is full, among others.

    Example:
        with published(Path("vectors.npy")) as draft:
            np.save(draft, vectors)
    """
    with _draft(target) as draft:
        yield draft
        move(draft, target)


@contextmanager
def published_folder(target: Path, stale: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a folder whose content becomes, or joins, the folder `target` when the block ends without an error.

    Files and folders of the same names are replaced one by one; a crash in the middle of that leaves both kinds.
    Several processes may do it at once, as those of a training do where the host lets each save the checkpoint.

    Args:
        target: A folder, there already or not.
        stale: Patterns of files in `target` that are removed if they are not replaced.

    Raises:
        OSError: The disk is full, among others; `target` is as it was.
    """
    with _draft(target) as draft:
        draft.mkdir()
        yield draft
        if not target.is_dir():
            try:
                move(draft, target)
                return
            except OSError:
                if not target.is_dir():  # else another process has been quicker
                    raise
        flush(draft)
        left = {file for pattern in stale for file in target.glob(pattern) if not (draft / file.name).exists()}
        for item in sorted(draft.iterdir()):
            _replace(item, target / item.name)
        for file in left:
            file.unlink(missing_ok=True)
        sync_folder(target)


def _replace(item: Path, place: Path, attempts: int = 100) -> None:
    """Put a file, or a folder with all that is in it, in the place of one; others may be doing so, too."""
    for attempt in range(1, attempts + 1):
        if item.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        try:
            os.replace(item, place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == attempts:
                raise


@contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Keep every other run from writing `target` until the block ends, or this process does.

    The lock is a hidden file beside it, which is removed in the end.

    Raises:
        InvalidInputError: Another run is writing it, or there is no place for the lock.
    """
    target = target.resolve()  # one lock for all its names
    path = target.with_name(f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock.acquire(path)
    except BlockingIOError:
        raise InvalidInputError(
            f"Another run is writing {target}. Wait for its end, or choose another output."
        ) from None
    except OSError as error:
        raise InvalidInputError(f"{target} cannot be written: {error.strerror or error}.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps an open file
            path.unlink()  # while it is held: who has opened it sees that it is gone
        lock.release()


class Lock:
    """A held lock: a file that the system unlocks when its process ends, however it ends.

    filelock does not serve here, for two properties that tests/faiss_llm2vec/test_sharing.py proves. A process that is
    forked shares the lock of its parent, and both go on writing, in turns (`test_parent_and_child_write_in_turns...`);
    filelock 4 closes the descriptor in the child and raises "was inherited across fork". And a file that was replaced
    is noticed (`test_a_writer_does_not_touch_a_folder_that_took_the_place...`); filelock goes on saying that it is
    held, while another writer takes the new file.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._identity = _identity(os.fstat(descriptor))
        self._process = os.getpid()

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """Lock the file at `path`, made if there is none.

        Raises:
            BlockingIOError: Another has it.
            OSError: It cannot be made, or locked.
        """
        while True:
            descriptor = os.open(path, _LOCK_FLAGS, 0o666)
            lock = cls(path, descriptor)
            try:
                lock._take()
                if lock.in_place():
                    return lock
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # the file was replaced between opening and locking it

    def hold(self) -> None:
        """Make sure that a lock that was shared by a fork is still held by one of the family."""
        if sys.platform != "win32":
            self._take()

    def in_place(self) -> bool:
        """Whether the file at the path is still the one that is locked."""
        try:
            return _identity(os.lstat(self._path)) == self._identity
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Free the lock; in a forked process, leave it to the one that took it."""
        if self._process == os.getpid() and sys.platform != "win32":
            import fcntl

            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # closing alone would leave it with those who were forked
        os.close(self._descriptor)

    def _take(self) -> None:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(self._descriptor, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise
            raise BlockingIOError(error.errno, f"{self._path} is locked") from None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A free name for `target` in a new folder beside it, which is removed in the end."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target.parent))
    try:
        yield folder / target.name
    except LLM2VecError:
        raise
    except Exception as error:  # safetensors has errors of its own
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise OSError(
                errno.ENOSPC, f"No space left on device for {target}, which is as it was before: {error}"
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move(draft: Path, target: Path) -> None:
    """Rename a finished file or folder on the same disk, so that no crash leaves `target` without its content."""
    flush(draft)
    os.replace(draft, target)
    sync_folder(target.absolute().parent)


def flush(path: Path) -> None:
    """Bring a file, or everything in a folder, to the disk."""
    for part in (path, *path.rglob("*")):
        if part.is_dir():
            sync_folder(part)
        elif part.is_file():
            _sync(part, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes for writers only


def sync_folder(path: Path) -> None:
    """Bring a folder's list of names to the disk, where the system lets one (Windows does not, and needs it not)."""
    if os.name != "nt":
        _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
