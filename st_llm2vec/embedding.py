"""Passages to vectors: by this process or by several workers, the same vectors in the same order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from .chunking import Chunker
from .errors import InvalidInputError
from .ingestion import Passage, Passages
from .workers import ENGINES, require_engine

BLOCK = 512  # passages that are encoded at once, between two reports of progress
_SETTLED_TOKENS = 8192  # from here on an encoder is brought into the state in which it stays

Progress = Callable[[int, int], None]  # passages done, passages to do
Tag = TypeVar("Tag")


class Encode:
    """Passages to float32 vectors (passages, dimension), here or in a worker.

    Args:
        encoder: An encoder.
        task: "document" or "query": whose prompt the texts get.
        prompt: What is put before every text instead.
        normalize: Vectors of unit length.
        batch_size: As for `encode`.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        task: str = "document",
        prompt: str | None = None,
        normalize: bool = False,
        batch_size: int = 32,
    ) -> None:
        self.encoder = encoder
        self.prompt = prompt if prompt is not None else encoder.prompts.get(task) or ""
        self._task, self._given, self._normalize, self._batch_size = task, prompt, normalize, batch_size
        self._late: int | None = None  # tokens of a chunk, at most, for late chunking
        self.settled: int | None = None  # tokens that the encoder is to expect before it encodes
        self.gpu = "cuda" in str(getattr(encoder, "device", ""))

    def chunker(self, size: int | None, overlap: int, *, split_rows: bool = True, late: bool) -> Chunker:
        """Return what splits texts for this encoder, and with `late` encode the pieces by late chunking.

        Raises:
            InvalidInputError: As `Chunker`; or late chunking does not go with this encoder.
        """
        if late:
            from .late_chunking import require_late_chunking

            require_late_chunking(self.encoder)
        chunker = Chunker(self.encoder, size, overlap, self.prompt, split_rows=split_rows, late=late)
        self._late = chunker.size_of(document=True) if late else None
        return chunker

    def begin(self, number: int, count: int) -> None:
        """Take a share of the machine: threads of the processor, or a GPU."""
        if "torch" not in sys.modules:
            return
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // count))
        if self.gpu and torch.cuda.device_count():
            self.encoder.to(f"cuda:{number % torch.cuda.device_count()}")

    def __call__(self, passages: list[Passage], report: Callable[[int], None] = lambda encoded: None) -> Any:
        """Encode passages in blocks, and report the size of each."""
        import numpy as np

        if self.settled is not None:
            from .backend.deciding import expect

            expect(self.encoder[0], self.settled)
            self.settled = None
        parts = []
        for start in range(0, len(passages), BLOCK):
            block = passages[start : start + BLOCK]
            parts.append(self._vectors(block))
            if not (whole := np.isfinite(parts[-1]).all(axis=1)).all():
                raise InvalidInputError(
                    f"the encoder gives a vector that is not finite for {block[int(np.argmin(whole))].id!r:.200}. Use "
                    "another dtype, such as float32, or check the model's weights; nothing of it was kept."
                )
            report(len(block))
        return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)

    def _vectors(self, passages: list[Passage]) -> Any:
        import numpy as np

        if self._late is not None:
            from .late_chunking import Chunk, encode_chunks

            chunks = [Chunk(p.document or p.text, p.start, p.start + len(p.text)) for p in passages]
            return encode_chunks(
                self.encoder,
                chunks,
                size=self._late,
                prompt=self.prompt,
                batch_size=self._batch_size,
                normalize=self._normalize,
            )
        encode = self.encoder.encode_query if self._task == "query" else self.encoder.encode_document
        vectors = encode(
            [passage.text for passage in passages],
            show_progress_bar=False,
            prompt=self._given,
            normalize_embeddings=self._normalize,
            batch_size=self._batch_size,
        )
        return np.asarray(vectors, dtype=np.float32)


class Embed:
    """Batches of passages to their vectors, by this process or by workers, with counts and reports of progress.

    Args:
        encode: What one process does.
        workers: Processes, or actors of Ray; 1 for none beside this one.
        engine: "local" or "ray".
        progress: Called with the texts that are done and those that are to be encoded in all.

    Raises:
        InvalidInputError: There is no such engine, or workers is no whole number of at least 1.
        MissingExtraError: The engine is not installed.
    """

    def __init__(
        self, encode: Encode, *, workers: int = 1, engine: str = "local", progress: Progress | None = None
    ) -> None:
        require_engine(engine)
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise InvalidInputError(f"workers must be a whole number of at least 1, got {workers!r}.")
        self._encode, self._workers, self._engine, self._progress = encode, workers, engine, progress
        self.encoded = self.total = self.batches = 0
        self.seconds = 0.0

    def settle(self, passages: Passages) -> None:
        """Bring the encoder into the state that a long run would bring it into.

        The vectors of a text then depend on the corpus only, not on where a run began.
        """
        from .model import LLM2Vec

        tokens = passages.characters + len(passages) * (len(self._encode.prompt) + 8)  # at most
        if tokens >= _SETTLED_TOKENS and isinstance(self._encode.encoder, LLM2Vec):
            self._encode.settled = tokens + (1 << 40)

    def each(
        self, batches: Iterable[tuple[Tag, list[Passage]]], *, ordered: bool = True
    ) -> Iterator[tuple[Tag, list[Passage], Any]]:
        """Yield each batch with its vectors, float32 (texts, dimension): in order, or as soon as it is done."""
        if self._workers == 1 and self._engine == "local":
            for tag, passages in batches:
                yield tag, passages, self(passages)
            return
        tagged = (((tag, passages), passages) for tag, passages in batches)
        started = time.perf_counter()
        for (tag, passages), vectors in ENGINES[self._engine](self._encode, tagged, self._workers, ordered=ordered):
            self.seconds += time.perf_counter() - started
            self._report(len(passages))
            self.batches += bool(passages)
            yield tag, passages, vectors
            started = time.perf_counter()

    def idle(self, batch: str, option: str) -> list[str]:
        """What to say of workers that had nothing to do, as one takes a batch; nothing if there were none."""
        if not 0 < self.batches < self._workers:
            return []
        return [
            f"{self.batches} of {self._workers} workers had texts to encode, as one takes a {batch}. Make those "
            f"smaller with {option}."
        ]

    def __call__(self, passages: list[Passage]) -> Any:
        started = time.perf_counter()
        vectors = self._encode(passages, self._report)
        self.seconds += time.perf_counter() - started
        return vectors

    def _report(self, encoded: int) -> None:
        self.encoded += encoded
        if self._progress:
            self._progress(self.encoded, self.total)
