"""Who may do what with a store object when: threads, the writer's lock, and processes that were forked.

Threads take turns. One store object at a time is the writer, by the lock; it becomes it with its first change, and
stays it when that worked. A process that is forked shares the lock with its parent: both may write, each change of one
begins on what the other left, and SQLite's own lock keeps them apart. What a fork must not share is SQLite's
connection, whose locks belong to the process that made it; so a child opens the store again when it first uses it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from faiss_llm2vec.contents import Contents
from faiss_llm2vec.lock import Lock
from faiss_llm2vec.manifest import Manifest
from st_llm2vec.errors import InvalidInputError, StoreError

Check = Callable[[Manifest], None]
Method = TypeVar("Method", bound=Callable[..., Any])


def absolute(path: str | Path) -> Path:
    """A path that stays the same when the working folder changes."""
    named = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    try:
        fits = isinstance(named, str) and b"\0" not in os.fsencode(named)
    except UnicodeEncodeError:  # half a character
        fits = False
    if not fits:
        raise InvalidInputError(f"path must be one that a file can have, got {path!r:.80} ({type(path).__name__}).")
    try:
        return Path(path).absolute()
    except OSError as error:
        raise StoreError(f"{path} has no place: the working folder is gone ({error}).") from error


def changes(method: Method) -> Method:
    """Mark a method that changes a store: if it fails, and none worked before, the lock of its access is given back."""

    @wraps(method)
    def changing(self: Any, *args: Any, **options: Any) -> Any:
        with self._access.claimed():
            return method(self, *args, **options)

    return cast("Method", changing)


class Access:
    """The contents of a store, for one user of them at a time."""

    def __init__(self, path: Path, *, mmap: bool, recover: bool) -> None:
        self.path = path
        self.recovers = recover
        self.contents = Contents(path, mmap=mmap, recover=recover)
        self._mutex = threading.RLock()
        self._lock: Lock | None = None
        self._claims = 0  # calls under way that change the store
        self._worked = False  # one of them did
        self._changing = False  # in the middle of a change
        self._closed = False
        _all.add(self)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def writes(self) -> bool:
        return self._lock is not None

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._mutex:
            self._check_open()
            if self._lock is None:
                self.contents.let_go()
            yield

    @contextmanager
    def claimed(self, *, keep: bool = True) -> Iterator[None]:
        """Around a whole call that changes the store.

        Args:
            keep: whether the store object stays the writer if the call worked.
        """
        with self._mutex:
            self._claims += 1
        worked = False
        try:
            yield
            worked = keep
        finally:
            with self._mutex:
                self._claims -= 1
                self._worked = self._lock is not None and (self._worked or worked)
                if not self._worked and not self._claims:
                    self._release()

    @contextmanager
    def writing(self, check: Check) -> Iterator[None]:
        """Around what has to see the newest state and be the only one to change it.

        Args:
            check: raises if this store object may not write to a store of such a manifest.

        Raises:
            StoreLockedError: Another writer has this store open.
            StoreError: The folder was replaced or cannot be written.
        """
        with self._mutex:
            self._check_open()
            if not self.contents.database.private:
                self.contents.check_in_place()
            first = self._lock is None
            if self._lock is None:
                self._lock = Lock.acquire(self.path / "lock")
            else:
                self._lock.hold()
            self._changing = True
            try:
                self.contents.begin(self._lock.in_place, sweep=first)
                check(self.contents.manifest)
                yield
            finally:
                self.contents.settle()
                self._changing = False

    def refresh(self, check: Check) -> None:
        if self.recovers:
            raise StoreError(f"{self.path} was opened with recover=True; open it again to see what it holds now.")
        with self._mutex:
            self._check_open()
            if self._lock is not None and not self._lock.in_place():
                self._release()  # of a folder that was replaced
            self.contents.refresh()
            check(self.contents.manifest)

    def close(self) -> None:
        with self._mutex:
            if not self._closed:
                self._closed = True
                self.contents.close()
                self._release()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path} was closed. Open it again with FaissStore.open({str(self.path)!r}, model).")
        if self.contents.stale and not self._changing:
            self.contents.settle()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock, self._worked = None, False

    # -- forks ---------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        self._mutex.acquire()  # so that no other thread is in the middle of anything

    def after_fork(self) -> None:
        self._mutex.release()

    def in_child(self) -> None:
        if self._changing:  # forked by the thread that is changing the store: nothing here may be touched
            self._closed = True
            _kept.append(self)
        elif not self._closed:
            self.contents.forked()
        self._mutex.release()


_all: weakref.WeakSet[Access] = weakref.WeakSet()
_kept: list[Access] = []
_forking: list[Access] = []


def _before() -> None:
    _forking[:] = list(_all)
    for access in _forking:
        access.before_fork()


def _in_parent() -> None:
    for access in _forking:
        access.after_fork()
    _forking.clear()


def _in_child() -> None:
    for access in _forking:
        access.in_child()
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
