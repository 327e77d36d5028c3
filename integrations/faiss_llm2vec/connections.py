"""How `store.db` is opened: by SQLite within bounds, frozen, and without trust in the files beside it.

A reader is isolated from writers by SQLite's write-ahead log, which needs a file of shared memory beside the database.
Where that can be neither made nor read (a folder of another user, closed by its writer), SQLite could only be told that
the file never changes, and would mix old pages and new ones as soon as somebody wrote. So the reader takes a copy.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faiss_llm2vec import files, filters, lexical
from st_llm2vec.errors import StoreCorruptedError, StoreError

SCHEMA = f"""
CREATE TABLE docs (docid INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, text TEXT NOT NULL, metadata TEXT NOT NULL,
                   checksum INTEGER NOT NULL);
{filters.SCHEMA};
CREATE TABLE manifest (only INTEGER PRIMARY KEY CHECK (only = 1), json TEXT NOT NULL, checksum INTEGER NOT NULL);
"""

_LOG, _SHARED = "-wal", "-shm"
# A rollback journal can name a further file, which SQLite then deletes. A store has a write-ahead log and never this.
_JOURNAL = "-journal"
_LOG_BYTES = 1 << 25  # the log shrinks to this when SQLite begins it anew; it does so at 16 MiB unless readers need it
_ATTEMPTS = 20
_SETTLED = 0.1  # seconds; file times are coarser than that nowhere


def connect(path: Path | None, mode: str = "") -> sqlite3.Connection:
    """Connect to a file, or to nothing but memory.

    Args:
        mode: SQLite's: "rwc" makes the file, "rw" may write, "ro" reads.
    """
    target = ":memory:" if path is None else f"{path.absolute().as_uri()}?mode={mode}"
    # isolation_level=None: transactions begin and end where we say. Threads take turns by the store's own lock.
    sql = sqlite3.connect(target, uri=path is not None, isolation_level=None, check_same_thread=False, timeout=30)
    sql.execute("PRAGMA trusted_schema = OFF")  # what a file defines calls no function with effects
    sql.execute("PRAGMA cell_size_check = ON")
    return sql


def open_frozen(path: Path) -> tuple[sqlite3.Connection, tuple[int, int] | None]:
    """Open an existing database in a read transaction.

    Returns:
        The connection, and device and inode of the file; None instead of these if the connection is to a copy.

    Raises:
        StoreCorruptedError: SQLite cannot read it, or a file beside it is none of a store's.
    """
    with named(path):
        for _ in range(_ATTEMPTS):
            before = _statuses(path)
            for mode in ("rw", "ro") if all(status.st_nlink == 1 for status in before.values()) else ():
                if sql := _frozen(path, mode):
                    found = files.regular(path)
                    if found and files.identity(found) == files.identity(before[path]):
                        return sql, files.identity(found)
                    sql.close()  # replaced meanwhile
                    break
            else:
                if copy := _copied(path):
                    return copy, None
    raise StoreError(f"{path} is being written all the time and can only be read by copying it. Try again later.")


def _frozen(path: Path, mode: str) -> sqlite3.Connection | None:
    """A connection in a read transaction; None where SQLite needs more rights than there are."""
    sql = connect(path, mode)
    try:
        sql.execute("PRAGMA synchronous = FULL")  # COMMIT returns when the disk has it
        sql.execute("PRAGMA cache_size = -65536")  # KiB; the default 2 MiB is far below the table of fields
        sql.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        sql.execute("BEGIN")
        sql.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    except sqlite3.OperationalError as error:
        sql.close()
        if "locked" in str(error):
            raise
        return None
    except BaseException:
        sql.close()
        raise
    return sql


def _copied(path: Path) -> sqlite3.Connection | None:
    """A private copy, gone when it is closed; None if the files changed meanwhile."""
    before = _signature(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        try:
            for name in (path, path.with_name(path.name + _LOG)):
                with suppress(FileNotFoundError):
                    shutil.copyfile(name, copy.with_name(name.name), follow_symlinks=False)
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error}).") from error
        if before != _signature(path):
            return None
        source = connect(copy, "rw")
        try:
            return copied(source)
        finally:
            source.close()


def copied(source: sqlite3.Connection) -> sqlite3.Connection:
    """A copy of what a connection sees, in a disk file without a name, gone when it is closed."""
    target = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    source.backup(target)
    return target


def _statuses(path: Path) -> dict[Path, os.stat_result]:
    """The database and the files that SQLite keeps beside it."""
    beside = [path.with_name(path.name + ending) for ending in ("", _LOG, _SHARED, _JOURNAL)]
    found = {name: status for name in beside if (status := files.regular(name)) is not None}
    if beside[-1] in found:
        raise StoreCorruptedError(f"{beside[-1]} is none of a store's files, and SQLite would act on it. Remove it.")
    if path not in found:
        raise StoreCorruptedError(f"{path} is missing.")
    return found


def _signature(path: Path) -> list[object]:
    """What changes when the database or its log does, taken when the last change is long enough ago to show."""
    while True:
        statuses = [status for name, status in _statuses(path).items() if not name.name.endswith(_SHARED)]
        wait = max(status.st_mtime for status in statuses) + _SETTLED - time.time()
        if not 0 < wait <= _SETTLED:
            return [(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for status in statuses]
        time.sleep(wait)


def check_schema(path: Path, sql: sqlite3.Connection) -> None:
    """Compare what a file defines with what a store defines, word for word, before any of it is used.

    So a view or trigger of a stranger never runs, and what else can be in a definition (checks, generated columns,
    indexes over expressions) is ours.

    Raises:
        StoreCorruptedError: It is not the database of a store.
    """
    query = "SELECT type, name, sql FROM sqlite_master WHERE name NOT IN ('sqlite_stat1', 'sqlite_stat4') LIMIT 20"
    with named(path):
        found = sql.execute(query).fetchall()
    ours = connect(None)
    ours.executescript(SCHEMA)
    if any(name == lexical.NAME for _, name, _ in found):
        lexical.require()
        lexical.make(ours)
    wanted = ours.execute(query).fetchall()
    ours.close()
    if sorted(map(_words, found)) != sorted(map(_words, wanted)):
        names = ", ".join(sorted({str(name) for _, name, _ in wanted} - {str(name) for _, name, _ in found}))
        missing = f"no such table: {names}; " if names else ""
        raise StoreCorruptedError(f"{path}: {missing}its tables are not a store's; it is not the database of a store.")


def _words(row: tuple[object, ...]) -> list[str]:
    return [" ".join(str(part).split()) for part in row]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into the store's, with the name of the file."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if str(error).startswith("no such"):
            raise StoreCorruptedError(f"{path}: {error}; it is not the database of a store.") from error
        if str(error).startswith("Could not decode"):
            raise StoreCorruptedError(f"{path} is damaged or was edited: {error}") from error
        # No damage: disk full, no permission, busy.
        raise StoreError(f"{path}: {error}. Nothing was changed.") from error
    except sqlite3.DatabaseError as error:
        raise StoreCorruptedError(f"{path}: {error}") from error
