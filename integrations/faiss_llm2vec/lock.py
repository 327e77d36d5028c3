"""The writer's lock: a file that the system unlocks when its process ends, however it ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

from st_llm2vec.errors import StoreError, StoreLockedError


def acquire(path: Path) -> IO[bytes]:
    """Returns the locked file; closing it frees the lock.

    Raises:
        StoreLockedError: Another writer has it.
        StoreError: The folder cannot be written.
    """
    try:
        stream = open(path, "ab")  # noqa: SIM115  (stays open as long as the lock is held)
    except OSError as error:
        raise StoreError(f"{path.parent} cannot be written ({error}); it can be read and searched.") from error
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise StoreLockedError(
            f"{path.parent} is being written by another store object, in this process or another. Close that one first."
        ) from None
    return stream
