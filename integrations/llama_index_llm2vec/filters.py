"""LlamaIndex's MetadataFilters as a `where` of FaissStore.

The meaning is that of LlamaIndex's own in-memory store, except that

    MetadataFilters may hold MetadataFilters, to any depth
    ==  !=  in  nin  of a field that holds a list         look at its items: one of them is (none is) the value
    contains  any  all  of a field that holds a text      take it for a list of one item
    <  <=  >  >=  between numbers and texts               do not match, instead of raising
    == None                                               matches fields that hold None
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilters

from faiss_llm2vec import FaissStore

Where = dict[str, Any]
NODE_ID = "_node_id"
"""The field that holds a node's id, since a `where` speaks of fields only."""


def where_of(filters: MetadataFilters | None, store: FaissStore) -> Where:
    """Returns the `where` for these filters; the store is read where its own operators do not suffice."""
    if filters is None or not filters.filters:
        return {}
    parts = [
        where_of(part, store)
        if isinstance(part, MetadataFilters)
        else _leaf(part.key, part.operator, part.value, store)
        for part in filters.filters
    ]
    if filters.condition == FilterCondition.OR:
        return {"$or": parts}
    if filters.condition == FilterCondition.NOT:
        return {"$not": {"$or": parts}}
    return {"$and": parts}


def _leaf(key: str, operator: FilterOperator, value: Any, store: FaissStore) -> Where:
    if isinstance(value, list) and operator in (FilterOperator.EQ, FilterOperator.NE):
        same = _where_read(store, key, lambda found: bool(found == value))
        return same if operator == FilterOperator.EQ else {"$not": same}
    if operator == FilterOperator.TEXT_MATCH:
        return _where_read(store, key, lambda found: isinstance(found, str) and value in found)
    if operator == FilterOperator.TEXT_MATCH_INSENSITIVE:
        return _where_read(store, key, lambda found: isinstance(found, str) and value.lower() in found.lower())
    return _WHERE[operator](key, value)


def _where_read(store: FaissStore, key: str, holds: Callable[[Any], bool]) -> Where:
    records = store.get(where={key: {"$exists": True}})
    return {NODE_ID: {"$in": [record.id for record in records if holds(record.metadata[key])]}}


_WHERE: dict[FilterOperator, Callable[[str, Any], Where]] = {
    FilterOperator.EQ: lambda key, value: {key: value},
    FilterOperator.NE: lambda key, value: {key: {"$ne": value}},
    FilterOperator.GT: lambda key, value: {key: {"$gt": value}},
    FilterOperator.GTE: lambda key, value: {key: {"$gte": value}},
    FilterOperator.LT: lambda key, value: {key: {"$lt": value}},
    FilterOperator.LTE: lambda key, value: {key: {"$lte": value}},
    FilterOperator.IN: lambda key, value: {key: {"$in": value}},
    FilterOperator.NIN: lambda key, value: {key: {"$nin": value}},
    FilterOperator.ANY: lambda key, value: {key: {"$in": value}},
    FilterOperator.ALL: lambda key, value: {"$and": [{key: {"$exists": True}}, *({key: item} for item in value)]},
    FilterOperator.CONTAINS: lambda key, value: {key: value},
    # Empty lists are not written as fields.
    FilterOperator.IS_EMPTY: lambda key, value: {"$or": [{key: {"$exists": False}}, {key: None}, {key: ""}]},
}
