"""`where` means what filters.py says: any filter over any metadata equals a few lines of plain Python."""

from __future__ import annotations

import json
from operator import ge, gt, le, lt

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faiss_llm2vec import FaissStore
from faiss_llm2vec.database import Database, Manifest, Row

COMPARE = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}
NUMBERS = [0, 1, 1.0, -2, 2.5, 2**53, 2.0**53, 2**53 + 1, -(2**63)]
STRINGS = ["", "1", "a", "A", "ab", "é", "\x00", "1' OR '1'='1", "🐻", "\uffff"]

fields = st.sampled_from(["a", "b", 'quo"te', "a'); --", ""])
comparable = st.sampled_from(NUMBERS) | st.sampled_from(STRINGS)
scalars = st.sampled_from([None, True, False]) | comparable
metadata = st.dictionaries(fields, scalars | st.lists(scalars, max_size=3), max_size=4)
operators = st.recursive(
    st.tuples(st.sampled_from(["$eq", "$ne"]), scalars)
    | st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(scalars, max_size=4))
    | st.tuples(st.sampled_from(list(COMPARE)), comparable)
    | st.tuples(st.just("$exists"), st.booleans()),
    lambda inner: st.tuples(st.just("$not"), st.lists(inner, min_size=1, max_size=2).map(dict)),
    max_leaves=3,
)
conditions = scalars | st.lists(operators, min_size=1, max_size=2).map(dict)
filters = st.recursive(
    st.dictionaries(fields, conditions, max_size=2),
    lambda inner: (
        st.dictionaries(st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3), max_size=2)
        | st.fixed_dictionaries({"$not": inner})
    ),
    max_leaves=5,
)


def holds(labels, where):
    """The meaning of a filter, in Python."""
    for key, operand in where.items():
        if key == "$and":
            result = all(holds(labels, part) for part in operand)
        elif key == "$or":
            result = any(holds(labels, part) for part in operand)
        elif key == "$not":
            result = not holds(labels, operand)
        else:
            result = holds_field(labels, key, operand if isinstance(operand, dict) else {"$eq": operand})
        if not result:
            return False
    return True


def holds_field(labels, field, condition):
    values = labels.get(field, [])
    values = values if isinstance(values, list) else [values]
    for operator, operand in condition.items():
        if operator in ("$eq", "$ne"):
            result = any(same(value, operand) for value in values) == (operator == "$eq")
        elif operator in ("$in", "$nin"):
            result = any(same(value, item) for value in values for item in operand) == (operator == "$in")
        elif operator == "$exists":
            result = (field in labels) == operand
        elif operator == "$not":
            result = not holds_field(labels, field, operand)
        else:
            result = any(kind(value) == kind(operand) and COMPARE[operator](value, operand) for value in values)
        if not result:
            return False
    return True


def same(left, right):
    return kind(left) == kind(right) and left == right


def kind(value):
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)


@settings(max_examples=150, deadline=None)
@given(documents=st.lists(metadata, min_size=1, max_size=8), where=filters)
@example(documents=[{"a": 1}, {"a": True}, {"a": 1.0}, {"a": None}, {}], where={"a": {"$ne": 1}})
@example(documents=[{"a": []}, {}], where={"a": {"$exists": True}})
def test_any_filter_equals_python(tmp_path_factory, documents, where):
    rows = [Row(7 * i, str(i), "", json.dumps(labels), checksum=0) for i, labels in enumerate(documents)]
    database = Database.in_memory(tmp_path_factory.getbasetemp(), Manifest("flat", "cosine"), rows)
    expected = [7 * i for i, labels in enumerate(documents) if holds(labels, where)]
    try:
        assert database.matching(where).tolist() == expected
    finally:
        database.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """200 documents in four segments, some replaced, some deleted; and what should be in the store."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 8)).astype("f4")
    labels = [
        {"a": rng.choice(NUMBERS[:5]).item(), "b": [str(rng.choice(STRINGS[:4]))] * int(rng.integers(0, 2))}
        for _ in range(200)
    ]
    for i in range(0, 200, 3):
        labels[i] = {'quo"te': bool(i % 2), "a": str(i % 2)}
    names = [str(i) for i in range(200)]
    with FaissStore.create(tmp_path_factory.mktemp("filters") / "s", None) as store:
        for part in (slice(0, 20), slice(20, 150), slice(150, 200)):
            store.add(names[part], ids=names[part], metadata=[{"a": 1}] * len(names[part]), vectors=-vectors[part])
        store.upsert(names, ids=names, metadata=labels, vectors=vectors)
        store.delete([str(i) for i in range(0, 200, 10)])
        yield store, vectors, labels, [i for i in range(200) if i % 10]


@settings(max_examples=100, deadline=None)
@given(where=filters, k=st.integers(1, 250))
def test_filtered_search_equals_brute_force(corpus, where, k):
    store, vectors, labels, alive = corpus
    query = np.random.default_rng(k).standard_normal(8).astype("f4")
    cosine = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    expected = sorted((i for i in alive if holds(labels[i], where)), key=lambda i: -cosine[i])
    hits = store.search(query, k=k, where=where)
    assert [int(hit.id) for hit in hits] == expected[:k]
    np.testing.assert_allclose([hit.score for hit in hits], cosine[expected[:k]], atol=1e-6)
    assert store.count(where) == len(expected)


def test_in_takes_more_values_than_one_sql_statement(store):
    store.add(["a", "b", "c"], metadata=[{"n": 5}, {"n": 69_999}, {"n": -1}])
    assert store.count({"n": {"$in": list(range(70_000))}}) == 2
    assert store.delete([str(i) for i in range(70_000)]) == 0
