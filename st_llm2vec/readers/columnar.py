"""Rows from .parquet and .arrow files; dates become ISO 8601 texts, null and NaN missing values.

Of a .parquet file, a page of each column and some rows are in memory, however large its row groups are; of an .arrow
file, which is mapped, some rows, and where it is compressed a record batch.
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterator
from typing import Any

from ..errors import MissingExtraError
from .table import Numbered, Table

# Of `ParquetFile`: else, the columns of a row group are read whole.
PAGE_BY_PAGE: dict[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20}
_ROWS = 64  # that are in memory at once: a text may have megabytes


def plain(value: Any) -> Any:
    """A value of a typed format as one of JSON's; a missing one as None."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _plain_rows(table: Table, batches: Iterator[Any]) -> Iterator[Numbered]:
    number = 0
    parts = (batch.slice(start, _ROWS).to_pylist() for batch in batches for start in range(0, len(batch), _ROWS))
    while True:
        try:
            rows = next(parts, None)
        except (require_pyarrow().ArrowException, OSError) as error:
            table.bad(None, f"cannot be read as {table.ending[1:]}: {error}")
            return
        if rows is None:
            return
        for row in rows:
            number += 1
            yield number, {name: plain(value) for name, value in row.items()}


def read_parquet(table: Table) -> Iterator[Numbered]:
    def batches() -> Iterator[Any]:
        with require_pyarrow().parquet.ParquetFile(table.path, **PAGE_BY_PAGE) as file:
            yield from file.iter_batches(batch_size=_ROWS)

    return _plain_rows(table, batches())


def read_arrow(table: Table) -> Iterator[Numbered]:
    def batches() -> Iterator[Any]:
        pyarrow = require_pyarrow()
        with pyarrow.memory_map(str(table.path)) as file, pyarrow.ipc.open_stream(file) as stream:
            yield from stream

    return _plain_rows(table, batches())


def require_pyarrow() -> Any:
    """The pyarrow package, with `pyarrow.parquet` imported."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            '.parquet files need pyarrow. Install it with: pip install "st-llm2vec[ingest]"'
        ) from error
    return pyarrow
