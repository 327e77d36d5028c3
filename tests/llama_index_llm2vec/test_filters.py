"""MetadataFilters against LlamaIndex's own in-memory store: every operator, with operands likely and odd."""

from __future__ import annotations

import contextlib

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    SimpleVectorStore,
)
from llama_index.core.vector_stores.types import VectorStoreQuery

from llama_index_llm2vec import FaissVectorStore
from st_llm2vec.errors import InvalidInputError

Op = FilterOperator
VALUES = [1, 2.5, "1", None, ["a", "b"], [], "a", "A b", 0, -1, "", True, False, "ünï", [""], [1, 2], 1.0]
NODES = [TextNode(id_=f"{value!r}", text="t", metadata={"n": value}, embedding=[1.0, 0.0]) for value in VALUES]
NODES.append(TextNode(id_="missing", text="t", embedding=[1.0, 0.0]))
OPERANDS = [
    1,
    0,
    1.0,
    2.5,
    -1,
    7,
    "1",
    "a",
    "A",
    "",
    "ü",
    "ÜN",
    [],
    ["a"],
    ["a", "b"],
    ["b", "a"],
    [""],
    [1],
    [2, 1],
    [0.0],
    None,
]
LISTS, COMPARISONS = {Op.IN, Op.NIN, Op.ANY, Op.ALL}, {Op.GT, Op.GTE, Op.LT, Op.LTE}
TEXTS = {Op.TEXT_MATCH, Op.TEXT_MATCH_INSENSITIVE}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = FaissVectorStore(path=tmp_path_factory.mktemp("store") / "store")
    store.add(NODES)
    yield store
    store.close()


def leaf(operator, value):
    return MetadataFilters(filters=[MetadataFilter(key="n", operator=operator, value=value)])


def found(store, filters):
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=50, filters=filters)
    return set(store.query(query).ids)


def expected(operator, value):
    """What LlamaIndex's own store finds, node by node, for it raises on the first that it cannot compare."""
    passed = set()
    for node in NODES:
        simple = SimpleVectorStore()
        simple.add([node])
        with contextlib.suppress(TypeError):
            passed |= found(simple, leaf(operator, value))
    return passed


def takes(operator, value):
    if operator in LISTS:
        return isinstance(value, list)
    if operator in TEXTS:
        return isinstance(value, str)
    if operator in COMPARISONS:
        return isinstance(value, (int, float, str))
    return operator != Op.CONTAINS or not isinstance(value, list)


def excepted(operator, value):
    """The nodes for which filters.py says that it means something else."""
    if operator in {Op.EQ, Op.NE, Op.IN, Op.NIN} | COMPARISONS:  # the items of lists; None
        return {n.id_ for n in NODES if isinstance(n.metadata.get("n"), list)} | ({"None"} if value is None else set())
    if operator in (Op.CONTAINS, Op.ANY, Op.ALL):  # a text is one item, not its letters; a single value is one, too
        return {n.id_ for n in NODES if n.metadata.get("n", []) is None or not isinstance(n.metadata.get("n"), list)}
    return set()


@pytest.mark.parametrize("value", OPERANDS, ids=repr)
@pytest.mark.parametrize("operator", FilterOperator, ids=lambda operator: operator.name)
def test_an_operator_finds_what_llama_index_finds(store, operator, value):
    if not takes(operator, value):
        with pytest.raises(InvalidInputError, match=rf"operator '{operator.value}' on 'n' takes"):
            found(store, leaf(operator, value))
        return
    exact = isinstance(value, list) and (operator in (Op.EQ, Op.NE) or not value)
    apart = set() if exact else excepted(operator, value)
    assert found(store, leaf(operator, value)) - apart == expected(operator, value) - apart


@pytest.mark.parametrize(
    ("operator", "value", "wanted"),
    [
        (Op.EQ, "a", {"'a'", "['a', 'b']"}),
        (Op.EQ, None, {"None"}),
        (Op.EQ, [], {"[]"}),
        (Op.GT, 1, {"2.5", "[1, 2]"}),
        (Op.IN, ["b"], {"['a', 'b']"}),
        (Op.CONTAINS, "a", {"'a'", "['a', 'b']"}),
        (Op.CONTAINS, "A", set()),
        (Op.ALL, ["b", "a"], {"['a', 'b']"}),
        (Op.ANY, [2], {"[1, 2]"}),
        (Op.EQ, 1, {"1", "1.0", "True", "[1, 2]"}),
        (Op.IS_EMPTY, None, {"None", "[]", "''", "missing"}),
    ],
)
def test_where_it_means_something_else_it_is_what_the_page_says(store, operator, value, wanted):
    assert found(store, leaf(operator, value)) == wanted


def test_the_complement_is_exact(store):
    everything = {node.id_ for node in NODES}
    for value in OPERANDS:
        assert found(store, leaf(Op.NE, value)) == everything - found(store, leaf(Op.EQ, value))
        if isinstance(value, list):
            assert found(store, leaf(Op.NIN, value)) == everything - found(store, leaf(Op.IN, value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**70, "\ud800"], ids=repr)
def test_values_that_no_field_can_hold_are_refused(store, value):
    for operator in (Op.EQ, Op.NE, Op.GT, Op.CONTAINS):
        with pytest.raises(InvalidInputError):
            found(store, leaf(operator, value))


def test_groups_without_a_filter_restrict_nothing(store):
    nothing = MetadataFilters(filters=[MetadataFilters(filters=[])], condition=FilterCondition.NOT)
    assert len(found(store, nothing)) == len(NODES)
    with pytest.raises(InvalidInputError, match="clear"):
        store.delete_nodes(filters=nothing)
