"""Output files that appear complete or not at all; texts are read by readers.py."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..readers import READERS, TEXT_COLUMN, Numbered, Rows, read_rows, require_pyarrow

__all__ = ["READERS", "TEXT_COLUMN", "Numbered", "Rows", "published", "read_rows", "require_pyarrow"]


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; the file or folder written there takes its name when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
