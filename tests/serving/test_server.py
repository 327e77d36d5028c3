"""The server answers what `encode` answers, in OpenAI's schema, and refuses what it should."""

from __future__ import annotations

import asyncio
import base64
import copy
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import st_llm2vec
from faiss_llm2vec import FaissStore
from st_llm2vec.cli.serve import serve
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.late_chunking import Chunk, encode_chunks
from st_llm2vec.serving import Batcher, BusyError, Limits, create_app
from st_llm2vec.serving.middleware import WholeBody

TEXTS = ["Bears hibernate in winter.", "The bank raised its rates.", "", "a " * 700, "naïve café 编码器"]
KEY = "a-secret"
PATIENCE = 300  # seconds


@pytest.fixture(scope="module")
def model() -> st_llm2vec.LLM2Vec:
    model = st_llm2vec.load("llm2vec-tiny")
    model.prompts = {"query": "search: ", "document": "", "topic": "topic of: "}
    return model


@pytest.fixture(scope="module")
def client(model: st_llm2vec.LLM2Vec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path: Path = tmp_path_factory.mktemp("server") / "store"
    with FaissStore.create(path, model) as store:
        store.add(TEXTS[:2], ids=["bears", "bank"], metadata=[{"topic": "animals"}, {"topic": "money"}])
        app = create_app(
            model, "tiny", store=store, api_key=KEY, limits=Limits(texts=8, characters=2000, body_bytes=20_000)
        )
        with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
            yield client


def embeddings(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/embeddings", json={"model": "tiny", **body})
    assert response.status_code == 200, response.text
    return response.json()


def vectors(client: TestClient, **body: Any) -> np.ndarray:
    return np.array([row["embedding"] for row in embeddings(client, **body)["data"]])


def test_vectors_are_those_of_encode(client: TestClient, model: st_llm2vec.LLM2Vec) -> None:
    found = embeddings(client, input=TEXTS)
    assert [row["index"] for row in found["data"]] == list(range(len(TEXTS)))
    expected = model.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose([row["embedding"] for row in found["data"]], expected, atol=1e-5)
    tokens = sum(len(text.input_ids) for text in model[0].tokenized(TEXTS))
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_null_is_what_is_not_said(client: TestClient) -> None:
    nothing = dict.fromkeys(("encoding_format", "dimensions", "prompt_name", "user"))
    np.testing.assert_array_equal(vectors(client, input=TEXTS[0], **nothing), vectors(client, input=TEXTS[0]))


def test_a_model_by_its_name(client: TestClient) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [client.get(f"/v1/models/{row['id']}").json() for row in listed] == listed
    for name in ("gpt", "tiny:", "a/b"):
        response = client.get(f"/v1/models/{name}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_a_single_text_is_a_list_of_one(client: TestClient, model: st_llm2vec.LLM2Vec) -> None:
    np.testing.assert_allclose(vectors(client, input=TEXTS[0])[0], model.encode(TEXTS[0]), atol=1e-5)


def test_base64_and_dimensions(client: TestClient, model: st_llm2vec.LLM2Vec) -> None:
    (row,) = embeddings(client, input=TEXTS[0], encoding_format="base64", dimensions=8.0)["data"]
    found = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
    np.testing.assert_allclose(found, model.encode(TEXTS[0], truncate_dim=8), atol=1e-5)


def test_chunks_of_a_document_are_read_together(client: TestClient, model: st_llm2vec.LLM2Vec) -> None:
    document = " ".join(TEXTS[:2])
    chunks = [Chunk(document, 0, len(TEXTS[0])), Chunk(document, len(TEXTS[0]) + 1, len(document))]
    for name, prompt in (("tiny", ""), ("tiny:topic", model.prompts["topic"])):
        found = vectors(client, input=TEXTS[:2], late_chunking=True, model=name)
        np.testing.assert_allclose(found, encode_chunks(model, chunks, prompt=prompt), atol=1e-5)
    assert np.abs(found - vectors(client, input=TEXTS[:2], model=name)).max() > 1e-3
    for bad, message in [
        (["a", ""], "input[1] is '', characters 2 to 2"),
        (["a b", " \n ", "c"], "with no token, and so no vector."),
        ([""], "input[0] is ''"),
        (["a", "a " * 990], "input[1] must have 1 to "),
    ]:
        refused = client.post("/v1/embeddings", json={"model": "tiny", "input": bad, "late_chunking": True})
        assert refused.status_code == 400
        assert message in refused.json()["error"]["message"]
        assert refused.json()["error"]["param"] == "input"


@pytest.mark.parametrize("body", [{"model": "tiny:query"}, {"prompt_name": "query"}])
def test_the_prompt_is_chosen_by_suffix_or_field(
    client: TestClient, model: st_llm2vec.LLM2Vec, body: dict[str, Any]
) -> None:
    found = vectors(client, input=TEXTS[0], **body)[0]
    np.testing.assert_allclose(found, model.encode_query(TEXTS[0]), atol=1e-5)
    assert np.abs(found - model.encode(TEXTS[0])).max() > 1e-3
    topic = vectors(client, input=TEXTS[0], prompt_name="topic")[0]
    np.testing.assert_allclose(topic, model.encode(TEXTS[0], prompt_name="topic"), atol=1e-5)


def test_questions_are_encoded_as_queries(client: TestClient, model: st_llm2vec.LLM2Vec) -> None:
    question = "who sleeps when it is cold?"
    (hits,) = client.post("/search", json={"query": [question], "k": 2}).json()["hits"]
    documents = model.encode_document(TEXTS[:2], normalize_embeddings=True)
    expected = documents @ model.encode_query(question, normalize_embeddings=True)
    found = {hit["id"]: hit["score"] for hit in hits}
    np.testing.assert_allclose([found["bears"], found["bank"]], expected, atol=1e-5)
    assert np.abs(expected - documents @ model.encode_document(question, normalize_embeddings=True)).max() > 1e-3


def test_search_answers_from_the_store(client: TestClient) -> None:
    response = client.post("/search", json={"query": "who sleeps when it is cold?", "k": 1})
    assert [hit["id"] for hit in response.json()["hits"]] == ["bears"]
    filtered = client.post("/search", json={"query": ["sleep", "cold"], "where": {"topic": "money"}}).json()["hits"]
    assert [[hit["id"] for hit in hits] for hits in filtered] == [["bank"], ["bank"]]
    assert client.post("/search", json={"query": "a", "where": {"topic": {"$near": 1}}}).status_code == 400


def test_search_sees_what_others_have_changed(model: st_llm2vec.LLM2Vec, tmp_path: Path) -> None:
    with FaissStore.create(tmp_path / "store", model) as store:
        store.add(TEXTS[:1], ids=["old"])
    with FaissStore.open(tmp_path / "store", model) as served, TestClient(create_app(model, "tiny", store=served)) as c:

        def found() -> list[str]:
            return [hit["id"] for hit in c.post("/search", json={"query": "bears"}).json()["hits"]]

        assert found() == ["old"]
        with FaissStore.open(tmp_path / "store", model) as writer:
            writer.add(TEXTS[:1], ids=["new"])
            writer.delete(["old"])
            assert found() == ["new"]
            writer.compact()
            assert found() == ["new"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "query must have text"),
        (["a", " \n"], "query must have text to search for, got ' \\n'"),
        ([], "query must hold 1 to 8 texts, got 0"),
        (["a"] * 9, "query must hold 1 to 8"),
        ("a" * 2001, "query[0] must have at most"),
    ],
)
def test_a_question_must_have_text(client: TestClient, query: Any, said: str) -> None:
    response = client.post("/search", json={"query": query})
    assert response.status_code == 400
    error = response.json()["error"]
    assert said in error["message"]
    assert error["param"] == "query"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"model": "tiny", "input": "a"', "not valid JSON (Expecting ',' delimiter, at character 30)."),
        (b'{"model": "tiny", "input": "caf\xe9"}', "send JSON in UTF-8"),
        (gzip.compress(b'{"model": "tiny", "input": "a"}', mtime=0), "send JSON in UTF-8, not compressed"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_why(client: TestClient, content: bytes, said: str) -> None:
    response = client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]
    assert response.json()["error"]["param"] is None


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"input": [1, 2, 3]}, 400, "Token ids are not taken"),
        ({"input": [[1, 2], [3]]}, 400, "Token ids are not taken"),
        ({"input": []}, 400, "1 to 8"),
        ({"input": ["a"] * 9}, 400, "1 to 8"),
        ({"input": "a" * 2001}, 400, "2000 characters"),
        ({"input": "a", "model": "gpt"}, 404, "'tiny'"),
        ({"input": "a", "model": "tiny:"}, 404, "'tiny'"),
        ({"input": "a", "model": "tiny2"}, 404, "'tiny'"),
        ({"input": "a", "model": "tiny:nonsense"}, 400, "query, document, topic"),
        ({"input": "a", "model": "tiny:query", "prompt_name": "document"}, 400, "two prompts"),
        ({"input": "a", "prompt_name": ""}, 400, "query, document, topic"),
        ({"input": "a", "dimensions": 257}, 400, "[1, 256]"),
        ({"input": "a", "dimensions": True}, 400, "dimensions"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"input": "a", "nonsense": 1}, 400, "nonsense"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"input": None}, 400, "input"),
        ({}, 400, "input"),
    ],
)
def test_a_refusal_is_in_openais_schema(client: TestClient, body: dict[str, Any], status: int, word: str) -> None:
    response = client.post("/v1/embeddings", json={"model": "tiny", **body})
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert word in error["message"] or word in str(error["param"])


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded"])
def test_a_body_that_does_not_say_that_it_is_json_is_told_so(client: TestClient, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = client.post("/v1/embeddings", content=b'{"model": "tiny", "input": "a"}', headers=headers)
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_a_body_beyond_the_limit_is_refused_whether_or_not_it_says_so(client: TestClient) -> None:
    assert client.post("/v1/embeddings", content=b"x" * 20_001).status_code == 413
    unsized = client.post("/v1/embeddings", content=iter([b"x" * 15_000, b"x" * 15_000]))
    assert unsized.status_code == 413


def over_asgi(app: FastAPI, **request: Any) -> httpx.Response:
    """One request with the body in the pieces that it is given in; `TestClient` would join them."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            return await client.post("/v1/embeddings", headers={"Content-Type": "application/json"}, **request)

    return asyncio.run(send())


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def test_a_body_in_pieces_is_put_together_and_limited(model: st_llm2vec.LLM2Vec) -> None:
    app = create_app(model, "tiny", limits=Limits(body_bytes=1000))
    content = json.dumps({"model": "tiny", "input": TEXTS[:2]}).encode()
    response = over_asgi(app, content=pieces(content, 7))
    assert [row["index"] for row in response.json()["data"]] == [0, 1]
    assert over_asgi(app, content=pieces(content + b" " * 1000, 300)).status_code == 413


def test_too_much_at_once_is_asked_to_come_again(model: st_llm2vec.LLM2Vec) -> None:
    with TestClient(create_app(model, "tiny", limits=Limits(waiting_tokens=-1))) as client:
        response = client.post("/v1/embeddings", json={"model": "tiny", "input": "a"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["code"] == "busy"


def test_a_fault_of_ours_is_in_openais_schema(model: st_llm2vec.LLM2Vec) -> None:
    app = create_app(model, "tiny")
    hook = model[0].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("secret")))
    try:
        with TestClient(app, raise_server_exceptions=False) as client:
            response = client.post("/v1/embeddings", json={"model": "tiny", "input": "a"})
            assert 'status="500"} 1.0' in client.get("/metrics").text
    finally:
        hook.remove()
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text


def test_what_is_slow_is_done_before_the_server_is_there() -> None:
    fresh = st_llm2vec.load("llm2vec-tiny", device="cpu")
    create_app(fresh, "tiny")
    assert fresh[0].status["packed"]
    assert fresh[0].status["prepacked"].on is not None  # else it would come with the request that makes it 8,192 tokens


def test_the_key_is_compared_whole_whatever_is_given(
    model: st_llm2vec.LLM2Vec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hmac.compare_digest` takes the same time for every key of a length."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return given == key

    key = "ключ"  # as the bytes of UTF-8, which is what clients send
    monkeypatch.setattr("st_llm2vec.serving.middleware.hmac.compare_digest", compare)
    with TestClient(create_app(model, "tiny", api_key=key)) as client:
        for given, status in ((key, 200), (key[:-1], 401), ("", 401), ("a", 401)):
            headers = {"Authorization": f"Bearer {given}".encode()}
            assert client.get("/v1/models", headers=headers).status_code == status
    assert compared == [(given.encode(), key.encode()) for given in (key, key[:-1], "", "a")]


@pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1], KEY + "x", "ключ"])
def test_without_the_key_nothing_is_told(client: TestClient, key: str | None) -> None:
    headers = {"Authorization": "" if key is None else f"Bearer {key}".encode()}
    for method, path in (("POST", "/v1/embeddings"), ("POST", "/search"), ("GET", "/metrics"), ("GET", "/v1/models")):
        assert client.request(method, path, headers=headers).status_code == 401
    assert client.get("/health", headers=headers).json() == {"status": "ready", "model": "tiny"}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/search", "/health", "/nowhere"])
def test_the_key_is_asked_for_before_the_body_is_read(client: TestClient, path: str) -> None:
    sent: list[dict[str, Any]] = []

    async def never() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [(b"x", b"y")]}
    asyncio.run(asyncio.wait_for(client.app(scope, never, send), 20))
    assert sent[0]["status"] == 401
    assert json.loads(sent[1]["body"])["error"]["code"] == "invalid_api_key"


def test_metrics_count_texts_and_hold_no_path_from_outside(client: TestClient) -> None:
    embeddings(client, input=TEXTS[:2])
    client.get("/somewhere-else")
    shown = client.get("/metrics").text
    texts = next(float(line.split()[1]) for line in shown.splitlines() if line.startswith("llm2vec_texts_total"))
    assert texts >= 2
    assert "somewhere-else" not in shown


def test_many_callers_get_their_own_vectors_from_shared_batches(model: st_llm2vec.LLM2Vec) -> None:
    texts = [f"{word} {'and so on ' * (i % 7)}" for i, word in enumerate(TEXTS[0].split() * 16)]
    sizes: list[int] = []

    async def ask() -> list[np.ndarray]:
        batcher = Batcher(model, on_batch=lambda count, _: sizes.append(count))
        try:
            return [found.vectors[0] for found in await asyncio.gather(*(batcher.encode([text]) for text in texts))]
        finally:
            await asyncio.to_thread(batcher.close)

    found = asyncio.run(ask())
    np.testing.assert_allclose(found, model.encode(texts, show_progress_bar=False), atol=1e-5)
    assert sum(sizes) == len(texts)
    assert max(sizes) > 4


def test_a_large_request_does_not_hold_up_a_small_one(model: st_llm2vec.LLM2Vec) -> None:
    order: list[str] = []

    async def ask() -> None:
        batcher = Batcher(model)

        async def one(name: str, texts: list[str]) -> None:
            await batcher.encode(texts)
            order.append(name)

        large = asyncio.create_task(one("large", ["a text of a dozen words or so, to take some time"] * 3000))
        while not batcher.waiting_tokens:
            await asyncio.sleep(0.001)
        await one("small", ["a"])
        await large
        await asyncio.to_thread(batcher.close)

    asyncio.run(ask())
    assert order == ["small", "large"]


def test_what_is_too_much_is_refused_and_a_caller_that_left_costs_nothing(model: st_llm2vec.LLM2Vec) -> None:
    async def ask() -> None:
        seen: list[int] = []
        batcher = Batcher(model, max_waiting_tokens=100, on_batch=lambda count, _: seen.append(count))
        gone = asyncio.create_task(batcher.encode(["some words here"] * 4000))
        while not batcher.waiting_tokens:
            await asyncio.sleep(0.001)
        with pytest.raises(BusyError):
            await batcher.encode(["a"])
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await asyncio.to_thread(batcher.close)
        assert sum(seen) < 4000
        assert batcher.waiting_tokens == 0
        with pytest.raises(BusyError):
            await batcher.encode(["a"])

    asyncio.run(ask())


def test_a_fault_of_the_model_reaches_its_callers_and_the_server_goes_on(model: st_llm2vec.LLM2Vec) -> None:
    async def ask() -> None:
        batcher = Batcher(model)
        hook = model[0].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.encode(["a", "b"])
        hook.remove()
        assert (await batcher.encode(["a"])).vectors.shape == (1, 256)
        await asyncio.to_thread(batcher.close)

    asyncio.run(ask())


def test_prompts_and_dimensions_are_those_of_the_encoder(model: st_llm2vec.LLM2Vec) -> None:
    """Names of other prompts for documents, a default prompt, colons in names, `truncate_dim`."""
    other = copy.deepcopy(model)
    other.prompts = {"passage": "p: ", "task: search": "t: ", "x": "x: "}
    other.default_prompt_name, other.truncate_dim = "x", 16
    other[0].query_length, other[0].document_length = 12, 20  # of encode_query and encode_document alone
    with TestClient(create_app(other, "a:b")) as client:
        for name, expected in {
            "a:b": other.encode(TEXTS),
            "a:b:query": other.encode_query(TEXTS),
            "a:b:document": other.encode_document(TEXTS),
            "a:b:task: search": other.encode(TEXTS, prompt_name="task: search"),
        }.items():
            found = vectors(client, input=TEXTS, model=name)
            assert found.shape == (len(TEXTS), 16)
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
        assert client.post("/v1/embeddings", json={"input": "a", "model": "a:bc"}).status_code == 404


def test_half_a_surrogate_pair_is_the_callers_fault(client: TestClient) -> None:
    body = b'{"model": "tiny", "input": "a\\ud800b"}'
    response = client.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert "surrogate" in response.json()["error"]["message"]


def test_what_takes_longer_than_a_server_that_stops_may_wait_is_refused() -> None:
    sent: list[Any] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(PATIENCE)

    async def stop() -> None:
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.sleep(PATIENCE)

        async def send(message: Any) -> None:
            sent.append(message)

        request = asyncio.create_task(WholeBody(slow, 10)({"type": "http", "headers": []}, receive, send))
        await asyncio.sleep(0.01)
        request.cancel()  # as uvicorn does
        await request

    asyncio.run(stop())
    assert [message.get("status") for message in sent] == [503, None]
    assert b"shutting down" in sent[1]["body"]


def test_an_empty_key_lets_nobody_in(model: st_llm2vec.LLM2Vec, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="api_key is empty"):
        create_app(model, "tiny", api_key="")
    monkeypatch.setenv("ST_LLM2VEC_API_KEY", "")
    with pytest.raises(InvalidInputError, match="ST_LLM2VEC_API_KEY is empty"):
        serve("llm2vec-tiny")
