"""Parts of the server on their own: what is dropped when a client leaves, and what is still waiting afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import st_llm2vec
from st_llm2vec.serving.batcher import Batcher
from st_llm2vec.serving.middleware import WholeBody


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
