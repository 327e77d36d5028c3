"""An encoder without a model: a token is a word, a vector is made of a text's hash. Milliseconds, and exact."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np

from st_llm2vec.errors import InvalidInputError


class Tokenizer:
    """A token is a word; of a zero-width space, nothing is left."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text.replace("\u200b", "").split())))}


class FakeEncoder:
    """What `encode_corpus` and the stores need; `texts` is what was encoded."""

    dimension = 8
    dtype = "float32"

    def __init__(self, fingerprint: str = "one", max_seq_length: int = 20) -> None:
        self.fingerprint, self.max_seq_length = fingerprint, max_seq_length
        self.prompts: dict[str, str] = {"query": "", "document": ""}
        self.tokenizer = Tokenizer()
        self.texts: list[str] = []
        self.options: dict[str, Any] = {}

    def __getitem__(self, position: int) -> FakeEncoder:
        return self

    def get_embedding_dimension(self) -> int:
        return self.dimension

    def encode_document(self, inputs: Any, **options: Any) -> Any:
        self.options = options
        self.texts += [inputs] if isinstance(inputs, str) else inputs
        return vectors([inputs])[0] if isinstance(inputs, str) else vectors(inputs)

    encode_query = encode_document


class PatientEncoder(FakeEncoder):
    """Waits before the text "slow" until there is a file of this pattern."""

    def __init__(self, awaited: Path) -> None:
        super().__init__()
        self.awaited = awaited

    def encode_document(self, inputs: Any, **options: Any) -> Any:
        if "slow" in inputs:
            wait_for(self.awaited)
        return super().encode_document(inputs, **options)


def wait_for(pattern: Path) -> None:
    """Return once there is such a file, or raise after a while."""
    for _ in range(600):
        if list(pattern.parent.glob(pattern.name)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"there is no {pattern}")


def vectors(texts: list[str]) -> Any:
    """The vectors of texts, float32 (texts, 8), of unit length."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") for text in texts]
    found = np.stack([np.random.default_rng(seed).standard_normal(8).astype("f4") for seed in seeds])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class Doubled:
    """Work for `workers`: twice the item.

    Args:
        deadly: A folder. It dies over item 5 as often as there are files to take away.
        slow: A folder, where each item that is done has a file. Item 0 waits for that of item 3.
        cleaned: A folder, where each worker that ends by itself leaves a file, as it cleans up after itself.
    """

    gpu = False

    def __init__(self, deadly: Path | None = None, slow: Path | None = None, cleaned: Path | None = None) -> None:
        self.deadly, self.slow, self.cleaned = deadly, slow, cleaned
        self.number = -1

    def begin(self, number: int, count: int) -> None:
        self.number = number
        if self.cleaned is not None:
            Finalize(None, (self.cleaned / str(number)).touch, exitpriority=0)

    def __call__(self, item: int) -> tuple[int, int]:
        time.sleep(0.05 * (item % 3 == 0))  # so that later ones are done first
        if item == 5 and self.deadly is not None:
            for file in sorted(self.deadly.iterdir()):
                file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        if item < 0:
            raise InvalidInputError("an item below 0")
        if self.slow is not None:
            if item == 0:
                wait_for(self.slow / "3")
            (self.slow / str(item)).touch()
        return 2 * item, self.number
