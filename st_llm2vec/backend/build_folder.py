"""Where compiled code is kept: a folder that nobody else can write, for what is in it is loaded and run.

torch's own default lies below the temporary folder, under a name that another user can make first.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..aliases import cache_folder

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own; what the user set stays, if it is safe


def use_build_folder() -> str:
    """Makes torch keep what it compiles in a folder of our own.

    Returns:
        Why nothing may be compiled: the folder, or one above it, can be written by others; empty if all is well.
    """
    folder = Path(os.environ.get(VARIABLE) or cache_folder().parent / "compiled").absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if reason := _others_can_write(folder.resolve()):
            return f"{reason}, so what is loaded from there could be theirs; set {VARIABLE} to a folder of yours"
    except OSError as error:
        return f"{folder} cannot be used ({error}); set {VARIABLE} to a folder of yours"
    os.environ[VARIABLE] = str(folder)
    return ""


def _others_can_write(folder: Path) -> str:
    """Whose the folder is, or who can replace it or what is in it; empty if nobody but us (and root)."""
    if not hasattr(os, "getuid"):  # Windows: the user's own folders are the user's
        return ""
    for place in (folder, *folder.parents):
        found = place.stat()
        if found.st_uid not in ({os.getuid()} if place == folder else {os.getuid(), 0}):
            return f"{place} belongs to another user"
        kept = place != folder and found.st_mode & stat.S_ISVTX  # as in /tmp: nobody renames what is another's
        shared = found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.getgid())
        if not kept and (found.st_mode & stat.S_IWOTH or shared or (place == folder and found.st_mode & stat.S_IWGRP)):
            return f"{place} can be written by other users"
    return ""
