"""What callers may hand to a store: checked, completed and brought into one shape, or refused with a reason."""

from __future__ import annotations

import contextlib
import json
import numbers
import operator
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from faiss_llm2vec.filters import FieldRows, field_rows, plain
from faiss_llm2vec.kinds import Vectors
from faiss_llm2vec.manifest import Manifest
from faiss_llm2vec.records import Documents
from st_llm2vec.errors import InvalidInputError, StoreMismatchError
from st_llm2vec.types import gives_names

# No string in JSON has a bare line break, and metadata is flat: this stands between the objects of a list only.
_BETWEEN = "},\n{"
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",\n", ": "), default=plain)


def documents(
    texts: Sequence[str], ids: Sequence[str] | None, metadata: Sequence[Mapping[str, Any] | None] | None
) -> Documents:
    """Checks what the caller gave, and pairs it up."""
    texts = _strings("texts", texts)
    ids = _random_ids(len(texts)) if ids is None else checked_ids(ids)
    if isinstance(metadata, Mapping):
        raise InvalidInputError("metadata must be a list with one dict per text, got one dict.")
    if metadata is not None and (isinstance(metadata, str) or not isinstance(metadata, Iterable)):
        raise InvalidInputError(f"metadata must be a list with one dict or None per text, got {metadata!r:.80}.")
    labels = [{} if label is None else label for label in ([None] * len(texts) if metadata is None else metadata)]
    if not len(texts) == len(ids) == len(labels):
        raise InvalidInputError(
            f"texts, ids and metadata must be equally many, got {len(texts)} texts, {len(ids)} ids, {len(labels)} "
            "metadata."
        )
    if len(set(ids)) < len(ids):
        twice = [id for id, times in Counter(ids).items() if times > 1]
        raise InvalidInputError(f"ids must be different, got {few(twice)} more than once.")
    fields = list(map(_fields, ids, labels))
    return Documents(ids, texts, _json_objects(labels), fields)


def _random_ids(count: int) -> list[str]:
    digits = os.urandom(16 * count).hex()
    return [digits[start : start + 32] for start in range(0, len(digits), 32)]


def _fields(id: str, metadata: Any) -> FieldRows:
    """What filters see of the metadata."""
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(f"metadata of {id!r} must be a dict, got {metadata!r}.")
    try:
        return tuple(field_rows(metadata))
    except InvalidInputError as error:
        raise InvalidInputError(f"metadata of {id!r}: {error}") from None


def _json_objects(labels: list[Mapping[str, Any]]) -> list[str]:
    """Each as JSON, encoded in one go: three times as fast as one by one."""
    if not labels:
        return []
    objects = _ENCODER.encode([dict(label) for label in labels])[2:-2].split(_BETWEEN)
    return [f"{{{content}}}" for content in objects]


def _strings(name: str, values: Any) -> list[str]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable) or gives_names(values):
        raise InvalidInputError(
            f"{name} must be a list of strings, such as a column of a data frame, got {values!r:.80}."
        )
    strings = list(values)
    for position, value in enumerate(strings):
        if not isinstance(value, str):
            raise InvalidInputError(f"{name}[{position}] must be a string, got {value!r:.80} ({type(value).__name__}).")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise InvalidInputError(f"{name}[{position}] must have no lone surrogate, got {value!r:.80}.")
    return strings


def checked_ids(ids: Any) -> list[str]:
    checked = _strings("ids", ids)
    if "" in checked:
        raise InvalidInputError(f"ids[{checked.index('')}] must not be empty. Leave ids out to get random ones.")
    return checked


def floats(vectors: Any) -> Vectors:
    """`vectors` as a float32 array of at least one axis."""
    if getattr(vectors, "dtype", None) in (np.int8, np.uint8):
        raise InvalidInputError(
            f"vectors must be floats, got {vectors.dtype}, as quantised embeddings are. A store of kind='int8' or "
            "kind='binary' quantises floats by itself, and rescores with them."
        )
    if getattr(getattr(vectors, "dtype", None), "kind", "f") == "c":
        raise InvalidInputError("vectors must be real numbers, got complex ones.")
    with contextlib.suppress(TypeError, ValueError):
        array: Vectors = _lists(vectors) if _is_lists(vectors) else np.asarray(vectors, dtype=np.float32)
        if array.ndim:
            return array
    raise InvalidInputError(f"vectors must be an array of floats (n, dimension), or a query text, got {vectors!r:.80}.")


def _is_lists(vectors: Any) -> bool:
    return isinstance(vectors, list) and len(vectors) > 0 and isinstance(vectors[0], list) and len(vectors[0]) > 0


def _lists(vectors: list[list[float]]) -> Vectors:
    """Lists of floats, as frameworks hand them on. numpy looks at each number twice and takes half as long again."""
    row = struct.Struct(f"{len(vectors[0])}f")
    try:
        return np.frombuffer(b"".join([row.pack(*vector) for vector in vectors]), np.float32).reshape(len(vectors), -1)
    except (struct.error, OverflowError):  # uneven, no numbers, or beyond float32: numpy says or keeps it
        return np.asarray(vectors, dtype=np.float32)


def one_per_text(vectors: Vectors, rows: int) -> Vectors:
    """`vectors`, if they are (rows, dimension)."""
    if vectors.ndim != 2 or len(vectors) != rows or vectors.shape[1] == 0:
        raise InvalidInputError(f"vectors of {rows} texts must be of shape ({rows}, dimension), got {vectors.shape}.")
    return vectors


def checked_vectors(values: Any, rows: int, manifest: Manifest) -> Vectors:
    """Returns `values` as float32 (rows, dimension): cut to the store's dimension, unit length under cosine.

    Raises:
        StoreMismatchError: Their dimension is another than that of the store, unless it has none yet.
        InvalidInputError: They have another shape, NaN, infinite or huge values, or are zero under cosine.
    """
    vectors = one_per_text(floats(values), rows)
    known = {manifest.dimension, manifest.model_dimension} - {None}
    if known and vectors.shape[1] not in known:
        uncut = f" (cut from {manifest.model_dimension})" if manifest.truncate_dim else ""
        raise StoreMismatchError(
            f"vectors must be of the store's dimension {manifest.dimension}{uncut}, got {vectors.shape[1]}. Encode "
            "with the model that it was made with, or make a new store."
        )
    if manifest.truncate_dim is not None:
        if vectors.shape[1] < manifest.truncate_dim:
            raise InvalidInputError(
                f"vectors must be of dimension truncate_dim={manifest.truncate_dim} or more, got {vectors.shape[1]}."
            )
        vectors = vectors[:, : manifest.truncate_dim]
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    # Above 1e37 an inner product or squared distance leaves the range of float32.
    bad = ~np.isfinite(squares) | (squares > 1e37)
    if bad.any():
        raise InvalidInputError(
            f"vectors must be finite, got NaN, infinite or huge ones at {few(np.flatnonzero(bad))}."
        )
    if manifest.metric == "cosine":
        zero = squares < 1e-60  # float32 cannot hold their direction
        if zero.any():
            raise InvalidInputError(f"vectors must not be zero under cosine, got zeros at {few(np.flatnonzero(zero))}.")
        vectors = vectors / np.sqrt(squares).astype(np.float32)[:, np.newaxis]
    return np.ascontiguousarray(vectors)


def queries(given: Any) -> tuple[list[str] | Vectors, bool]:
    """Texts, or vectors (n, dimension), and whether a single one was given."""
    texts = [given] if isinstance(given, str) else given
    if isinstance(texts, (list, tuple)) and texts and isinstance(texts[0], str):
        for text in texts:
            check_query(text)
        return list(texts), isinstance(given, str)
    vectors = floats(given)
    if vectors.ndim > 2:
        raise InvalidInputError(f"queries must be of shape (dimension,) or (n, dimension), got {vectors.shape}.")
    single = vectors.ndim == 1 and len(vectors) > 0
    return vectors[np.newaxis] if single else vectors, single


def one_vector(given: Any) -> Vectors:
    """The vector of a query, as (1, dimension)."""
    vector = floats(given)
    if vector.ndim != 1:
        raise InvalidInputError(f"vector must be of shape (dimension,), got {vector.shape}.")
    return vector[np.newaxis]


def check_chosen(method: str, ids: Sequence[str] | None, where: Mapping[str, Any] | None) -> None:
    """Raise unless documents were named: all of them are, by an empty filter."""
    if ids is None and where is None:
        raise InvalidInputError(f"{method}() needs ids= or where=; {method}(where={{}}) is for every document.")


def check_query(text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise InvalidInputError(f"query must have text to search for, got {text!r}.")


def whole(name: str, value: Any) -> int:
    """`value` as an int, if it is a whole number of at least 1; numpy has some, too."""
    with contextlib.suppress(TypeError):
        if not isinstance(value, (bool, np.bool_)) and (number := operator.index(value)) >= 1:
            return number
    raise InvalidInputError(f"{name} must be a whole number of at least 1, got {name}={value!r}.")


def real(name: str, value: Any, fits: Callable[[float], bool], allowed: str) -> float:
    """`value` as a float, if it is a real number that `fits`; `allowed` is the error's word for those that do."""
    scalar = plain(value)
    if isinstance(scalar, numbers.Real) and not isinstance(scalar, bool):
        with contextlib.suppress(OverflowError):  # an int beyond the range of float
            if fits(number := float(scalar)):
                return number
    raise InvalidInputError(f"{name} must be {allowed}, got {name}={value!r}.")


def few(values: Iterable[Any]) -> str:
    values = list(values)
    shown = ", ".join(repr(value if isinstance(value, str) else int(value)) for value in values[:5])
    return shown if len(values) <= 5 else f"{shown} and {len(values) - 5} more"
