"""The writer's lock: a file that the system unlocks when its process ends, however it ends.

filelock does not serve here, for two properties that tests/faiss_llm2vec/test_sharing.py proves. A process that is
forked shares the lock of its parent, and both go on writing, in turns (`test_parent_and_child_write_in_turns...`);
filelock 4 closes the descriptor in the child and raises "was inherited across fork". And a lock whose file was replaced
is noticed before each change (`test_a_writer_does_not_touch_a_folder_that_took_the_place...`); filelock goes on saying
that it is held, while another writer takes the new file.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from faiss_llm2vec import files
from st_llm2vec.errors import StoreError, StoreLockedError

_FLAGS = (
    os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
)


class Lock:
    """A held lock."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._identity = files.identity(os.fstat(descriptor))
        self._process = os.getpid()

    @classmethod
    def acquire(cls, path: Path) -> Lock:
        """Lock the file at `path`, made if there is none.

        Raises:
            StoreLockedError: Another writer has it.
            StoreError: The folder cannot be written, or there is something else in the place of the file.
        """
        while True:
            files.regular(path)
            try:
                descriptor = os.open(path, _FLAGS, 0o666)
            except OSError as error:
                raise StoreError(f"{path.parent} cannot be written ({error}); it can be read and searched.") from error
            lock = cls(path, descriptor)
            try:
                lock._take()
            except BaseException:
                os.close(descriptor)
                raise
            if lock.in_place():
                return lock
            os.close(descriptor)  # the file was replaced between opening and locking it

    def hold(self) -> None:
        """Make sure that a lock that was shared by a fork is still held by one of the family."""
        if sys.platform != "win32":
            self._take()

    def in_place(self) -> bool:
        """Whether the file at the path is still the one that is locked."""
        status = files.regular(self._path)
        return status is not None and files.identity(status) == self._identity

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
                raise StoreError(f"{self._path} cannot be locked: {error}. A store needs a local disk.") from error
            raise StoreLockedError(
                f"{self._path.parent} is being written by another store object, in this process or another. Close that "
                "one first."
            ) from None
