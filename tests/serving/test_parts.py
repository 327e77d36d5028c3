"""Parts of the server on their own: what is dropped when a client leaves, and what is still waiting afterwards."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

import st_llm2vec
from st_llm2vec.serving import take_address
from st_llm2vec.serving.batcher import Batcher
from st_llm2vec.serving.middleware import Authorized, WholeBody


async def test_the_work_of_a_client_that_leaves_is_ended() -> None:
    ended = asyncio.Event()

    async def for_ever(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive() -> Any:
        await asyncio.sleep(0)
        return messages.pop()

    app = WholeBody(for_ever, limit=100)
    answering = asyncio.ensure_future(app({"type": "http", "headers": []}, receive, None))  # type: ignore[arg-type]
    done, _ = await asyncio.wait([answering], timeout=20)
    assert done
    assert ended.is_set()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Transfer-Encoding: chunked", 401),
        ("Transfer-Encoding: chunked\r\nAuthorization: Bearer wrong", 401),
        ("Content-Length: 1000", 401),
        ("Transfer-Encoding: chunked\r\nAuthorization: bearer key", 413),
        ("Content-Length: 1000\r\nAuthorization: Bearer key", 413),
    ],
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/health", "/elsewhere"])
async def test_a_body_that_never_ends_is_refused_and_the_connection_with_it(
    headers: str, status: int, path: str
) -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    app = Authorized(WholeBody(never, limit=100), key="key", public=["/health"])
    with take_address("127.0.0.1", 0) as address:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
        serving = asyncio.ensure_future(server.serve(sockets=[address]))
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*address.getsockname())
        try:
            writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode())
            if "Bearer wrong" in headers or status == 413:  # else, not even the first bytes of the body come
                writer.write(b"65\r\n" + b"x" * 101 + b"\r\n")
            answer = await asyncio.wait_for(reader.read(), 20)  # up to its end: the connection is closed
        finally:
            writer.close()
            server.should_exit = True
            await serving
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in answer.lower()


async def test_what_was_encoded_waits_no_more() -> None:
    """Else a server would be busy for ever after so many tokens."""
    batcher = Batcher(st_llm2vec.load("llm2vec-tiny", device="cpu"), max_waiting_tokens=50)
    try:
        for _ in range(8):
            await batcher.encode(["the lazy dog sleeps in the sun"] * 3)
            await batcher.run(lambda: None, 40)
        assert batcher.waiting_tokens == 0
    finally:
        batcher.close()


async def test_answers_are_sent_at_once() -> None:
    """Else the body of an answer, which is sent after its head, waits for the client to acknowledge that (40 ms)."""
    found = asyncio.get_running_loop().create_future()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with take_address("127.0.0.1", 0) as address:
        async with await asyncio.start_server(connected, sock=address):
            _, writer = await asyncio.open_connection(*address.getsockname())
            assert await asyncio.wait_for(found, 20)
            writer.close()
