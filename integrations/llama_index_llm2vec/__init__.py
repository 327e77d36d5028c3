"""LlamaIndex with LLM2Vec: embeddings that keep the model's prompts, and a vector store that filters and deletes.

from llama_index.core import VectorStoreIndex
from llama_index_llm2vec import FaissVectorStore, LLM2VecEmbedding

index = VectorStoreIndex.from_vector_store(FaissVectorStore(path="my-store"), LLM2VecEmbedding("llm2vec-tiny"))
index.insert_nodes(nodes)
index.as_retriever(similarity_top_k=3).retrieve("Who hibernates?")

embeddings.py       LLM2VecEmbedding, in the place of HuggingFaceEmbedding
vector_stores.py    FaissVectorStore over faiss_llm2vec.FaissStore
filters.py          MetadataFilters as `where`
"""

from __future__ import annotations

from st_llm2vec.errors import MissingExtraError

try:
    import faiss  # noqa: F401
    import llama_index.core  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        f'llama_index_llm2vec needs {error.name}. Install it with: pip install "st-llm2vec[llama-index]"'
    ) from error

from llama_index_llm2vec.embeddings import LLM2VecEmbedding
from llama_index_llm2vec.vector_stores import FaissVectorStore

__all__ = ["FaissVectorStore", "LLM2VecEmbedding"]
