"""LangChain with LLM2Vec: embeddings that keep the model's prompts, and a vector store whose changes are durable.

from langchain_llm2vec import FaissVectorStore, LLM2VecEmbeddings

store = FaissVectorStore(embedding=LLM2VecEmbeddings("llm2vec-tiny"), path="my-store")
store.add_texts(["Bears hibernate.", "Rates rose again."], [{"topic": "animals"}, {"topic": "money"}])
retriever = store.as_retriever(search_kwargs={"k": 1, "filter": {"topic": "animals"}})

embeddings.py     LLM2VecEmbeddings, in the place of HuggingFaceEmbeddings
vectorstores.py   FaissVectorStore over faiss_llm2vec.FaissStore, for any LangChain embeddings
"""

from __future__ import annotations

from st_llm2vec.errors import MissingExtraError

try:
    import faiss  # noqa: F401
    import langchain_core  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        f'langchain_llm2vec needs {error.name}. Install it with: pip install "st-llm2vec[langchain]"'
    ) from error

from langchain_llm2vec.embeddings import LLM2VecEmbeddings
from langchain_llm2vec.vectorstores import FaissVectorStore

__all__ = ["FaissVectorStore", "LLM2VecEmbeddings"]
