"""Memory that is given back once nobody needs it, and memory that is not, as the next step needs it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path


def release_weight_files() -> None:
    """Let go of what was read of mapped weight files: layers hold copies, and of an embedding table little is used.

    Pages that were written to stay, the others come back when they are read (Linux; nothing elsewhere).
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith(".safetensors"):
                start, end = (int(address, 16) for address in line.split()[0].split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 21)  # MADV_PAGEOUT
        libc.malloc_trim(0)


def keep_freed_memory() -> None:
    """Let glibc keep what a training step frees: the next one would fetch gigabytes anew, page by page (mallopt(3))."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, which glibc no longer raises by itself; the most that it takes
