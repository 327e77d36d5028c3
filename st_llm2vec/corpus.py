"""One file of texts in, one file of vectors out: a shard of a corpus, complete or not there at all.

A shard is done when the note beside its vectors says so: made of this very input, with this very model and setting. A
kill loses the shard under way at most; calling again does the rest. Shards know nothing of each other, so a loop, a job
array, Ray Data or Spark can drive `encode_shard` alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InvalidInputError
from .readers import Rows, read_rows, require_pyarrow

Embed = Callable[[list[str]], Any]
Write = Callable[[Path, Rows, Any], None]


def encode_shard(source: Path, target: Path, embed: Embed, *, text_column: str, setting: dict[str, Any]) -> int:
    """Encodes the texts of `source` into `target` (.npy or .parquet), unless that was done already.

    Args:
        embed: texts -> float32 (texts, dimension).
        setting: what else the vectors depend on, such as the model's fingerprint; another setting encodes again.

    Returns:
        How many texts were encoded; 0 if the shard was done.

    Raises:
        InvalidInputError: `source` cannot be read; the message names the line.
    """
    write = writer_of(target)
    note = target.with_name(target.name + ".done.json")
    made_of = {"source": source.name, "sha256": _sha256(source), "text_column": text_column, **setting}
    if _done(note, target, made_of):
        return 0
    rows = read_rows(source)
    vectors = embed(rows.texts(text_column))
    with published(target) as draft:
        write(draft, rows, vectors)
    with published(note) as draft:
        size = {"rows": len(vectors), "dimension": vectors.shape[1], "bytes": target.stat().st_size}
        draft.write_text(json.dumps({**made_of, **size}, indent=2), encoding="utf-8")
    return len(vectors)


def writer_of(target: Path) -> Write:
    """What writes a file of that ending.

    Raises:
        InvalidInputError: Nothing does.
    """
    if (write := WRITERS.get(target.suffix.lower())) is None:
        raise InvalidInputError(
            f"{target} ends in {target.suffix!r}. Give an output that ends in {', '.join(WRITERS)}."
        )
    return write


def _done(note: Path, target: Path, made_of: dict[str, Any]) -> bool:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        size = target.stat().st_size
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(found, dict):
        return False
    expected = json.loads(json.dumps(made_of))
    return bool(found.pop("bytes", None) == size and {name: found.get(name) for name in expected} == expected)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _write_npy(path: Path, rows: Rows, vectors: Any) -> None:
    import numpy as np

    with path.open("wb") as file:  # np.save(path) would add .npy to the temporary name
        np.save(file, vectors)


def _write_parquet(path: Path, rows: Rows, vectors: Any) -> None:
    pyarrow = require_pyarrow()
    if "embedding" in rows.columns:
        raise InvalidInputError(f"{rows.path} has a column 'embedding' already. Rename it, or write a .npy file.")
    try:
        table = pyarrow.table({name: [row.get(name) for row in rows.values] for name in rows.columns})
    except pyarrow.ArrowException as error:
        raise InvalidInputError(
            f"The columns of {rows.path} do not fit parquet ({error}); write a .npy file."
        ) from error
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
    pyarrow.parquet.write_table(table.append_column("embedding", column), path)


WRITERS: dict[str, Write] = {".npy": _write_npy, ".parquet": _write_parquet}


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; the file or folder written there takes its name when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        yield draft
        if draft.is_file():
            _flush(draft)
        os.replace(draft, path)
        _flush(path.parent)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk, where the system lets one."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
