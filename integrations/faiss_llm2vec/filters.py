"""`where` filters: what they mean, and how they become the ids of the documents that match.

    {"year": {"$gte": 2020}, "lang": {"$in": ["en", "fr"]}}         several keys: all must hold
    {"$or": [{"topic": "animals"}, {"$not": {"draft": True}}]}

    {"f": v}, {"f": {"$eq": v}}  equal; a list matches if one of its items does
    $ne  $nin  $not              the exact complement of $eq, $in and the operand: documents without the field match too
    $gt $gte $lt $lte            numbers with numbers, strings with strings (by code point); other types never match
    $exists: true / false        the field is there (None counts) / is not
    a field that is missing      matches nothing but $ne, $nin, $not and {"$exists": false}

`True` and `1` are different values, `1` and `1.0` are the same; scalars of numpy count as Python's. `{}` matches every
document.

Each field of each document is a row of the table `fields`, so a leaf of a filter is one look-up in its primary key,
with names and values always bound, never spliced into the SQL; $and, $or and $not are set operations on sorted ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import itemgetter
from sqlite3 import Connection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from st_llm2vec.errors import InvalidInputError

Ids = npt.NDArray[np.int64]
FieldRows = Iterable[tuple[str, str, Any]]

SCHEMA = """CREATE TABLE fields (field TEXT NOT NULL, type TEXT NOT NULL, value NOT NULL, docid INTEGER NOT NULL,
            PRIMARY KEY (field, type, value, docid)) WITHOUT ROWID"""

# These go into the SQL text, and are all that ever does.
_COMPARE = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_LOGIC = ("$and", "$or", "$not")
_OPERATORS = ("$eq", "$ne", "$in", "$nin", *_COMPARE, "$exists", "$not")
_MOST_VALUES = 900  # SQLite before 3.32 allows 999 bound values in one statement


def field_rows(metadata: Mapping[str, Any]) -> FieldRows:
    """Returns the `(field, type, value)` rows that make `metadata` filterable, each once.

    Raises:
        InvalidInputError: A name is no string or starts with `$`; a value is nested or no JSON scalar.
    """
    rows: list[tuple[str, str, Any]] = []
    for name, value in metadata.items():
        if not isinstance(name, str) or name.startswith("$"):
            raise InvalidInputError(f"names of metadata must be strings that do not start with '$', got {name!r}.")
        _typed(name, name)
        if isinstance(value, list):
            rows.append((name, "list", ""))  # so that $exists sees an empty list
            rows += {(name, *_typed(name, item)) for item in value}
        else:
            kind, scalar = _typed(name, value)
            rows.append((name, kind, scalar))
    return rows


class _Source(NamedTuple):
    """Where ids come from."""

    sql: Connection
    everything: Callable[[], Ids]


def matching(sql: Connection, where: Mapping[str, Any], everything: Callable[[], Ids]) -> Ids:
    """Returns the ids of all documents that match `where`, ascending.

    Args:
        everything: returns the ids of all documents, ascending.

    Raises:
        InvalidInputError: Unknown operator, or an operand that the operator cannot take.
    """
    try:
        return _matching(_Source(sql, everything), where)
    except RecursionError:
        raise InvalidInputError("where must be nested less deeply: a few hundred levels is the limit.") from None


def _matching(source: _Source, where: Any) -> Ids:
    if not isinstance(where, Mapping):
        raise InvalidInputError(f"where must be a dict such as {{'field': 'value'}}, got {where!r}.")
    found = [_condition(source, key, operand) for key, operand in where.items()]
    return reduce(_both, found) if found else source.everything()


def _condition(source: _Source, key: Any, operand: Any) -> Ids:
    """One key of a filter: a logical operator, or a field and what it should be."""
    if key == "$not":
        return _complement(source, _matching(source, operand))
    if key in ("$and", "$or"):
        if not isinstance(operand, (list, tuple)) or not operand:
            raise InvalidInputError(f"{key} must be a list of at least one filter, got {operand!r}.")
        return reduce(_both if key == "$and" else np.union1d, [_matching(source, part) for part in operand])
    if not isinstance(key, str) or key.startswith("$"):
        raise InvalidInputError(f"operators around fields must be one of {', '.join(_LOGIC)}, got {key!r}.")
    if not isinstance(operand, Mapping):
        return _operator(source, key, "$eq", operand)
    if not operand:
        raise InvalidInputError(f"where[{key!r}] must name one of {', '.join(_OPERATORS)}, got {{}}.")
    return reduce(_both, [_operator(source, key, name, value) for name, value in operand.items()])


def _operator(source: _Source, field: str, name: Any, operand: Any) -> Ids:  # noqa: PLR0911  (one per operator)
    """The documents for which `field name operand` holds."""
    _typed(field, field)
    if name == "$not":
        return _complement(source, _condition(source, field, operand))
    if name == "$ne":
        return _complement(source, _operator(source, field, "$eq", operand))
    if name == "$nin":
        return _complement(source, _operator(source, field, "$in", operand))
    if name == "$exists":
        if not isinstance(operand := plain(operand), bool):
            raise InvalidInputError(f"$exists on {field!r} must be True or False, got {operand!r}.")
        present = _select(source, "field = ?", (field,))
        return present if operand else _complement(source, present)
    if name == "$eq":
        return _select(source, "field = ? AND type = ? AND value = ?", (field, *_typed(field, operand)))
    if name == "$in":
        return _any_of(source, field, operand)
    if name in _COMPARE:
        kind, value = _typed(field, operand)
        if kind not in ("number", "text"):
            raise InvalidInputError(f"{name} on {field!r} must be a number or a string, got {operand!r}.")
        return _select(source, f"field = ? AND type = ? AND value {_COMPARE[name]} ?", (field, kind, value))
    raise InvalidInputError(f"operators on {field!r} must be one of {', '.join(_OPERATORS)}, got {name!r}.")


def _any_of(source: _Source, field: str, operand: Any) -> Ids:
    operand = plain(operand)
    if isinstance(operand, (str, bytes, Mapping)) or not isinstance(operand, Iterable):
        raise InvalidInputError(f"$in and $nin on {field!r} must be a list of values, got {operand!r}.")
    by_type: dict[str, list[Any]] = {}
    for item in operand:
        kind, value = _typed(field, item)
        by_type.setdefault(kind, []).append(value)
    found: Ids = np.empty(0, dtype=np.int64)
    for kind, values in by_type.items():
        for start in range(0, len(values), _MOST_VALUES):
            part = values[start : start + _MOST_VALUES]
            marks = ", ".join("?" * len(part))
            rows = _select(source, f"field = ? AND type = ? AND value IN ({marks})", (field, kind, *part))
            found = np.union1d(found, rows)
    return found


def _typed(field: str, value: Any) -> tuple[str, Any]:
    """Splits a scalar into its type and what SQLite compares, so that True is not 1 and None is not missing."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise InvalidInputError(f"field {field!r} must have no lone surrogate, got {value!r}.") from None
        return "text", value
    if isinstance(value, bool):
        return "bool", int(value)
    if value is None:
        return "null", ""
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return "number", value
    if isinstance(value, float) and math.isfinite(value):
        return "number", value
    if type(scalar := plain(value)) is not type(value):
        return _typed(field, scalar)
    raise InvalidInputError(
        f"field {field!r} must be a str, bool, None, finite float, int of 64 bits or, in metadata, a list of those, "
        f"got {value!r} ({type(value).__name__}); flatten what is nested, and write dates as strings."
    )


def plain(value: Any) -> Any:
    """A number, bool or string of numpy or torch (0 axes) as Python's own; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _select(source: _Source, condition: str, values: tuple[Any, ...]) -> Ids:
    rows = source.sql.execute(f"SELECT docid FROM fields WHERE {condition}", values)  # noqa: S608  (see _COMPARE)
    return np.unique(np.fromiter(map(itemgetter(0), rows), dtype=np.int64))


def _both(left: Ids, right: Ids) -> Ids:
    return np.intersect1d(left, right, assume_unique=True)


def _complement(source: _Source, ids: Ids) -> Ids:
    return np.setdiff1d(source.everything(), ids, assume_unique=True)
