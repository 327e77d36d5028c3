"""One vector database behind one framework's own store, in the five words of the matrix test.

A row of STORES opens a folder: the same folder, opened again, holds what was put there before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from langchain_core.documents import Document
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import ExactMatchFilter, MetadataFilters
from llama_index.core.vector_stores.types import VectorStoreQuery

NAME = "passages"  # of the collection or table


class Database(Protocol):
    def add(self, ids: Sequence[str], texts: Sequence[str], modules: Sequence[str]) -> None: ...
    def search(self, query: str, k: int, module: str | None = None) -> list[str]:
        """Ids of the best, best first; of this module only, if one is given."""

    def text(self, query: str) -> str:
        """The text of the best."""

    def delete(self, ids: Sequence[str]) -> None: ...


@dataclass
class LangChain:
    """A LangChain vector store; `where` makes the arguments that filter by module."""

    store: Any
    where: Callable[[str], dict[str, Any]]

    def add(self, ids, texts, modules):
        documents = [
            Document(id=id, page_content=text, metadata={"passage": id, "module": module})
            for id, text, module in zip(ids, texts, modules, strict=True)
        ]
        self.store.add_documents(documents, ids=list(ids))

    def search(self, query, k, module=None):
        options = {} if module is None else self.where(module)
        return [found.metadata["passage"] for found in self.store.similarity_search(query, k=k, **options)]

    def text(self, query):
        return self.store.similarity_search(query, k=1)[0].page_content

    def delete(self, ids):
        self.store.delete(ids=list(ids))


@dataclass
class LlamaIndex:
    """A LlamaIndex vector store with an embedding beside it."""

    store: Any
    embedding: Any

    def add(self, ids, texts, modules):
        nodes = [
            TextNode(id_=id, text=text, metadata={"passage": id, "module": module})
            for id, text, module in zip(ids, texts, modules, strict=True)
        ]
        for node, vector in zip(nodes, self.embedding.get_text_embedding_batch(list(texts)), strict=True):
            node.embedding = vector
        self.store.add(nodes)

    def _query(self, query, k, module=None):
        filters = None if module is None else MetadataFilters(filters=[ExactMatchFilter(key="module", value=module)])
        vector = self.embedding.get_query_embedding(query)
        request = VectorStoreQuery(query_embedding=vector, query_str=query, similarity_top_k=k, filters=filters)
        return self.store.query(request).nodes

    def search(self, query, k, module=None):
        return [node.metadata["passage"] for node in self._query(query, k, module)]

    def text(self, query):
        return self._query(query, 1)[0].get_content()

    def delete(self, ids):
        self.store.delete_nodes(list(ids))


class LlamaIndexLanceDB(LlamaIndex):
    """LlamaIndex 0.6.0 puts values into double quotes, where lancedb 0.40 expects names: its deletes raise."""

    def delete(self, ids):
        self.store.table.delete(f"id IN ({', '.join(map(repr, ids))})")


# -- LangChain ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def langchain_ours(folder: Path, embeddings: Any, **_: Any) -> Iterator[Database]:
    from langchain_llm2vec import FaissVectorStore

    store = FaissVectorStore(embeddings, folder / "store")
    yield LangChain(store, lambda module: {"filter": {"module": module}})
    store.close()


@contextlib.contextmanager
def langchain_pgvector(folder: Path, embeddings: Any, dimension: int, postgres: str) -> Iterator[Database]:
    from langchain_postgres import Column, PGEngine, PGVectorStore
    from sqlalchemy.exc import ProgrammingError

    engine = PGEngine.from_connection_string(postgres.replace("postgresql:", "postgresql+psycopg:"))
    table = f"{NAME}_langchain"
    with contextlib.suppress(ProgrammingError):  # it is there
        engine.init_vectorstore_table(table, dimension, metadata_columns=[Column("module", "TEXT")])
    store = PGVectorStore.create_sync(engine, embeddings, table, metadata_columns=["module"])
    yield LangChain(store, lambda module: {"filter": {"module": {"$eq": module}}})
    asyncio.run(engine.close())


@contextlib.contextmanager
def langchain_chroma(folder: Path, embeddings: Any, **_: Any) -> Iterator[Database]:
    from langchain_chroma import Chroma

    store = Chroma(NAME, embeddings, client=_chroma(folder), collection_configuration={"hnsw": {"space": "cosine"}})
    yield LangChain(store, lambda module: {"filter": {"module": module}})


@contextlib.contextmanager
def langchain_lancedb(folder: Path, embeddings: Any, **_: Any) -> Iterator[Database]:
    from langchain_community.vectorstores import LanceDB

    store = LanceDB(uri=str(folder / "lance"), embedding=embeddings, table_name=NAME, distance="cosine", mode="append")
    yield LangChain(store, lambda module: {"filter": f"metadata.module = '{module}'", "prefilter": True})


@contextlib.contextmanager
def langchain_milvus(folder: Path, embeddings: Any, **_: Any) -> Iterator[Database]:
    from langchain_milvus import Milvus
    from pymilvus import connections

    uri = str(folder / "milvus.db")

    class Connected(Milvus):
        """langchain-milvus 0.3 looks its connection up under a name that pymilvus, from 2.6.10 on, does not register.

        0.4 is right with pymilvus 3, which LlamaIndex's store does not take.
        """

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "alias":
                connections.connect(value, uri=uri)
            super().__setattr__(name, value)

    store = Connected(
        embeddings,
        collection_name=NAME,
        connection_args={"uri": uri},
        index_params={"index_type": "FLAT", "metric_type": "COSINE"},
        auto_id=False,
    )
    yield LangChain(store, lambda module: {"expr": f'module == "{module}"'})
    connections.disconnect(store.alias)
    store.client.close()


@contextlib.contextmanager
def langchain_qdrant(folder: Path, embeddings: Any, dimension: int, **_: Any) -> Iterator[Database]:
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder / "qdrant"))
    if not client.collection_exists(NAME):
        client.create_collection(NAME, models.VectorParams(size=dimension, distance=models.Distance.COSINE))
    store = QdrantVectorStore(client, NAME, embeddings)

    def where(module: str) -> dict[str, Any]:
        condition = models.FieldCondition(key="metadata.module", match=models.MatchValue(value=module))
        return {"filter": models.Filter(must=[condition])}

    yield LangChain(store, where)
    client.close()


# -- LlamaIndex --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def llama_index_ours(folder: Path, embedding: Any, **_: Any) -> Iterator[Database]:
    from llama_index_llm2vec import FaissVectorStore

    store = FaissVectorStore(path=folder / "store")
    yield LlamaIndex(store, embedding)
    store.close()


@contextlib.contextmanager
def llama_index_pgvector(folder: Path, embedding: Any, dimension: int, postgres: str) -> Iterator[Database]:
    from llama_index.vector_stores.postgres import PGVectorStore

    store = PGVectorStore.from_params(
        connection_string=postgres.replace("postgresql:", "postgresql+psycopg2:"),
        async_connection_string=postgres.replace("postgresql:", "postgresql+psycopg:"),
        table_name=f"{NAME}_llama_index",
        embed_dim=dimension,
    )
    yield LlamaIndex(store, embedding)
    store._engine.dispose()


@contextlib.contextmanager
def llama_index_chroma(folder: Path, embedding: Any, **_: Any) -> Iterator[Database]:
    from llama_index.vector_stores.chroma import ChromaVectorStore

    collection = _chroma(folder).get_or_create_collection(NAME, configuration={"hnsw": {"space": "cosine"}})
    yield LlamaIndex(ChromaVectorStore(chroma_collection=collection), embedding)


@contextlib.contextmanager
def llama_index_lancedb(folder: Path, embedding: Any, **_: Any) -> Iterator[Database]:
    from llama_index.vector_stores.lancedb import LanceDBVectorStore

    mode = "append" if (folder / "lance").exists() else "create"
    store = LanceDBVectorStore(uri=str(folder / "lance"), table_name=NAME, mode=mode, query_type="vector")
    yield LlamaIndexLanceDB(store, embedding)


@contextlib.contextmanager
def llama_index_milvus(folder: Path, embedding: Any, dimension: int, **_: Any) -> Iterator[Database]:
    from llama_index.vector_stores.milvus import MilvusVectorStore

    store = MilvusVectorStore(
        uri=str(folder / "milvus.db"),
        collection_name=NAME,
        dim=dimension,
        similarity_metric="COSINE",
        index_config={"index_type": "FLAT"},
        overwrite=False,
    )
    yield LlamaIndex(store, embedding)
    store.client.close()


@contextlib.contextmanager
def llama_index_qdrant(folder: Path, embedding: Any, **_: Any) -> Iterator[Database]:
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder / "qdrant"))
    yield LlamaIndex(QdrantVectorStore(NAME, client=client), embedding)
    client.close()


def _chroma(folder: Path) -> Any:
    import chromadb

    return chromadb.PersistentClient(str(folder / "chroma"), chromadb.Settings(anonymized_telemetry=False))


STORES = {
    f"{framework}-{database}": globals()[f"{framework.replace('-', '_')}_{database}"]
    for framework in ("langchain", "llama-index")
    for database in ("ours", "pgvector", "chroma", "lancedb", "milvus", "qdrant")
}
