"""LangChain's VectorStore over FaissStore: filters that hold, deletes that delete, a folder that survives crashes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore

from faiss_llm2vec import FaissStore, Hit, Record, inputs
from faiss_llm2vec.models import fingerprint_of
from st_llm2vec.errors import InvalidInputError, StoreExistsError

# Scores of FaissStore, brought to LangChain's [0, 1]. Inner products have no bounds.
_RELEVANCE: dict[str, Callable[[float], float]] = {
    "cosine": lambda score: max(0.0, score),
    "l2": lambda score: 1 / (1 - score),
}


class FaissVectorStore(VectorStore):
    """Documents in a folder, searched by any LangChain embeddings.

    Example:
        >>> store = FaissVectorStore(embedding=LLM2VecEmbeddings(model), path="my-store")
        >>> ids = store.add_texts(["Bears hibernate.", "Rates rose."], [{"year": 2019}, {"year": 2024}])
        >>> store.similarity_search("Who hibernates?", k=3, filter={"year": {"$gte": 2020}})[0].page_content
        'Rates rose.'

    Every change is on the disk when its call returns. Adding a document whose id exists replaces it. `filter` is a
    `where` of faiss_llm2vec/filters.py; no hit ever violates it. Scores are those of `faiss_llm2vec.Hit`: the higher,
    the better. Searches, and the `search_kwargs` of retrievers, take `mode="hybrid"` or "bm25" and `rerank`, as
    `FaissStore.search` does.

    Args:
        path: folder of the store, made if there is none.
        kind, metric: see `FaissStore.create`, whose defaults they have.
        fingerprint: what tells the embedding model from others, in place of what `embedding` says; that of a cache
            (`CacheBackedEmbeddings`) is that of the embeddings under it.

    Raises:
        StoreMismatchError: The store was made with another embedding model, kind or metric.
    """

    def __init__(
        self,
        embedding: Embeddings,
        path: str | Path,
        *,
        kind: str | None = None,
        metric: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.embedding = embedding
        self.store = FaissStore.open_or_create(
            path, _EmbeddingsEncoder(embedding), kind=kind, metric=metric, fingerprint=fingerprint
        )
        self._metric: str = self.store.stats()["metric"]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> FaissVectorStore:
        """A new store of these texts; `path=` and the other arguments are those of the class."""
        vector_store = cls._empty(embedding, **kwargs)
        try:
            vector_store.add_texts(texts, metadatas, ids=ids)
        except BaseException:
            vector_store.close()
            raise
        return vector_store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> FaissVectorStore:
        """`from_texts` by the embeddings' own async methods."""
        vector_store = await run_in_executor(None, cls._empty, embedding, **kwargs)
        try:
            await vector_store.aadd_texts(texts, metadatas, ids=ids)
        except BaseException:
            vector_store.close()
            raise
        return vector_store

    @classmethod
    def _empty(cls, embedding: Embeddings, **kwargs: Any) -> FaissVectorStore:
        vector_store = cls(embedding, **kwargs)
        if documents := vector_store.store.count():
            vector_store.close()
            raise StoreExistsError(
                f"{vector_store.store.path} has {documents} documents already. Add to them with "
                "FaissVectorStore(embedding, path).add_texts(...), or choose another path."
            )
        return vector_store

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings that were given."""
        return self.embedding

    def close(self) -> None:
        """Frees the files and the writer's lock."""
        self.store.close()

    # -- changing ------------------------------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Adds texts, or replaces those whose id exists: all of them or, if anything is wrong, none.

        Texts whose id is None get a random one, and those whose metadata is None have none. Returns the ids.
        """
        kwargs.pop("batch_size", None)  # langchain_core.indexing.index passes it on; one call is one change here
        _refuse(kwargs)
        return self.store.upsert(_listed(texts), ids=_completed(ids), metadata=metadatas)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """`add_texts` by the embeddings' own `aembed_documents`."""
        kwargs.pop("batch_size", None)
        _refuse(kwargs)
        texts, completed = _listed(texts), _completed(ids)
        # As in `add_texts`, whatever is wrong is said before anything is encoded.
        await run_in_executor(None, self._check_addable, texts, completed, metadatas)
        vectors = await self.embedding.aembed_documents(texts) if texts else None
        return await run_in_executor(None, self.store.upsert, texts, ids=completed, metadata=metadatas, vectors=vectors)

    def _check_addable(self, texts: list[str], ids: list[str] | None, metadatas: Any) -> None:
        if inputs.documents(texts, ids, metadatas):
            self.store.delete(ids=[])  # takes the writer's lock, or says who has it

    def add_embeddings(
        self,
        text_embeddings: Iterable[tuple[str, Sequence[float]]],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Like `add_texts`, for texts whose vectors are there already."""
        pairs = list(text_embeddings)
        texts, vectors = [text for text, _ in pairs], [vector for _, vector in pairs]
        return self.store.upsert(texts, ids=_completed(ids), metadata=metadatas, vectors=vectors)

    def delete(self, ids: list[str] | None = None, *, filter: Mapping[str, Any] | None = None, **kwargs: Any) -> bool:
        """Deletes the documents with these ids, or that match the filter; every document if neither is given.

        Ids that do not exist are passed over.
        """
        _refuse(kwargs)
        self.store.delete(ids, where={} if ids is None and filter is None else filter)
        return True

    # -- reading -------------------------------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in their order; ids that do not exist are passed over."""
        return [_document(record) for record in self.store.get(_listed(ids))]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The `k` best documents; takes `filter`, `score_threshold`, `mode="hybrid"` or "bm25", and `rerank`."""
        return [_document(hit) for hit in self._search(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """The `k` best documents and their scores, the higher the better."""
        return [(_document(hit), hit.score) for hit in self._search(query, k, **kwargs)]

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """`similarity_search` for the vector of a query."""
        return [_document(hit) for hit in self._search(embedding, k, **kwargs)]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """`similarity_search_with_score` for the vector of a query."""
        return [(_document(hit), hit.score) for hit in self._search(embedding, k, **kwargs)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """`k` of the `fetch_k` best documents, picked to differ: `lambda_mult` 1.0 is relevance only, 0.0 diversity."""
        return [_document(hit) for hit in self._search(query, k, fetch_k=fetch_k, mmr=lambda_mult, **kwargs)]

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """`max_marginal_relevance_search` for the vector of a query."""
        return [_document(hit) for hit in self._search(embedding, k, fetch_k=fetch_k, mmr=lambda_mult, **kwargs)]

    # -- reading, with the embeddings' own `aembed_query` --------------------------------------------------------------

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """`similarity_search` without blocking the event loop."""
        return [_document(hit) for hit in await self._asearch(query, k, **kwargs)]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """`similarity_search_with_score` without blocking the event loop."""
        return [(_document(hit), hit.score) for hit in await self._asearch(query, k, **kwargs)]

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """`max_marginal_relevance_search` without blocking the event loop."""
        found = await self._asearch(query, k, fetch_k=fetch_k, mmr=lambda_mult, **kwargs)
        return [_document(hit) for hit in found]

    async def _asearch(self, query: str, k: int, **kwargs: Any) -> list[Hit]:
        inputs.check_query(query)
        vector = None if kwargs.get("mode") == "bm25" else await self.embedding.aembed_query(query)
        return await run_in_executor(None, self._search, query, k, vector=vector, **kwargs)

    def _search(self, query: Any, k: int, *, filter: Mapping[str, Any] | None = None, **options: Any) -> list[Hit]:
        return self.store.search(query, k, where=filter, **options)

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        _require_similarities(kwargs)
        return super()._similarity_search_with_relevance_scores(query, k, **kwargs)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        _require_similarities(kwargs)
        return await super()._asimilarity_search_with_relevance_scores(query, k, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self._metric not in _RELEVANCE:
            raise InvalidInputError(
                f"scores of metric {self._metric!r} have no bounds, so there is no relevance from 0 to 1. Use "
                "similarity_search_with_score, or a store with metric='cosine'."
            )
        return _RELEVANCE[self._metric]


class _EmbeddingsEncoder:
    """LangChain embeddings, in the words that FaissStore speaks."""

    def __init__(self, embedding: Embeddings) -> None:
        self.embedding = embedding

    @property
    def fingerprint(self) -> str:
        """That of the embeddings."""
        return fingerprint_of(self.embedding) or ""

    def encode_query(self, inputs: list[str], **kwargs: Any) -> list[list[float]]:
        return [self.embedding.embed_query(text) for text in inputs]

    def encode_document(self, inputs: list[str], **kwargs: Any) -> list[list[float]]:
        return self.embedding.embed_documents(inputs)


def _document(found: Record | Hit) -> Document:
    return Document(id=found.id, page_content=found.text, metadata=found.metadata)


def _listed(strings: Iterable[Any]) -> list[Any]:
    if isinstance(strings, str) or not isinstance(strings, Iterable):
        raise InvalidInputError(f"texts and ids must be lists of strings, got {strings!r:.80}.")
    return list(strings)


def _completed(ids: Sequence[str | None] | None) -> list[str] | None:
    return None if ids is None else [uuid.uuid4().hex if id is None else id for id in _listed(ids)]


def _require_similarities(options: Mapping[str, Any]) -> None:
    if options.get("mode", "dense") != "dense" or options.get("rerank") is not None:
        raise InvalidInputError(
            "ranks that were fused, BM25 and rerankers give no relevance from 0 to 1. Use similarity_search_with_score."
        )


def _refuse(unknown: Mapping[str, Any]) -> None:
    if unknown:  # a misspelt argument, silently dropped, would lose metadata or delete everything
        raise TypeError(f"unexpected arguments: {', '.join(unknown)}")
