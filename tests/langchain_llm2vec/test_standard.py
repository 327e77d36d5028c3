"""LangChain's own test suites: nothing overridden, nothing expected to fail."""

from __future__ import annotations

import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, VectorStoreIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_llm2vec import FaissVectorStore, LLM2VecEmbeddings


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @pytest.fixture(autouse=True)
    def _encoder(self, make_encoder):
        type(self).embedding_model_params = {"model": make_encoder()}

    embeddings_class = LLM2VecEmbeddings


class TestEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _encoder(self, make_encoder):
        type(self).embedding_model_params = {"model": make_encoder()}

    embeddings_class = LLM2VecEmbeddings


class TestFaissVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path):
        store = FaissVectorStore(self.get_embeddings(), tmp_path / "store")
        yield store
        store.close()
