"""The readers and `published` under the names that other commands import them by."""

from __future__ import annotations

from ..corpus import published
from ..readers import READERS, TEXT_COLUMN, Rows, read_rows

__all__ = ["READERS", "TEXT_COLUMN", "Rows", "published", "read_rows"]
