"""The readers and `published` under the names that other commands import them by."""

from __future__ import annotations

from ..readers import TEXT_COLUMN, Rows, read_rows
from ..shards import published

__all__ = ["TEXT_COLUMN", "Rows", "published", "read_rows"]
