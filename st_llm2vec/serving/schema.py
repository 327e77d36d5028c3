"""What goes in and out, in OpenAI's schema; errors included."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException

from ..errors import LLM2VecError
from .batcher import BusyError

RETRY_AFTER = "1"  # seconds


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """An answer other than 200, in OpenAI's schema."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def response(self) -> JSONResponse:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        content = {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.status == 503:
            headers["Retry-After"] = RETRY_AFTER
        return JSONResponse(content, self.status, headers)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_whole)  # 8.0 is a whole number in JSON, and true is none


class EmbeddingRequest(BaseModel):
    """The body of /v1/embeddings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str | list[str] = Field(description="One text, or a list of texts. Token ids are not taken.")
    model: str = Field(description="The served name, or that name with :query, :document or another prompt's name.")
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1), _WHOLE] | None = Field(
        None, description="Keep the first so many numbers of each vector."
    )
    prompt_name: str | None = Field(None, description="query, document, or another of the model's prompts.")
    late_chunking: bool = Field(
        False,
        description="The texts are the chunks of one document, in order: each is read together with those around it.",
    )
    user: str | None = Field(None, description="Taken for compatibility; not used.")


class SearchRequest(BaseModel):
    """The body of /search."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str | list[str]
    k: Annotated[int, Field(ge=1, le=1000), _WHOLE] = 10
    where: dict[str, Any] | None = Field(None, description="Filter on the metadata, as FaissStore.search takes it.")


class Embedding(BaseModel):
    """A vector: numbers, or the base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The answer of /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ErrorAnswer(BaseModel):
    """The answer where a request is refused, or fails."""

    class Error(BaseModel):
        message: str
        type: str
        param: str | None
        code: str | None

    error: Error


def describe(app: FastAPI, *, texts: int, characters: int, names: list[str], width: int) -> None:
    """Say in the OpenAPI description what this server allows, once all its endpoints are there.

    Args:
        app: The application.
        texts: Inputs of a request at most.
        characters: Of an input at most.
        names: What `model` may be.
        width: Numbers of a vector.
    """
    whole = app.openapi()  # it is kept
    request = whole["components"]["schemas"]["EmbeddingRequest"]["properties"]
    text, several = request["input"]["anyOf"]
    text["maxLength"] = characters
    several |= {"minItems": 1, "maxItems": texts, "items": text}
    request["model"]["enum"] = names
    request["dimensions"]["anyOf"][0]["maximum"] = width
    request["prompt_name"]["anyOf"][0]["enum"] = [name.removeprefix(f"{names[0]}:") for name in names[1:]]
    for path in whole["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # FastAPI's, which are 400 here


def refuse_in_schema(app: FastAPI) -> None:
    """Every error in OpenAI's schema; none shows more than its message."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return refusal.response()

    @app.exception_handler(BusyError)
    async def busy(_: Request, __: BusyError) -> Response:
        return Refusal(503, "Too much is waiting. Try again in a second.", code="busy").response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            said = f"The body is not valid JSON ({first['ctx']['error']}, at character {first['loc'][-1]})."
            return Refusal(400, said).response()
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "str", "list[str]"))
        given = first.get("input")
        tokens = isinstance(given, int) or (isinstance(given, list) and given and isinstance(given[0], int | list))
        hint = " Token ids are not taken: send the text." if where.startswith("input") and tokens else ""
        if not where:  # as curl's -d sends it
            hint = " Send JSON, with the header Content-Type: application/json."
        return Refusal(400, f"{where or 'body'}: {first['msg']}.{hint}", where or None).response()

    @app.exception_handler(HTTPException)
    async def missing(_: Request, error: HTTPException) -> Response:
        said = str(error.detail)
        if error.status_code == 400:  # FastAPI's own: "There was an error parsing the body"
            said += ": send JSON in UTF-8, not compressed."
        answer = Refusal(error.status_code, said).response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(LLM2VecError)
    async def ours(_: Request, error: LLM2VecError) -> Response:
        return Refusal(400, str(error)).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return Refusal(500, "The encoder failed; the server's log says how.").response()
