"""What any LlamaIndex vector store should do.

LlamaIndex's in-memory store is held to it where it can, so that the suite is no private opinion. `differences.py` holds
LlamaIndex's FAISS stores to it as well, and writes down what each of them fails.
"""

from __future__ import annotations

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

Op = FilterOperator
AND, OR, NOT = FilterCondition.AND, FilterCondition.OR, FilterCondition.NOT


def node(id, vector, document="doc-1", **metadata):
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)} if document else {}
    return TextNode(id_=id, text=f"text of {id}", embedding=vector, metadata=metadata, relationships=source)


def nodes():
    """From the nearest to the farthest of [1, 0]."""
    return [
        node("a", [1.0, 0.0], n=1, name="Anna", tags=["red", "blue"]),
        node("b", [1.0, 0.2], n=2, name="Bob", tags=["blue"], note=None),
        node("c", [1.0, 0.5], "doc-2", n=3.5, name="Carl-Anna", tags=[], note=""),
        node("d", [1.0, 1.0], "doc-2", name="d_%", note="x"),
        node("e", [0.0, 1.0], None, n=-4, name="émile"),
    ]


def ids(store, vector=(1.0, 0.0), k=10, **query):
    return store.query(VectorStoreQuery(query_embedding=list(vector), similarity_top_k=k, **query)).ids


def all_of(*leaves, condition=AND):
    return MetadataFilters(
        filters=[MetadataFilter(key=k, operator=o, value=v) for k, o, v in leaves], condition=condition
    )


@pytest.mark.needs("empty")
def test_an_empty_store_finds_nothing(store):
    assert not ids(store)


@pytest.mark.needs("ranking")
def test_the_nearest_come_first_and_k_bounds_them(store):
    assert store.add(nodes()) == ["a", "b", "c", "d", "e"]
    assert ids(store) == ["a", "b", "c", "d", "e"]
    assert ids(store, (0.0, 1.0), k=2) == ["e", "d"]


@pytest.mark.needs("scores")
def test_similarities_are_cosines(store):
    store.add(nodes())
    result = store.query(VectorStoreQuery(query_embedding=[2.0, 0.0], similarity_top_k=5))
    assert result.similarities == pytest.approx([1, 0.980581, 0.894427, 0.707107, 0], abs=1e-5)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (all_of(("n", Op.EQ, 1)), "a"),
        (all_of(("n", Op.EQ, 1.0)), "a"),
        (all_of(("name", Op.EQ, "Bob")), "b"),
        (all_of(("name", Op.EQ, "bob")), ""),
        (all_of(("n", Op.NE, 1)), "bcde"),
        (all_of(("note", Op.NE, "x")), "abce"),
        (all_of(("tags", Op.EQ, ["red", "blue"])), "a"),
        (all_of(("tags", Op.EQ, ["blue", "red"])), ""),
        (all_of(("tags", Op.NE, ["red", "blue"])), "bcde"),
        (all_of(("n", Op.IN, [1, 2, 99])), "ab"),
        (all_of(("name", Op.IN, ["Bob", "d_%"])), "bd"),
        (all_of(("n", Op.NIN, [1, 2])), "cde"),
        (all_of(("tags", Op.CONTAINS, "blue")), "ab"),
        (all_of(("tags", Op.ANY, ["red", "green"])), "a"),
        (all_of(("tags", Op.ALL, ["blue", "red"])), "a"),
        (all_of(("tags", Op.ALL, ["blue", "green"])), ""),
        (all_of(("name", Op.TEXT_MATCH, "Anna")), "ac"),
        (all_of(("name", Op.TEXT_MATCH, "anna")), ""),
        (all_of(("name", Op.TEXT_MATCH, "_%")), "d"),
        (all_of(("name", Op.TEXT_MATCH_INSENSITIVE, "ANNA")), "ac"),
        (all_of(("name", Op.TEXT_MATCH_INSENSITIVE, "ÉM")), "e"),
        (all_of(("note", Op.IS_EMPTY, None)), "abce"),
        (all_of(("tags", Op.IS_EMPTY, None)), "cde"),
        (all_of(("n", Op.IS_EMPTY, None)), "d"),
        (all_of(("missing", Op.EQ, "x")), ""),
        (all_of(("missing", Op.NE, "x")), "abcde"),
        (all_of(("missing", Op.IS_EMPTY, None)), "abcde"),
        (all_of(("n", Op.GT, 1), ("n", Op.LT, 3.5)), "b"),
        (all_of(("n", Op.GTE, 2), ("n", Op.LTE, 3.5)), "bc"),
        (all_of(("name", Op.GTE, "b")), "de"),
        (all_of(("n", Op.EQ, 1), ("name", Op.EQ, "Bob"), condition=OR), "ab"),
        (all_of(("n", Op.EQ, 1), ("name", Op.EQ, "Bob"), condition=NOT), "cde"),
        (all_of(("n", Op.EQ, 1), condition=None), "a"),
        (MetadataFilters(filters=[]), "abcde"),
        (all_of(("ref_doc_id", Op.EQ, "doc-2")), "cd"),
        (all_of(("name'; DROP TABLE docs; --", Op.EQ, "x")), ""),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else "-".join(f"{f.key}{f.operator.value}{f.value}" for f in value.filters)
    ),
)
@pytest.mark.needs("filters")
def test_every_operator(store, filters, expected):
    store.add(nodes())
    assert ids(store, filters=filters) == list(expected)


def test_every_operator_is_in_the_test_above():
    tested = {
        leaf.operator
        for mark in test_every_operator.pytestmark
        if mark.name == "parametrize"
        for filters, _ in mark.args[1]
        for leaf in filters.filters
    }
    assert tested == set(FilterOperator)


@pytest.mark.needs("nested")
@pytest.mark.parametrize(("condition", "expected"), [(AND, "c"), (OR, "abce"), (NOT, "d")], ids=["and", "or", "not"])
def test_filters_in_filters(store, condition, expected):
    store.add(nodes())
    inner = all_of(("n", Op.EQ, 1), ("n", Op.EQ, 3.5), condition=OR)
    deeper = MetadataFilters(filters=[all_of(("name", Op.TEXT_MATCH, "Anna"), condition=NOT)], condition=NOT)
    two = all_of(("n", Op.IN, [2, 3.5, -4]))
    assert ids(store, filters=MetadataFilters(filters=[inner, deeper, two], condition=condition)) == list(expected)


@pytest.mark.needs("filters")
def test_k_counts_what_passes_the_filter(store):
    store.add([node(f"far-{i}", [1.0, 0.0], n=0) for i in range(200)])
    store.add([node("hit", [0.0, 1.0], n=1)])
    assert ids(store, k=1, filters=all_of(("n", Op.EQ, 1))) == ["hit"]


@pytest.mark.needs("node_ids")
def test_a_query_among_node_ids(store):
    store.add(nodes())
    assert ids(store, node_ids=["d", "b", "nothing"]) == ["b", "d"]


@pytest.mark.needs("mmr")
def test_mmr_prefers_what_differs(store):
    store.add([node("near", [1.0, 0.0]), node("again", [1.0, 0.01]), node("far", [0.6, 0.8])])
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=2, mode=VectorStoreQueryMode.MMR)
    assert store.query(query, mmr_threshold=0.3).ids == ["near", "far"]
    assert store.query(query, mmr_threshold=1.0).ids == ["near", "again"]


@pytest.mark.needs("delete")
def test_deleting_a_document_deletes_its_nodes(store):
    store.add(nodes())
    store.delete("doc-2")
    store.delete("nothing")
    assert ids(store) == ["a", "b", "e"]


@pytest.mark.needs("delete_nodes")
def test_deleting_nodes_by_id_by_filter_and_by_both(store):
    store.add(nodes())
    store.delete_nodes(["a", "nothing"])
    store.delete_nodes(filters=all_of(("n", Op.LT, 0)))
    store.delete_nodes(["b", "c"], filters=all_of(("n", Op.EQ, 2)))
    assert ids(store) == ["c", "d"]


@pytest.mark.needs("reuse")
def test_a_node_added_after_a_delete_is_found_as_itself(store):
    store.add(nodes()[:3])
    store.delete_nodes(["a"])
    store.add([node("new", [-1.0, 0.0])])
    assert ids(store, (1.0, 0.5), k=1) == ["c"]
    assert ids(store, (-1.0, 0.0), k=1) == ["new"]


@pytest.mark.needs("replace")
def test_a_node_with_an_existing_id_replaces_it(store):
    store.add(nodes())
    store.add([node("a", [0.0, -1.0], n=77)])
    assert ids(store, (0.0, -1.0), k=1) == ["a"]
    assert len(ids(store)) == 5
    assert ids(store, filters=all_of(("n", Op.EQ, 77))) == ["a"]


@pytest.mark.needs("clear")
def test_clear(store):
    store.add(nodes())
    store.clear()
    assert not ids(store)
    store.add(nodes()[:1])
    assert ids(store) == ["a"]


@pytest.mark.needs("nodes")
def test_a_query_returns_whole_nodes(store):
    store.add(nodes())
    found = store.query(VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=5)).nodes
    for before, after in zip(nodes(), found, strict=True):
        assert after.get_content() == before.get_content()
        assert after.metadata == before.metadata
        assert after.relationships == before.relationships
        assert after.ref_doc_id == before.ref_doc_id


@pytest.mark.needs("get_nodes")
def test_get_nodes(store):
    store.add(nodes())
    assert [n.node_id for n in store.get_nodes(["c", "nothing", "a"])] == ["c", "a"]
    assert [n.node_id for n in store.get_nodes(filters=all_of(("n", Op.LTE, 1)))] == ["a", "e"]
    assert [n.node_id for n in store.get_nodes(["a", "b"], all_of(("n", Op.EQ, 2)))] == ["b"]
    assert len(store.get_nodes()) == 5


@pytest.mark.needs("reopen")
def test_a_store_is_opened_again(store, open_store, tmp_path):
    store.add(nodes())
    before = ids(store)
    assert len(before) == 5
    store.persist(str(tmp_path / "persisted"))
    if hasattr(store, "close"):
        store.close()
    assert ids(open_store()) == before


@pytest.mark.needs("async")
async def test_the_async_twins(store):
    assert await store.async_add(nodes()) == ["a", "b", "c", "d", "e"]
    await store.adelete("doc-2")
    await store.adelete_nodes(["a"])
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=5)
    assert (await store.aquery(query)).ids == ["b", "e"]
    await store.aclear()
    assert not (await store.aquery(query)).ids
