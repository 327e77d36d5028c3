"""Dynamic batching: texts that many callers wait for run together, by tokens, in packed batches.

One thread tokenizes, another runs the model; the event loop does neither. The model never waits for a batch to fill:
it takes what is there, up to a budget of tokens, so a single text is not delayed and a crowd shares its forward passes.
Callers take turns, so that a request of a thousand texts does not hold up one of a single text.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..encoding import run_batch, token_budget
from ..model import LLM2Vec
from ..tokenization import TokenizedText

MAX_WAITING_TOKENS = 1_000_000  # some minutes of work for a small model on a CPU; more would only time out


class BusyError(Exception):
    """More tokens are waiting than the server takes on; try again later."""


class Encoded(NamedTuple):
    """Vectors of a request, float32 (n, dimension), and how many tokens were read for them."""

    vectors: np.ndarray
    tokens: int


@dataclass
class _Request:
    texts: list[TokenizedText]
    done: Future[Encoded] = field(default_factory=Future)
    next: int = 0  # the first text that has not been taken into a batch
    left: int = 0  # texts without a vector
    vectors: np.ndarray | None = None


@dataclass
class _Work:
    function: Callable[[], Any]
    tokens: int
    done: Future[Any] = field(default_factory=Future)


class Batcher:
    """Encodes texts for many callers at once; `await encode(texts)` gives what `model.encode(texts)` gives.

    Args:
        model: The encoder; from here on, only this object runs it.
        max_waiting_tokens: Tokens that may wait; a request beyond raises `BusyError`.
        on_batch: Called after each forward pass with (texts, tokens), for metrics.
    """

    def __init__(
        self,
        model: LLM2Vec,
        *,
        max_waiting_tokens: int = MAX_WAITING_TOKENS,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model = model.eval()
        self.max_waiting_tokens = max_waiting_tokens
        self.waiting_tokens = 0
        self._on_batch = on_batch
        self._place = model.device
        self._tokenizer = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._changed = threading.Condition()
        self._requests: deque[_Request] = deque()
        self._works: deque[_Work] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self._thread.start()

    async def encode(self, texts: Sequence[str], *, prompt: str | None = None, task: str | None = None) -> Encoded:
        """Encode texts together with whatever else is waiting.

        Args:
            texts: n texts.
            prompt: Put before every text as it is.
            task: "query" or "document", as in `encode_query` and `encode_document`.

        Raises:
            BusyError: Too much is waiting.
        """
        self._require_room()
        loop = asyncio.get_running_loop()
        tokenized = await loop.run_in_executor(
            self._tokenizer, lambda: self.model[0].tokenized(list(texts), prompt, task=task)
        )
        request = _Request(tokenized, left=len(tokenized))
        with self._changed:
            self._require_room()
            self.waiting_tokens += sum(len(text.input_ids) for text in tokenized)
            self._requests.append(request)
            self._changed.notify()
        return await asyncio.wrap_future(request.done)

    async def run(self, function: Callable[[], Any], tokens: int) -> Any:
        """Run something else that takes the model, between two batches.

        Args:
            function: What to run.
            tokens: How many it reads, about.

        Raises:
            BusyError: Too much is waiting.
        """
        work = _Work(function, tokens)
        with self._changed:
            self._require_room()
            self.waiting_tokens += tokens
            self._works.append(work)
            self._changed.notify()
        return await asyncio.wrap_future(work.done)

    def _require_room(self) -> None:
        if self._closed or self.waiting_tokens > self.max_waiting_tokens:
            raise BusyError

    def close(self) -> None:
        """Finish what was taken on, refuse the rest, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._tokenizer.shutdown()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._requests or self._works or self._closed):
                    self._changed.wait()
                if not (self._requests or self._works):
                    return
                batch = self._take()
                work = self._works.popleft() if self._works else None
                self.waiting_tokens -= work.tokens if work else 0
            if batch:
                self._encode(batch)
            if work and work.done.set_running_or_notify_cancel():
                try:
                    work.done.set_result(work.function())
                except Exception as error:  # each caller learns of its own
                    work.done.set_exception(error)

    def _take(self) -> list[tuple[_Request, int]]:
        """The next texts, one of each request in turn, up to the budget; called with the lock held."""
        budget = token_budget(self.model, self._place)
        batch: list[tuple[_Request, int]] = []
        tokens = longest = 0
        while self._requests:
            request = self._requests[0]
            if request.done.cancelled():  # the caller has gone
                self._requests.popleft()
                self.waiting_tokens -= sum(len(text.input_ids) for text in request.texts[request.next :])
                continue
            length = len(request.texts[request.next].input_ids)
            longest = max(longest, length)
            # counted as if padded to the longest, which is what a model that cannot pack will do
            if batch and longest * (len(batch) + 1) > budget:
                break
            self._requests.popleft()
            batch.append((request, request.next))
            tokens += length
            request.next += 1
            if request.next < len(request.texts):
                self._requests.append(request)
        self.waiting_tokens -= tokens
        return batch

    def _encode(self, batch: list[tuple[_Request, int]]) -> None:
        texts = [request.texts[i] for request, i in batch]
        waiting = self.waiting_tokens + sum(len(text.input_ids) for text in texts)
        try:
            vectors = run_batch(self.model, texts, self._place, waiting=waiting).float().cpu().numpy()
            vectors = vectors[:, : self.model.truncate_dim]
        except Exception as error:  # of the model's own code: each caller learns of it, the server goes on
            for request, _ in batch:
                if not request.done.done():
                    request.done.set_exception(error)
            return
        if self._on_batch:
            self._on_batch(len(texts), sum(len(text.input_ids) for text in texts))
        for (request, i), vector in zip(batch, vectors, strict=True):
            if request.vectors is None:
                request.vectors = np.empty((len(request.texts), len(vector)), np.float32)
            request.vectors[i] = vector
            request.left -= 1
            if not request.left and request.done.set_running_or_notify_cancel():
                request.done.set_result(Encoded(request.vectors, sum(len(text.input_ids) for text in request.texts)))
