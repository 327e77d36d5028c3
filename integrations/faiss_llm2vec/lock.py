"""The writer's lock of a store: the lock of st_llm2vec, with the errors of stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from faiss_llm2vec import files
from st_llm2vec import atomic
from st_llm2vec.errors import StoreError, StoreLockedError

if TYPE_CHECKING:
    from typing_extensions import Self


class Lock(atomic.Lock):
    """A held lock."""

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """Lock the file at `path`, made if there is none.

        Raises:
            StoreLockedError: Another writer has it.
            StoreError: The folder cannot be written, or there is something else in the place of the file.
        """
        files.regular(path)
        try:
            return super().acquire(path)
        except OSError as error:
            raise StoreError(f"{path.parent} cannot be written ({error}); it can be read and searched.") from error

    def in_place(self) -> bool:
        """Whether the file at the path is still the one that is locked."""
        files.regular(self._path)
        return super().in_place()

    def _take(self) -> None:
        try:
            super()._take()
        except BlockingIOError:
            raise StoreLockedError(
                f"{self._path.parent} is being written by another store object, in this process or another. Close that "
                "one first."
            ) from None
        except OSError as error:
            raise StoreError(f"{self._path} cannot be locked: {error}. A store needs a local disk.") from error
