"""What /metrics shows: requests, time, batches, what waits."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """What /metrics shows, in a registry of its own."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("llm2vec_requests_total", "Requests.", ["path", "status"], **options)
        self.seconds = Histogram("llm2vec_request_seconds", "Time of a request.", ["path"], **options)
        self.texts = Counter("llm2vec_texts_total", "Texts encoded.", **options)
        self.tokens = Counter("llm2vec_tokens_total", "Tokens encoded.", **options)
        buckets = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.batch = Histogram("llm2vec_batch_texts", "Texts in a forward pass.", buckets=buckets, **options)
        Gauge("llm2vec_waiting_tokens", "Tokens that wait.", **options).set_function(waiting)

    def on_batch(self, texts: int, tokens: int) -> None:
        self.texts.inc(texts)
        self.tokens.inc(tokens)
        self.batch.observe(texts)


def watch(app: FastAPI, metrics: Metrics) -> None:
    @app.middleware("http")
    async def watched(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        response = await call_next(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")  # of the table of routes: a path from outside would grow the metrics
        metrics.requests.labels(path, response.status_code).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - started)
        return response
