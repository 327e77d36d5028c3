"""LlamaIndex's vector store over FaissStore: whole nodes, every filter operator, deletes, a crash-safe folder."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from faiss_llm2vec import FaissStore, Hit, Record
from faiss_llm2vec.filters import plain
from faiss_llm2vec.models import fingerprint_of, name_of
from llama_index_llm2vec.filters import NODE_ID, Where, where_of
from st_llm2vec.errors import InvalidInputError

_REF_DOC_ID = ("document_id", "doc_id", "ref_doc_id")  # LlamaIndex writes it under each
_QUERY_OPTIONS = ("mmr_threshold", "mmr_prefetch_k", "mmr_prefetch_factor", "rerank")
# LlamaIndex's modes, and FaissStore's.
_MODES = {
    VectorStoreQueryMode.DEFAULT: "dense",
    VectorStoreQueryMode.MMR: "dense",
    VectorStoreQueryMode.HYBRID: "hybrid",
    VectorStoreQueryMode.TEXT_SEARCH: "bm25",
    VectorStoreQueryMode.SPARSE: "bm25",
}


class FaissVectorStore(BasePydanticVectorStore):  # type: ignore[misc]
    """Nodes in a folder: text, metadata, relationships and vectors.

    Example:
        >>> index = FaissVectorStore(path="my-store").as_index(LLM2VecEmbedding(model))
        >>> index.insert(Document(text="Bears hibernate."))
        >>> index.as_retriever(similarity_top_k=1).retrieve("Who sleeps in winter?")[0].text
        'Bears hibernate.'

    Every change is on the disk when its call returns; adding a node whose id exists replaces it. Similarities are the
    scores of `faiss_llm2vec.Hit`: the higher, the better. The store holds vectors of the dimension of the first one.

    Args:
        path: folder of the store, made if there is none.
        kind, metric: see `FaissStore.create`, whose defaults they have.
        embed_model: the embedding model of the index. A store that was made with one refuses another; LlamaIndex itself
            tells a vector store nothing of it.
        fingerprint: what tells that model from others, in place of what `embed_model` says.

    Raises:
        StoreMismatchError: The store was made with another kind, metric or model; a vector has another dimension.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    path: str
    kind: str | None = None
    metric: str | None = None
    fingerprint: str | None = None

    _store: FaissStore = PrivateAttr()

    def __init__(
        self,
        path: Any,
        *,
        kind: str | None = None,
        metric: str | None = None,
        embed_model: Any = None,
        fingerprint: str | None = None,
        **kwargs: Any,
    ) -> None:
        fingerprint = fingerprint_of(embed_model, fingerprint)
        super().__init__(path=str(path), kind=kind, metric=metric, fingerprint=fingerprint, **kwargs)
        self._store = FaissStore.open_or_create(
            path, None, kind=kind, metric=metric, fingerprint=fingerprint, model_name=name_of(embed_model)
        )

    @classmethod
    def class_name(cls) -> str:
        return "LLM2VecFaissVectorStore"

    @property
    def client(self) -> FaissStore:
        """The store underneath."""
        return self._store

    def as_index(self, embed_model: Any = None, **options: Any) -> VectorStoreIndex:
        """An index over this store that knows which documents it holds.

        So `refresh_ref_docs` embeds those that are new or changed and no others, which it cannot know after
        `VectorStoreIndex.from_vector_store`: LlamaIndex keeps the hashes of documents in a document store beside it.

        Args:
            embed_model, options: As for `VectorStoreIndex`.
        """
        context = StorageContext.from_defaults(vector_store=self)
        for record in self._store.get(where={"ref_doc_id": {"$exists": True}}):  # oldest first
            if (source := _node(record).source_node) is not None and source.hash:
                context.docstore.set_document_hash(source.node_id, source.hash)
        return VectorStoreIndex(nodes=[], embed_model=embed_model, storage_context=context, **options)

    def close(self) -> None:
        """Frees the files and the writer's lock."""
        self._store.close()

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Does nothing: every change is on the disk already, in `path`."""

    # -- changing ------------------------------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Adds nodes with their vectors, all of them or none.

        A node whose id exists is replaced, and so is one that is the same part of the same source document under
        another id: an index that lost its document store (`from_vector_store`) takes each document for a new one. Where
        another version of a source document stays in the store beside the new one, a warning says so.
        """
        fields = [_fields(node) for node in nodes]
        replaced, outdated = self._there_already(nodes, fields)
        ids = self._store.upsert(
            [node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes],
            ids=[node.node_id for node in nodes],
            metadata=fields,
            vectors=[node.get_embedding() for node in nodes],
        )
        if replaced:
            self._store.delete(replaced)
        if outdated:
            names = ", ".join(map(repr, sorted(outdated)[:5])) + (" ..." if len(outdated) > 5 else "")
            warnings.warn(
                f"{self.path} keeps nodes of older versions of {names} beside the new ones. Replace a document with "
                "index.update_ref_doc(document); refresh_ref_docs does so if the index was made by "
                "vector_store.as_index(embed_model) and so knows what is there.",
                stacklevel=2,
            )
        return ids

    def _there_already(
        self, nodes: Sequence[BaseNode], fields: Sequence[Mapping[str, Any]]
    ) -> tuple[list[str], set[str]]:
        """Ids of the nodes that these repeat, and the source documents that are there in another version."""
        versions: dict[str, set[str]] = {}
        for node in nodes:
            if node.source_node is not None and node.source_node.hash:
                versions.setdefault(node.source_node.node_id, set()).add(node.source_node.hash)
        if not versions:
            return [], set()
        given, ids = set(map(_part, nodes, fields)), {node.node_id for node in nodes}
        repeated, outdated = [], set()
        for record in self._store.get(where={"ref_doc_id": {"$in": list(versions)}}):
            node = _node(record)
            version = None if node.source_node is None else node.source_node.hash
            if version is None or record.id in ids:
                continue
            if version not in versions[node.source_node.node_id]:
                outdated.add(node.source_node.node_id)
            elif _part(node, record.metadata) in given:
                repeated.append(record.id)
        return repeated, outdated

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
        where_or_none = where if node_ids is None else where or None
        return [_node(record) for record in self._store.get(node_ids, where_or_none, with_vectors=True)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The best nodes for a vector; of a query without vector and text, the first nodes that pass its filters.

        Modes "hybrid", and "text_search" or "sparse" for BM25 alone, look for the words of `query_str`. `rerank`, a
        cross-encoder or its name, puts the nodes into its own order. Mode "mmr" takes `mmr_threshold`, 1.0 for
        relevance only, 0.0 for diversity, and picks among `mmr_prefetch_k` nodes, or `mmr_prefetch_factor` times
        `similarity_top_k`.
        """
        if unknown := kwargs.keys() - set(_QUERY_OPTIONS):
            raise InvalidInputError(f"unexpected {', '.join(sorted(unknown))}; there are {', '.join(_QUERY_OPTIONS)}.")
        if query.mode not in _MODES:
            names = ", ".join(repr(mode.value) for mode in _MODES)
            raise InvalidInputError(f"mode must be one of {names}, got {getattr(query.mode, 'value', query.mode)!r}.")
        for name in ("alpha", "sparse_top_k"):
            if getattr(query, name) is not None:
                raise InvalidInputError(f"{name} cannot be set: hybrid search adds up reciprocal ranks. Leave it out.")
        mode, where = _MODES[query.mode], self._where(query)
        if query.query_embedding is None and mode != "bm25":
            return self._first(query, where)
        threshold = query.mmr_threshold if query.mmr_threshold is not None else kwargs.get("mmr_threshold")
        fetch_k = kwargs.get("mmr_prefetch_k")
        if fetch_k is None and (factor := kwargs.get("mmr_prefetch_factor")) is not None:
            fetch_k = int(query.similarity_top_k * factor)
        by_words = mode != "dense" or kwargs.get("rerank") is not None
        if by_words and not query.query_str:
            raise InvalidInputError(
                f"mode {getattr(query.mode, 'value', query.mode)!r} and rerank need the text, as query_str."
            )
        hits = self._store.search(
            query.query_str if by_words else query.query_embedding,
            query.hybrid_top_k or query.similarity_top_k,
            where=where,
            mode=mode,
            vector=query.query_embedding if by_words and mode != "bm25" else None,
            mmr=None if query.mode != VectorStoreQueryMode.MMR else 0.5 if threshold is None else threshold,
            rerank=kwargs.get("rerank"),
            fetch_k=fetch_k,
            with_vectors=True,
        )
        return VectorStoreQueryResult(
            nodes=[_node(hit) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    def _first(self, query: VectorStoreQuery, where: Where | None) -> VectorStoreQueryResult:
        if query.query_str or where is None:
            raise InvalidInputError("the query has no query_embedding. Set one, give filters, or ask through an index.")
        records = self._store.get(where=where, limit=query.similarity_top_k, with_vectors=True)
        return VectorStoreQueryResult(nodes=list(map(_node, records)), ids=[record.id for record in records])

    def _where(self, query: VectorStoreQuery) -> Where | None:
        parts = [where_of(query.filters, self._store)]
        # An index over a store of text asks with an empty list and its text, and means all.
        if query.node_ids or (query.node_ids is not None and query.query_str is None):
            parts.append({NODE_ID: {"$in": query.node_ids}})
        if query.doc_ids is not None:
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
    fields = node_to_metadata_dict(_without_numpy(node), remove_text=True)
    fields |= dict.fromkeys(_REF_DOC_ID, node.ref_doc_id)  # not the text "None"
    fields[NODE_ID] = node.node_id
    return {name: value for name, value in fields.items() if value != []}  # see IS_EMPTY


def _without_numpy(node: BaseNode) -> BaseNode:
    """A node that can be written as JSON where its metadata, or that of a related node, has numbers of numpy."""
    related: dict[NodeRelationship, Any] = {
        kind: [_plain_metadata(part) for part in parts] if isinstance(parts, list) else _plain_metadata(parts)
        for kind, parts in node.relationships.items()
    }
    return _plain_metadata(node).model_copy(update={"relationships": related})


def _plain_metadata(owner: Any) -> Any:
    metadata = {
        name: [plain(item) for item in value] if isinstance(value, list) else plain(value)
        for name, value in owner.metadata.items()
    }
    return owner.model_copy(update={"metadata": metadata})


def _part(node: BaseNode, fields: Mapping[str, Any]) -> str:
    """All that a node is but for its id, its vector and its neighbours."""
    content = json.loads(fields["_node_content"])
    rest = {name: value for name, value in content.items() if name not in ("id_", "relationships", "embedding")}
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    return json.dumps([fields["_node_type"], node.ref_doc_id, text, rest], sort_keys=True)


def _node(found: Record | Hit) -> BaseNode:
    node = metadata_dict_to_node(found.metadata, text=found.text)
    node.embedding = None if found.vector is None else found.vector.tolist()
    return node
