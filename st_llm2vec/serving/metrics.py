"""What /metrics shows: requests, time, batches, what waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

    def on_request(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)
