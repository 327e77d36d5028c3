"""LlamaIndex embeddings backed by an LLM2Vec model, or by any encoder of queries and documents."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr

from llama_index_llm2vec.cache import CacheSection
from st_llm2vec.encoders import Pool, open_encoder
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.types import Encoder


class LLM2VecEmbedding(BaseEmbedding):  # type: ignore[misc]
    """Vectors of texts as the encoder gives them; takes the arguments of `HuggingFaceEmbedding`.

    Queries go through `encode_query` and texts through `encode_document`, so that each gets the prompt that is saved
    in the model.

    Example:
        >>> embedding = LLM2VecEmbedding("llm2vec-tiny")  # Settings.embed_model = embedding
        >>> len(embedding.get_query_embedding("What do animals do in winter?"))
        256

    Args:
        model_name: a name for `st_llm2vec.load`; or, in its place, an encoder such as a `SentenceTransformer`.
        max_length: tokens at most, where `model_name` is a name; default: what the model says.
        query_instruction, text_instruction: prompts to use instead of those in the model.
        normalize: give vectors unit length.
        parallel_process: encode texts in worker processes (on `target_devices`), which start once and run until
            `close`.
        embeddings_cache: can be shared: each model has a section for queries and one for texts.
        kwargs: other fields of `BaseEmbedding`; the rest, with `cache_folder`, `trust_remote_code` and `device`, are
            arguments of `st_llm2vec.load`, or of `SentenceTransformer` if it can follow them; others raise.
    """

    max_length: int | None = Field(default=None, description="Maximum length of input.", gt=0)
    normalize: bool = Field(default=True, description="Normalize embeddings or not.")
    query_instruction: str | None = Field(default=None, description="Instruction to prepend to query text.")
    text_instruction: str | None = Field(default=None, description="Instruction to prepend to text.")
    show_progress_bar: bool = Field(default=False, description="Whether to show a progress bar.")

    _encoder: Any = PrivateAttr()
    _parallel_process: bool = PrivateAttr()
    _pool: Pool = PrivateAttr()

    def __init__(
        self,
        model_name: str | Encoder = "llm2vec-tiny",
        *,
        max_length: int | None = None,
        embed_batch_size: int = 32,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        device: str | None = None,
        parallel_process: bool = False,
        target_devices: list[str] | None = None,
        embeddings_cache: Any = None,
        **kwargs: Any,
    ) -> None:
        fields = {name: kwargs.pop(name) for name in list(kwargs) if name in type(self).model_fields}
        fields = {name: value for name, value in fields.items() if value is not None}
        options = {
            "cache_folder": cache_folder,
            "device": device,
            "trust_remote_code": trust_remote_code or None,
            "max_seq_length": max_length,
        }
        options = {name: value for name, value in options.items() if value is not None}
        if clash := sorted(options.keys() & kwargs.keys()):
            raise InvalidInputError(f"{', '.join(clash)} was given twice, as max_length is max_seq_length. Give one.")
        encoder: Any = open_encoder(model_name, kwargs | options, argument="model_name")
        name = model_name if isinstance(model_name, str) else getattr(model_name, "name_or_path", None)
        super().__init__(
            model_name=name or type(model_name).__name__,
            max_length=getattr(encoder, "max_seq_length", None),
            embed_batch_size=embed_batch_size,
            embeddings_cache=embeddings_cache,
            **fields,
        )
        self._encoder, self._parallel_process, self._pool = encoder, parallel_process, Pool(encoder, target_devices)
        if embeddings_cache is not None:
            self.embeddings_cache = CacheSection(embeddings_cache, self._section_name("text", self.text_instruction))

    @classmethod
    def class_name(cls) -> str:
        return "LLM2VecEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        options = self._options(self.text_instruction)
        encode = self._pool.documents if self._parallel_process else self._encoder.encode_document
        return encode(texts, **options).tolist()  # type: ignore[no-any-return]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        options = self._options(self.query_instruction)
        return self._encoder.encode_query([query], **options)[0].tolist()  # type: ignore[no-any-return]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def get_query_embedding(self, query: str) -> list[float]:
        """The vector of a query; a cache is asked for queries only."""
        return super(LLM2VecEmbedding, self._for_queries()).get_query_embedding(query)  # type: ignore[no-any-return]

    async def aget_query_embedding(self, query: str) -> list[float]:
        """`get_query_embedding` in a thread, so that the event loop goes on."""
        return await super(LLM2VecEmbedding, self._for_queries()).aget_query_embedding(query)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the worker processes of `parallel_process`; so does the end of this object or of Python."""
        self._pool.close()

    def _options(self, prompt: str | None) -> dict[str, Any]:
        options = {
            "batch_size": self.embed_batch_size,
            "normalize_embeddings": self.normalize,
            "show_progress_bar": self.show_progress_bar,
        }
        return options if prompt is None else {**options, "prompt": prompt}

    def _for_queries(self) -> LLM2VecEmbedding:
        """This object, with the other section of its cache."""
        if self.embeddings_cache is None:
            return self
        cache = getattr(self.embeddings_cache, "cache", self.embeddings_cache)
        section = CacheSection(cache, self._section_name("query", self.query_instruction))
        twin: LLM2VecEmbedding = self.model_copy(update={"embeddings_cache": section})
        return twin

    def _section_name(self, kind: str, prompt: str | None) -> str:
        fingerprint = getattr(self._encoder, "fingerprint", type(self._encoder).__name__)
        fingerprint = fingerprint() if callable(fingerprint) else fingerprint
        setting = (fingerprint, self.model_name, self.max_length, self.normalize, prompt)
        return f"{kind}_{hashlib.sha256(repr(setting).encode()).hexdigest()[:16]}"
