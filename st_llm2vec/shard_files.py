"""The files of a folder of shards, written by us and read from anyone: each is looked at before it is used.

A folder can come from a stranger. Its manifest is checked field by field, its shards have the names that we give, so
that none leads elsewhere, and a shard holds as many finite float32 vectors, and as many texts, as the manifest says.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import published
from .errors import InvalidInputError, LLM2VecError
from .ingestion import MANIFEST, Passage, is_shard_name, metadata_value
from .readers import PAGE_BY_PAGE, has_half_characters, loaded, require_pyarrow
from .vetting import read_json, require_shallow

COLUMNS = ("id", "text", "embedding")  # of a shard, beside the metadata
Schema = list[tuple[str, str, bool]]  # of the metadata: name, type, whether it comes in lists
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MOST_DIMENSIONS = 1 << 20
_MOST_NAME = 4096
# Vectors of texts that differ hardly shrink in a file. A small file of gigabytes of them is there to fill the memory.
_MOST_BYTES, _MOST_RATIO = 1 << 31, 64
_BLOCK = 1 << 24  # numbers that are looked at once


def is_there(path: Path) -> bool:
    """Whether a shard is there, with its texts: regular files, and no links to some."""
    try:
        return all(stat.S_ISREG(part.lstat().st_mode) for part in _parts(path))
    except OSError:
        return False


def _parts(path: Path) -> list[Path]:
    return [path, path.with_suffix(".jsonl")] if path.suffix == ".npy" else [path]


# -- the manifest ------------------------------------------------------------------------------------------------------


def _whole(least: int, most: int = 2**63 - 1) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MOST_NAME and value.isprintable()


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and all(name in value and fits(value[name]) for name, fits in _OF_SHARD.items())


_OF_SHARD: dict[str, Callable[[Any], bool]] = {
    "file": is_shard_name,
    "texts": _whole(1),
    "dimension": _whole(1, _MOST_DIMENSIONS),
    "bytes": _whole(1),
    "sha256": _is_hash,
}
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "shards": lambda value: isinstance(value, list) and all(map(_is_entry, value)),
    "fingerprint": _is_name,
    "task": lambda value: isinstance(value, str),
    "prompt": lambda value: value is None or isinstance(value, str),
    "model": lambda value: value is None or _is_name(value),
    "format": lambda value: value in ("parquet", "npy"),
    "complete": lambda value: isinstance(value, bool),
}
_OPTIONAL = ("model",)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder of shards says of itself; None where it says nothing.

    Raises:
        InvalidInputError: It is none of our manifests.
    """
    path = folder / MANIFEST
    try:
        if not path.is_symlink() and not path.exists():
            return None
        if path.is_symlink():
            raise ValueError("it is a link")
        found: dict[str, Any] = read_json(path)
        require_shallow(path, found)
        if odd := [name for name in _FIELDS if not (name in found or name in _OPTIONAL)]:
            raise ValueError(f"{odd[0]} is missing")
        if odd := [name for name, fits in _FIELDS.items() if name in found and not fits(found[name])]:
            raise ValueError(f"{odd[0]} is none that st-llm2vec encode writes, got {found[odd[0]]!r:.80}")
        names = [entry["file"] for entry in found["shards"]]
        dimensions = {entry["dimension"] for entry in found["shards"]}
        if len(set(names)) < len(names) or len(dimensions) > 1 or any(found["format"] not in name for name in names):
            raise ValueError("its shards do not go together")
        return found
    except (ValueError, LLM2VecError) as error:
        raise InvalidInputError(f"{path} is damaged ({error}). Remove it to encode the shards again.") from error


def entry_of(path: Path, texts: int) -> dict[str, Any]:
    """What the manifest says of a shard: its file, counts and hashes."""
    sizes = {"texts": texts, "dimension": embeddings(path).shape[1], "bytes": path.stat().st_size}
    return {"file": path.name, **sizes, "sha256": sha256_of(path), **_hash_of_rows(path)}


def _hash_of_rows(path: Path) -> dict[str, str]:
    """The hash of the texts of a shard, where they have a file of their own."""
    return {"rows_sha256": sha256_of(path.with_suffix(".jsonl"))} if path.suffix == ".npy" else {}


def sha256_of(path: Path) -> str:
    """The hash of a file, which is never held as a whole."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def is_as_listed(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a shard is what the manifest says, byte for byte, and no link."""
    return (
        is_there(path)
        and path.stat().st_size == entry["bytes"]
        and sha256_of(path) == entry["sha256"]
        and all(entry.get(name, found) == found for name, found in _hash_of_rows(path).items())
    )


# -- what is in a shard ------------------------------------------------------------------------------------------------


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says of what a library raises about a shard's content which shard it is."""
    try:
        yield
    except (LLM2VecError, MemoryError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # of pyarrow and numpy: what nobody thought of
        said = " ".join(str(error).split())[:200]
        raise InvalidInputError(f"{path} is no shard of st-llm2vec encode ({type(error).__name__}: {said}).") from error


def require_vectors(path: Path, entry: dict[str, Any]) -> None:
    """Raises `InvalidInputError` unless a shard holds the vectors that its entry in the manifest counts, all finite."""
    texts, dimension = entry["texts"], entry["dimension"]
    if 4 * texts * dimension > max(_MOST_BYTES, _MOST_RATIO * entry["bytes"]):
        raise InvalidInputError(
            f"{path} would hold {texts:,} vectors of dimension {dimension:,} in {entry['bytes']:,} bytes, which no "
            "vectors of texts fit into."
        )
    if path.suffix == ".parquet":
        with _reading(path), require_pyarrow().parquet.ParquetFile(path) as file:
            place = file.schema_arrow.names.index("embedding")
            known = file.schema_arrow.field(place).type
            wanted = require_pyarrow().list_(require_pyarrow().float32(), dimension)
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            leaves = [each.column(i) for each in groups for i in range(each.num_columns)]
            count = sum(each.num_values for each in leaves if each.path_in_schema.split(".")[0] == "embedding")
            if file.metadata.num_rows != texts or count != texts * dimension or known != wanted:
                raise ValueError(f"{file.metadata.num_rows} rows of {known}, not {texts} of {wanted}")
    vectors = embeddings(path)
    if vectors.dtype != np.float32 or vectors.shape != (texts, dimension):
        raise InvalidInputError(
            f"{path} holds {vectors.dtype} vectors of shape {vectors.shape}, not float32 of {(texts, dimension)}."
        )
    step = max(1, _BLOCK // dimension)
    for start in range(0, texts, step):
        if not np.isfinite(vectors[start : start + step]).all():
            raise InvalidInputError(f"{path} holds a vector that is not finite. Encode the texts again.")


def embeddings(path: Path) -> Any:
    """The vectors of a shard, float32 (texts, dimension)."""
    with _reading(path):
        if path.suffix == ".npy":
            with path.open("rb") as file:
                if file.read(6) != b"\x93NUMPY":  # numpy would look for an archive, or a pickle
                    raise ValueError("it is no file of numpy")
            return np.load(path, mmap_mode="r", allow_pickle=False)
        column = require_pyarrow().parquet.read_table(path, columns=["embedding"])["embedding"].combine_chunks()
        flat = column.flatten()
        if column.null_count or flat.null_count:
            raise ValueError("a vector is missing")
        return flat.to_numpy().reshape(len(column), -1)


def rows_of(path: Path) -> Iterator[Passage]:
    """The passages of a shard."""
    with _reading(path):
        for row in _rows(path):
            metadata = {name: value for name, value in row["metadata"].items() if value is not None}
            for name in ("id", "text"):
                if not isinstance(row[name], str) or not row[name].strip() or has_half_characters(row[name]):
                    raise ValueError(f"{name} must be a text, got {row[name]!r:.60}")
            yield Passage(
                row["id"], row["text"], {name: metadata_value(name, each, str(path)) for name, each in metadata.items()}
            )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".npy":
        with path.with_suffix(".jsonl").open(encoding="utf-8") as lines:
            yield from map(loaded, lines)
        return
    with require_pyarrow().parquet.ParquetFile(path, **PAGE_BY_PAGE) as file:
        names = [name for name in file.schema_arrow.names if name != "embedding"]
        for batch in file.iter_batches(batch_size=1024, columns=names):
            for row in batch.to_pylist():
                yield {"id": row.pop("id"), "text": row.pop("text"), "metadata": row}


def write_npy(path: Path, batch: list[Passage], vectors: Any, schema: Schema) -> None:
    """Write vectors, and their passages beside them."""
    with published(path.with_suffix(".jsonl")) as draft, draft.open("w", encoding="utf-8") as file:
        for id, text, fields, *_ in batch:
            file.write(json.dumps({"id": id, "text": text, "metadata": fields}, ensure_ascii=False) + "\n")
    with published(path) as draft, draft.open("wb") as file:
        np.save(file, vectors)


def write_parquet(path: Path, batch: list[Passage], vectors: Any, schema: Schema) -> None:
    """Write passages and vectors, a row for each."""
    pa = require_pyarrow()
    types = {"text": pa.string(), "bool": pa.bool_(), "integer": pa.int64(), "number": pa.float64()}
    columns = {
        "id": pa.array([p.id for p in batch], pa.string()),
        "text": pa.array([p.text for p in batch], pa.string()),
    }
    for name, kind, lists in schema:
        values = [p.metadata.get(name) for p in batch]
        if lists:
            values = [value if isinstance(value, list) or value is None else [value] for value in values]
        columns[name] = pa.array(values, pa.list_(types[kind]) if lists else types[kind])
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    with published(path) as draft:
        pa.parquet.write_table(pa.table(columns), draft)
