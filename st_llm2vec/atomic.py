"""Files and folders that appear complete or not at all: written beside their place, flushed, then renamed into it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import LLM2VecError

DRAFTS = ".draft-*"  # folders beside a target, which a process that was killed leaves
_PREFIX = DRAFTS[:-1]


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
            move(draft, target)
            return
        flush(draft)
        left = {file for pattern in stale for file in target.glob(pattern) if not (draft / file.name).exists()}
        for item in sorted(draft.iterdir()):
            if item.is_dir():
                shutil.rmtree(target / item.name, ignore_errors=True)
            os.replace(item, target / item.name)
        for file in left:
            file.unlink()
        sync_folder(target)


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
