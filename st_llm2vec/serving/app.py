"""The endpoints: /v1/embeddings and /v1/models in OpenAI's schema, /search, /health and /metrics.

OpenAI's own clients, LangChain's `OpenAIEmbeddings` and LlamaIndex's `OpenAIEmbedding` work with it as they are. The
prompt of a text is chosen by a suffix of the model's name ("my-encoder:query") or by the field `prompt_name`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from .. import __version__
from ..backend.deciding import PREPACK_TOKENS, expect
from ..errors import InvalidInputError, StoreError
from ..late_chunking import Chunk, encode_chunks
from ..model import LLM2Vec
from .batcher import Batcher, Encoded
from .metrics import Metrics
from .middleware import Authorized, Watched, WholeBody
from .schema import (
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorAnswer,
    Refusal,
    SearchRequest,
    describe,
    refuse_in_schema,
)

# The tasks of `encode_query` and `encode_document`, and the prompts that these look for, in their order.
TASKS = {"query": ("query",), "document": ("document", "passage", "corpus")}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "model": ErrorAnswer}
    for status, description in {
        400: "Not a valid request",
        401: "The API key is missing or wrong",
        404: "Another model is served",
        413: "The body is too large",
        500: "The encoder failed",
        503: "Too much is waiting, or the server is shutting down",
    }.items()
}
# Says so in the description; `Authorized` asks for it.
_BEARER = HTTPBearer(auto_error=False, description="Asked for where the server has a key.")
_PUBLIC = ("/health", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc")
CHARACTERS_OF_A_TOKEN = 4  # about; usage of late chunking is told so
# Slow things happen before the server is ready: two texts, so that they are packed.
WARM_UP = ["a", "A text of some length, with all that the first texts have to wait for."]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and what may wait.

    Attributes:
        texts: Inputs of one request (OpenAI's own limit).
        characters: Of one input; what the model does not read is cut by tokens, as `encode` does.
        body_bytes: Of one request's body.
        waiting_tokens: Of all requests; beyond, they are answered with 503.
    """

    texts: int = 2048
    characters: int = 1_000_000
    body_bytes: int = 32 * 2**20
    waiting_tokens: int = 1_000_000


def create_app(
    model: LLM2Vec, name: str, *, store: Any = None, api_key: str | None = None, limits: Limits | None = None
) -> FastAPI:
    """Serve one encoder, and answer questions from one store.

    What is slow (proving that packing is exact, prepacking, compiling) happens here, before the server says that it is
    ready.

    Args:
        model: The encoder.
        name: What clients call it.
        store: An open `FaissStore` of this encoder, for /search.
        api_key: Clients send it as `Authorization: Bearer KEY`; None lets everybody in.
        limits: What one request may ask for.

    Returns:
        An ASGI application. Shutting it down finishes what was taken on.

    Raises:
        InvalidInputError: The key is empty.
    """
    if api_key == "":
        raise InvalidInputError("api_key is empty, and would let everybody in. Give a key, or None.")
    expect(model.eval()[0], PREPACK_TOKENS)
    model.encode(WARM_UP, show_progress_bar=False)
    server = _Server(model, name, store, limits or Limits())
    app = FastAPI(title="st-llm2vec", version=__version__, lifespan=server.lifespan)
    app.add_middleware(WholeBody, limit=server.limits.body_bytes)  # the last one is the first to see a request
    if api_key is not None:
        app.add_middleware(Authorized, key=api_key, public=_PUBLIC)
    app.add_middleware(Watched, metrics=server.metrics)
    refuse_in_schema(app)
    secured: dict[str, Any] = {"dependencies": [Depends(_BEARER)], "responses": REFUSALS}
    app.add_api_route("/health", server.health, methods=["GET"])
    app.add_api_route("/metrics", server.show_metrics, methods=["GET"], response_class=PlainTextResponse, **secured)
    app.add_api_route("/v1/models", server.models, methods=["GET"], **secured)
    app.add_api_route("/v1/models/{name:path}", server.one_model, methods=["GET"], **secured)
    app.add_api_route(
        "/v1/embeddings", server.embeddings, methods=["POST"], response_model=EmbeddingResponse, **secured
    )
    if store is not None:
        app.add_api_route("/search", server.search, methods=["POST"], **secured)
    describe(
        app, texts=server.limits.texts, characters=server.limits.characters, names=server.names, width=server.width
    )
    return app


@dataclass
class _Server:
    """One encoder and what its endpoints share."""

    model: LLM2Vec
    name: str
    store: Any
    limits: Limits
    batcher: Batcher | None = None
    metrics: Metrics = field(init=False)
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.metrics = Metrics(lambda: self.batcher.waiting_tokens if self.batcher else 0)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.batcher = Batcher(
            self.model, max_waiting_tokens=self.limits.waiting_tokens, on_batch=self.metrics.on_batch
        )
        try:
            yield
        finally:
            await asyncio.to_thread(self.batcher.close)

    async def health(self) -> dict[str, str]:
        """Whether texts are taken."""
        return {"status": "ready", "model": self.name}

    async def show_metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @property
    def names(self) -> list[str]:
        """The served name, alone and with each prompt."""
        return [self.name, *(f"{self.name}:{prompt}" for prompt in dict.fromkeys([*TASKS, *self.model.prompts]))]

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.model.get_embedding_dimension() or 0

    async def models(self) -> dict[str, Any]:
        """The served name, alone and with each prompt."""
        return {"object": "list", "data": [self._described(name) for name in self.names]}

    async def one_model(self, name: str) -> dict[str, Any]:
        """One of the served names."""
        if name not in self.names:
            raise self._unknown(name)
        return self._described(name)

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.started, "owned_by": "st-llm2vec"}

    def _unknown(self, name: str) -> Refusal:
        return Refusal(404, f"model must be {self.name!r}, got {name!r}.", "model", "model_not_found")

    async def embeddings(self, body: EmbeddingRequest) -> Response:
        """Vectors of one text or of a list of texts."""
        asked, suffix = body.model[: len(self.name)], body.model[len(self.name) :]
        if asked != self.name or not (suffix == "" or (suffix[0] == ":" and suffix[1:])):
            raise self._unknown(body.model)
        if body.dimensions and body.dimensions > self.width:
            raise Refusal(400, f"dimensions must be in [1, {self.width}], got {body.dimensions}.", "dimensions")
        suffix = suffix.removeprefix(":")  # a prompt's name may hold a colon, too
        if suffix and body.prompt_name not in (None, suffix):
            message = f"prompt_name={body.prompt_name!r} and model={body.model!r} ask for two prompts."
            raise Refusal(400, message, "prompt_name")
        texts = [body.input] if isinstance(body.input, str) else body.input
        encode = self.encode_late if body.late_chunking else self.encode
        found = await encode(texts, (suffix or None) if body.prompt_name is None else body.prompt_name)
        vectors = found.vectors[:, : body.dimensions]
        return await asyncio.to_thread(_answer, vectors, body.encoding_format or "float", body.model, found.tokens)

    async def search(self, body: SearchRequest) -> dict[str, Any]:
        """The best documents of the store for one question or for a list of questions."""
        questions = [body.query] if isinstance(body.query, str) else body.query
        if blank := [question for question in questions if not question.strip()]:
            raise Refusal(400, f"query must have text to search for, got {blank[0]!r:.60}.", "query")
        found = await self.encode(questions, "query", "query")
        try:
            hits = await asyncio.to_thread(self._newest, found.vectors, body.k, body.where)
        except InvalidInputError as error:
            raise Refusal(400, str(error), "where") from error
        except StoreError as error:
            raise Refusal(500, str(error)) from error
        answers = [[hit.as_dict() for hit in each] for each in hits]
        return {"hits": answers[0] if isinstance(body.query, str) else answers}

    def _newest(self, vectors: np.ndarray, k: int, where: dict[str, Any] | None) -> Any:
        """Hits in what the store holds now, whoever has changed it since."""
        self.store.refresh()
        return self.store.search_batch(vectors, k, where=where)

    async def encode(self, texts: list[str], prompt_name: str | None, param: str = "input") -> Encoded:
        self.require_few(texts, param)
        prompt, task = _prompt(self.model, prompt_name)
        assert self.batcher is not None  # requests come after the start
        return await self.batcher.encode(texts, prompt=prompt, task=task)

    async def encode_late(self, texts: list[str], prompt_name: str | None) -> Encoded:
        """Chunks of one document, which is these texts with a blank between two."""
        self.require_few(texts)
        prompt, _ = _prompt(self.model, prompt_name)
        document = " ".join(texts)
        stops = list(accumulate(len(text) + 1 for text in texts))
        chunks = [Chunk(document, stop - 1 - len(text), stop - 1) for text, stop in zip(texts, stops, strict=True)]
        tokens = len(document) // CHARACTERS_OF_A_TOKEN + 1
        assert self.batcher is not None
        try:
            vectors = await self.batcher.run(lambda: encode_chunks(self.model, chunks, prompt=prompt or ""), tokens)
        except InvalidInputError as error:
            param = "input" if str(error).startswith("chunks[") else "late_chunking"
            raise Refusal(400, str(error).replace("chunks[", "input[", 1), param) from error
        return Encoded(vectors, tokens)

    def require_few(self, texts: list[str], param: str = "input") -> None:
        """Refuse what is beyond the limits."""
        if not 1 <= len(texts) <= self.limits.texts:
            raise Refusal(400, f"{param} must hold 1 to {self.limits.texts} texts, got {len(texts)}.", param)
        if long := [i for i, text in enumerate(texts) if len(text) > self.limits.characters]:
            message = f"{param}[{long[0]}] must have at most {self.limits.characters} characters."
            raise Refusal(400, message, param)


def _prompt(model: LLM2Vec, name: str | None) -> tuple[str | None, str | None]:
    """(prompt, task) of a prompt's name: as `encode_query` and `encode_document`, or as `encode(prompt_name=)`."""
    default = model.default_prompt_name or ""
    if name in TASKS:
        found = next((prompt for prompt in TASKS[name] if prompt in model.prompts), default)
        return model.prompts.get(found) or None, name
    if name is None:
        return model.prompts.get(default) or None, None
    if name not in model.prompts:
        known = ", ".join(dict.fromkeys([*TASKS, *model.prompts]))
        raise Refusal(400, f"prompt_name must be one of {known}, got {name!r}.", "prompt_name")
    return model.prompts[name] or None, None


def _answer(vectors: np.ndarray, encoding: str, model: str, tokens: int) -> Response:
    if encoding == "base64":
        values: list[Any] = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    else:
        values = vectors.tolist()
    data = [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(values)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Response(
        json.dumps({"object": "list", "data": data, "model": model, "usage": usage}), media_type="application/json"
    )
