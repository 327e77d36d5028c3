"""LlamaIndex's vector store over FaissStore: whole nodes, every filter operator, deletes, a crash-safe folder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from faiss_llm2vec import FaissStore, Hit, Record
from llama_index_llm2vec.filters import NODE_ID, Where, where_of
from st_llm2vec.errors import InvalidInputError, StoreMismatchError, StoreNotFoundError

_REF_DOC_ID = ("document_id", "doc_id", "ref_doc_id")  # LlamaIndex writes it under each


class FaissVectorStore(BasePydanticVectorStore):  # type: ignore[misc]
    """Nodes in a folder: text, metadata, relationships and vectors.

        vector_store = FaissVectorStore(path="my-store")
        index = VectorStoreIndex.from_vector_store(vector_store, embed_model)

    Every change is on the disk when its call returns; adding a node whose id exists replaces it. Similarities are the
    scores of `faiss_llm2vec.Hit`: the higher, the better. The store holds vectors of the dimension of the first one.

    Args:
        path: folder of the store, made if there is none.
        kind, metric: see `FaissStore.create`, whose defaults they have.

    Raises:
        StoreMismatchError: The store was made with another kind or metric; a vector has another dimension.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    path: str
    kind: str | None = None
    metric: str | None = None

    _store: FaissStore = PrivateAttr()

    def __init__(self, path: Any, *, kind: str | None = None, metric: str | None = None, **kwargs: Any) -> None:
        super().__init__(path=str(path), kind=kind, metric=metric, **kwargs)
        given: dict[str, Any] = {
            name: value for name, value in (("kind", kind), ("metric", metric)) if value is not None
        }
        try:
            self._store = FaissStore.open(path)
        except StoreNotFoundError:
            self._store = FaissStore.create(path, None, **given)
        stats = self._store.stats()
        for name, value in given.items():
            if stats[name] != value:
                self.close()
                raise StoreMismatchError(f"{path} was made with {name}={stats[name]!r}, not {value!r}. Leave it out.")

    @classmethod
    def class_name(cls) -> str:
        return "LLM2VecFaissVectorStore"

    @property
    def client(self) -> FaissStore:
        """The store underneath."""
        return self._store

    def close(self) -> None:
        """Frees the files and the writer's lock."""
        self._store.close()

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Does nothing: every change is on the disk already, in `path`."""

    # -- changing ------------------------------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Adds nodes with their vectors, all of them or none; those whose id exists are replaced."""
        return self._store.upsert(
            [node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes],
            ids=[node.node_id for node in nodes],
            metadata=[_fields(node) for node in nodes],
            vectors=[node.get_embedding() for node in nodes],
        )

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Deletes all nodes of a source document."""
        self._store.delete(where={"ref_doc_id": ref_doc_id})

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Deletes the nodes with these ids, or that match the filters, or both if both are given."""
        where = where_of(filters, self._store)
        if node_ids is None and not where:
            raise InvalidInputError("delete_nodes() needs node_ids or filters; clear() deletes every node.")
        self._store.delete(node_ids, where=where or None)

    def clear(self) -> None:
        """Deletes every node."""
        self._store.delete(where={})

    # -- reading -------------------------------------------------------------------------------------------------------

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """The nodes with these ids, or that match the filters, or both if both; every node if neither is given."""
        where = where_of(filters, self._store)
        return [
            _node(record) for record in self._store.get(node_ids, where=where if node_ids is None else where or None)
        ]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The best nodes for a vector; mode "mmr" takes `mmr_threshold`, 1.0 for relevance only, 0.0 for diversity."""
        if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
            raise InvalidInputError(f"mode {query.mode.value!r} is not vector search. Use 'default' or 'mmr'.")
        if query.query_embedding is None:
            raise InvalidInputError("the query has no query_embedding. Set one, or ask through an index.")
        threshold = query.mmr_threshold if query.mmr_threshold is not None else kwargs.get("mmr_threshold", 0.5)
        hits = self._store.search(
            query.query_embedding,
            query.similarity_top_k,
            where=self._where(query),
            mmr=threshold if query.mode == VectorStoreQueryMode.MMR else None,
            fetch_k=kwargs.get("mmr_prefetch_k"),
        )
        return VectorStoreQueryResult(
            nodes=[_node(hit) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    def _where(self, query: VectorStoreQuery) -> Where | None:
        parts = [where_of(query.filters, self._store)]
        if query.node_ids:  # an index over a store of text asks with an empty list, and means all
            parts.append({NODE_ID: {"$in": query.node_ids}})
        if query.doc_ids:
            parts.append({"ref_doc_id": {"$in": query.doc_ids}})
        parts = [part for part in parts if part]
        return {"$and": parts} if parts else None

    # -- the same without blocking the event loop ----------------------------------------------------------------------

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return await asyncio.to_thread(self.query, query, **kwargs)


def _fields(node: BaseNode) -> dict[str, Any]:
    """The node without text and vector as LlamaIndex writes it, and its metadata as fields to filter by."""
    fields = node_to_metadata_dict(node, remove_text=True)
    fields |= dict.fromkeys(_REF_DOC_ID, node.ref_doc_id)  # not the text "None"
    fields[NODE_ID] = node.node_id
    return {name: value for name, value in fields.items() if value != []}  # see IS_EMPTY


def _node(found: Record | Hit) -> BaseNode:
    return metadata_dict_to_node(found.metadata, text=found.text)
