"""Around every request: its key, its body within a limit, the end of its work when its client leaves, its time."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Collection
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .schema import Refusal

CLIENT_LEFT = 499  # what /metrics says of a request that nobody waits for any more, as nginx calls it


class Authorized:
    """Refuses requests without the key by their headers, before anything of their bodies is read.

    Args:
        app: The application.
        key: What clients send as `Authorization: Bearer KEY`.
        public: Paths that can be read without it.
    """

    def __init__(self, app: ASGIApp, key: str, public: Collection[str]) -> None:
        self.app, self.key, self.public = app, key.encode(), public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._allows(scope):
            await self.app(scope, receive, send)
            return
        said = "The API key is missing or wrong. Send it as 'Authorization: Bearer KEY'."
        await _refuse_unread(Refusal(401, said, code="invalid_api_key"), scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if scope["method"] in ("GET", "HEAD") and scope["path"] in self.public:
            return True
        scheme, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key, self.key)


async def _refuse_unread(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request whose body has not been read: the connection ends, or the server would read it all the same."""
    answer = refusal.response()
    answer.headers["Connection"] = "close"
    await answer(scope, receive, send)


class WholeBody:
    """Reads the body of a request before the application does, and ends the work of a client that has left.

    Args:
        app: The application.
        limit: Bytes of a body at most; a larger one is refused before it is read whole.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = declared.isdigit() and int(declared) > self.limit
        body = bytearray()
        more = not too_large
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            too_large = len(body) > self.limit
            more = bool(message.get("more_body")) and not too_large
        if too_large:
            said = f"The body must be at most {self.limit} bytes. Send fewer texts at once."
            await _refuse_unread(Refusal(413, said, code="too_large"), scope, receive, send)
            return
        await self._answer({"type": "http.request", "body": bytes(body), "more_body": False}, scope, receive, send)

    async def _answer(self, whole: Message, scope: Scope, receive: Receive, send: Send) -> None:
        unread = [whole]
        leaving = asyncio.ensure_future(receive())  # after the body, all that comes is that the client has gone

        async def replayed() -> Message:
            return unread.pop() if unread else await asyncio.shield(leaving)

        answering = asyncio.ensure_future(self.app(scope, replayed, send))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the server is told to stop, and this takes longer than it may
            await Refusal(503, "The server is shutting down.", code="busy").response()(scope, receive, send)
        finally:
            answering.cancel()  # done already, unless the client left or the server stops
            leaving.cancel()
        with suppress(asyncio.CancelledError):
            await answering  # for what it raised


class Watched:
    """Counts requests and their time.

    Args:
        app: The application.
        metrics: Where they are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_LEFT

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:
            status = 500
            raise
        finally:
            # Of the table of routes: a path from outside would grow the metrics.
            self.metrics.on_request(getattr(scope.get("route"), "path", "other"), status, time.perf_counter() - started)
