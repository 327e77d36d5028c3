"""The clients that people have talk to the server as it is: OpenAI's, LangChain's and LlamaIndex's."""

from __future__ import annotations

import numpy as np
import pytest
from databases.running import running
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding
from openai import BadRequestError, NotFoundError, OpenAI

from st_llm2vec.serving import create_app

TEXTS = ["Bears hibernate in winter.", "The central bank raised its rates.", "naïve café 编码器"]
KEY = "a-secret"


@pytest.fixture(scope="module")
def url(encoder):
    """A server on the loopback interface."""
    with running(create_app(encoder, "tiny", api_key=KEY)) as address:
        yield f"{address}/v1"


def test_openai(url, encoder):
    client = OpenAI(base_url=url, api_key=KEY)
    expected = encoder.encode(TEXTS)
    for encoding in ("float", "base64"):
        found = client.embeddings.create(input=TEXTS, model="tiny", encoding_format=encoding)
        vectors = np.array([row.embedding for row in found.data])
        if encoding == "float":
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
    found = client.embeddings.create(input=TEXTS, model="tiny", dimensions=32)  # asks for base64 by itself
    np.testing.assert_allclose([row.embedding for row in found.data], expected[:, :32], atol=1e-5)
    assert {model.id for model in client.models.list()} == {"tiny", "tiny:query", "tiny:document"}
    assert client.models.retrieve("tiny:query").id == "tiny:query"
    with pytest.raises(NotFoundError, match="model must be 'tiny'"):
        client.models.retrieve("gpt-4")
    with pytest.raises(BadRequestError, match="Token ids are not taken"):
        client.embeddings.create(input=[[1, 2, 3]], model="tiny")


def test_langchain(url, encoder):
    # check_embedding_ctx_length=False sends texts; the default sends OpenAI's own token ids
    embeddings = OpenAIEmbeddings(base_url=url, api_key=KEY, model="tiny", check_embedding_ctx_length=False)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), encoder.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), encoder.encode(TEXTS[0]), atol=1e-5)


def test_llama_index(url, encoder):
    embedding = OpenAIEmbedding(api_base=url, api_key=KEY, model_name="tiny")
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), encoder.encode(TEXTS), atol=1e-5)
