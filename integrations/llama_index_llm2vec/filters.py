"""LlamaIndex's MetadataFilters as a `where` of FaissStore.

The meaning is that of LlamaIndex's own in-memory store, except that

    MetadataFilters may hold MetadataFilters, to any depth
    ==  !=  in  nin  of a field that holds a list         look at its items: one of them is (none is) the value
    <  <=  >  >=     of a field that holds a list         look at its items: one of them is
    contains  any  all  of a field that holds a text      take it for a list of one item
    <  <=  >  >=  text_match  of values of other types    do not match, instead of raising
    == None                                               matches fields that hold None
    an operand that the operator cannot take              is an InvalidInputError, whatever the fields hold

A MetadataFilter cannot hold True or False: 1 and 0 match them, as in Python.
"""

from __future__ import annotations

import json
import operator as compare
from collections.abc import Callable, Iterable
from typing import Any

from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from faiss_llm2vec import FaissStore, Record
from st_llm2vec.errors import InvalidInputError

Where = dict[str, Any]
_Leaf = Callable[[FaissStore, str, Any], Where]
NODE_ID = "_node_id"
"""The field that holds a node's id, since a `where` speaks of fields only."""

Op = FilterOperator
_LIST = (list, tuple)
# What each operator takes where that is not any value: types, and the error's words for them.
_OPERANDS: dict[FilterOperator, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys((Op.IN, Op.NIN, Op.ANY, Op.ALL), (_LIST, "a list of values")),
    **dict.fromkeys((Op.TEXT_MATCH, Op.TEXT_MATCH_INSENSITIVE), ((str,), "a string")),
    **dict.fromkeys((Op.GT, Op.GTE, Op.LT, Op.LTE), ((int, float, str), "a number or a string")),
    Op.CONTAINS: ((int, float, str, type(None)), "a single value"),
}


def where_of(filters: MetadataFilters | None, store: FaissStore) -> Where:
    """Returns the `where` for these filters; the store is read where its own operators do not suffice.

    Raises:
        InvalidInputError: An operator was given what it cannot take.
    """
    if filters is None or not _has_leaf(filters):
        return {}
    parts = [
        where_of(part, store) if isinstance(part, MetadataFilters) else _leaf(part, store) for part in filters.filters
    ]
    if filters.condition == FilterCondition.OR:
        return {"$or": parts}
    if filters.condition == FilterCondition.NOT:
        return {"$not": {"$or": parts}}
    return {"$and": parts}


def _has_leaf(filters: MetadataFilters) -> bool:
    return any(not isinstance(part, MetadataFilters) or _has_leaf(part) for part in filters.filters)


def _leaf(leaf: MetadataFilter, store: FaissStore) -> Where:
    types, words = _OPERANDS.get(leaf.operator, ((object,), ""))
    if not isinstance(leaf.value, types):
        raise InvalidInputError(
            f"operator {leaf.operator.value!r} on {leaf.key!r} takes {words}, got {leaf.value!r:.80}."
        )
    return _WHERE[leaf.operator](store, leaf.key, leaf.value)


def _one_of(store: FaissStore, key: str, values: Iterable[Any]) -> Where:
    return {key: {"$in": _alike(values)}}


def _equal(store: FaissStore, key: str, value: Any) -> Where:
    if not isinstance(value, _LIST):
        return _one_of(store, key, [value])
    if value:
        return _where_read(store, {key: {"$exists": True}}, lambda record: bool(record.metadata[key] == list(value)))
    # Empty lists are not written as fields: only the node knows of them.
    return _where_read(store, {key: {"$exists": False}}, lambda record: _of_node(record).get(key) == [])


def _all_of(store: FaissStore, key: str, values: Iterable[Any]) -> Where:
    if values:
        return {"$and": [_one_of(store, key, [value]) for value in values]}
    # The fields that hold something, if only an empty list, but not None.
    held = _where_read(store, {key: {"$exists": True}}, lambda record: record.metadata[key] is not None)
    return {"$or": [held, _equal(store, key, [])]}


def _empty(store: FaissStore, key: str, value: Any) -> Where:
    # A list may hold None or "", and is not empty then.
    blank = _where_read(store, {key: {"$in": [None, ""]}}, lambda record: record.metadata[key] in (None, ""))
    return {"$or": [{key: {"$exists": False}}, blank]}


def _compared(name: str, holds: Callable[[Any, Any], bool]) -> _Leaf:
    def where(store: FaissStore, key: str, value: Any) -> Where:
        truths = [] if isinstance(value, str) else [truth for truth in (False, True) if holds(truth, value)]
        return {"$or": [{key: {name: value}}, {key: {"$in": truths}}]}

    return where


def _text(found: Callable[[str, str], bool]) -> _Leaf:
    def where(store: FaissStore, key: str, value: Any) -> Where:
        def holds(record: Record) -> bool:
            return isinstance(text := record.metadata[key], str) and found(value, text)

        return _where_read(store, {key: {"$exists": True}}, holds)

    return where


def _not(leaf: _Leaf) -> _Leaf:
    return lambda store, key, value: {"$not": leaf(store, key, value)}


_WHERE: dict[FilterOperator, _Leaf] = {
    Op.EQ: _equal,
    Op.NE: _not(_equal),
    Op.GT: _compared("$gt", compare.gt),
    Op.GTE: _compared("$gte", compare.ge),
    Op.LT: _compared("$lt", compare.lt),
    Op.LTE: _compared("$lte", compare.le),
    Op.IN: _one_of,
    Op.NIN: _not(_one_of),
    Op.ANY: _one_of,
    Op.ALL: _all_of,
    Op.CONTAINS: lambda store, key, value: _one_of(store, key, [value]),
    Op.TEXT_MATCH: _text(lambda part, text: part in text),
    Op.TEXT_MATCH_INSENSITIVE: _text(lambda part, text: part.lower() in text.lower()),
    Op.IS_EMPTY: _empty,
}


def _alike(values: Iterable[Any]) -> list[Any]:
    """With True beside 1 and False beside 0."""
    values = list(values)
    return values + [truth for truth in (False, True) if any(not isinstance(v, str) and v == truth for v in values)]


def _where_read(store: FaissStore, where: Where, holds: Callable[[Record], bool]) -> Where:
    return {NODE_ID: {"$in": [record.id for record in store.get(where=where) if holds(record)]}}


def _of_node(record: Record) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads(record.metadata["_node_content"])["metadata"]
    return metadata
