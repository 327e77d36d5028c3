"""LangChain embeddings backed by an LLM2Vec model, or by any encoder of queries and documents."""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from st_llm2vec.encoders import Pool, open_encoder
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.types import Encoder


class LLM2VecEmbeddings(BaseModel, Embeddings):
    """Vectors of texts, bit for bit as the encoder gives them; takes the arguments of `HuggingFaceEmbeddings`.

    Queries go through `encode_query` and documents through `encode_document`, so that each gets the prompt that is
    saved in the model. Texts are passed on as they are.

    Example:
        >>> embeddings = LLM2VecEmbeddings("llm2vec-tiny", encode_kwargs={"batch_size": 64})
        >>> len(embeddings.embed_query("What do animals do in winter?"))
        256
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)

    model_name: str = Field(default="llm2vec-tiny", alias="model")
    """A name for `st_llm2vec.load`; or, in its place, an encoder such as a `SentenceTransformer`."""
    cache_folder: str | None = None
    """Where downloads are kept."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `st_llm2vec.load`, and those of `SentenceTransformer` that it can follow; others raise."""
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `encode_document`, such as `batch_size` or `normalize_embeddings`."""
    query_encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `encode_query`; as in `HuggingFaceEmbeddings`, `encode_kwargs` if there are none."""
    multi_process: bool = False
    """Encode documents in worker processes, one per GPU, which start once and run until `close`."""
    show_progress: bool = False

    _encoder: Any = PrivateAttr()
    _pool: Pool = PrivateAttr()

    def __init__(self, model: str | Encoder | None = None, **kwargs: Any) -> None:
        if model is None:
            model = kwargs.pop("model_name", None)
        encoder = None if model is None or isinstance(model, str) else model
        name = model if isinstance(model, str) else getattr(encoder, "name_or_path", None) or type(encoder).__name__
        super().__init__(**kwargs if model is None else {"model": str(name), **kwargs})
        cache = {} if self.cache_folder is None else {"cache_folder": self.cache_folder}
        if clash := cache.keys() & self.model_kwargs.keys():
            raise InvalidInputError(f"{', '.join(clash)} was given twice, also in model_kwargs. Give it once.")
        self._encoder = open_encoder(self.model_name if encoder is None else encoder, {**self.model_kwargs, **cache})
        self._pool = Pool(self._encoder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per document."""
        options = {"show_progress_bar": self.show_progress, **self.encode_kwargs}
        encode = self._pool.documents if self.multi_process else self._encoder.encode_document
        return encode(texts, **options).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        options = {"show_progress_bar": self.show_progress, **(self.query_encode_kwargs or self.encode_kwargs)}
        return self._encoder.encode_query([text], **options)[0].tolist()  # type: ignore[no-any-return]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.embed_query, text)

    def close(self) -> None:
        """Ends the worker processes of `multi_process`; so does the end of this object or of Python."""
        self._pool.close()

    @property
    def fingerprint(self) -> str | None:
        """What tells the model from others, if it can say so; vector stores record it."""
        fingerprint = getattr(self._encoder, "fingerprint", None)
        return fingerprint() if callable(fingerprint) else fingerprint
