"""Many clients of a server, some of which leave in the middle; every answer is compared with the encoder's own vectors.

    python tests/serving/clients.py                          # 60 s, 16 clients, llm2vec-tiny
    python tests/serving/clients.py --seconds 600 --clients 64 --model FOLDER

A client asks for one to eight texts at once and closes its connection either before its request has been sent whole, or
before the answer has come, every third time. What it waited for has to come, with the vectors of `encode`, whatever
else was in the batch. The server is a process of its own. The last line is the tally.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

WORDS = Path(__file__).read_text(encoding="utf-8").split()
PATIENCE = 300  # seconds that an answer may take on a busy machine


@dataclass
class Tally:
    """What became of the requests."""

    answered: int = 0
    left: int = 0  # by their clients
    lost: int = 0  # no answer, or half of one
    statuses: dict[int, int] = field(default_factory=dict)
    difference: float = 0.0  # the largest between an answer and the encoder's own vector

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status >= 500)

    def __str__(self) -> str:
        return (
            f"{self.answered} answered, {self.left} left, {self.lost} lost, {self.failed} with status 5xx, "
            f"statuses {self.statuses}, vectors differ by at most {self.difference:.1e}"
        )


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 0 to 60 words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, 60))) for _ in range(count)]


@contextlib.contextmanager
def server(model: str, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`st-llm2vec serve` on a free port: the process and the port, once it says that it is ready."""
    command = [sys.executable, "-m", "st_llm2vec", "serve", model, "--port", "0", "--device", "cpu", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        assert process.stderr is not None
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                if " is ready at http://127.0.0.1:" in line:
                    yield process, int(line.rpartition(":")[2])
                    return
            raise RuntimeError("".join(said))
        finally:
            process.terminate()


def body(texts: list[str], name: str) -> bytes:
    return json.dumps({"model": name, "input": texts, "encoding_format": "base64"}).encode()


def request(content: bytes) -> bytes:
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def vectors(content: bytes) -> np.ndarray:
    rows = json.loads(content)["data"]
    return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])


async def storm(
    port: int, name: str, known: dict[str, np.ndarray], more: Callable[[], bool], clients: int = 16, seed: int = 0
) -> Tally:
    """Ask as long as there is `more` to ask.

    Args:
        port: Of a server on this machine.
        name: Of its model.
        known: The vector of every text that is asked for.
        more: Called before each request.
        clients: How many ask at once.
    """
    tally, pool = Tally(), list(known)

    async def client(rng: random.Random) -> None:
        while more():
            asked = rng.choices(pool, k=rng.randint(1, 8))
            whole = request(body(asked, name))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                if rng.random() < 1 / 3:
                    tally.left += 1
                    writer.write(whole[: rng.randrange(len(whole))] if rng.random() < 0.5 else whole)
                    await writer.drain()
                    await asyncio.sleep(rng.random() / 20)
                    writer.transport.abort()
                    continue
                writer.write(whole)
                head, _, content = (await asyncio.wait_for(reader.read(), PATIENCE)).partition(b"\r\n\r\n")
                status = int(head.split()[1]) if head else 0
                tally.statuses[status] = tally.statuses.get(status, 0) + 1
                if status == 200:
                    found = vectors(content)
                    difference = np.abs(found - np.stack([known[text] for text in asked])).max()
                    tally.answered += 1
                    tally.difference = float(np.maximum(tally.difference, difference))  # NaN stays NaN
                elif not status:
                    tally.lost += 1
            except (OSError, ValueError, asyncio.TimeoutError):  # cut off, or half an answer
                tally.lost += 1
            finally:
                writer.close()

    await asyncio.gather(*(client(random.Random(seed * 1000 + i)) for i in range(clients)))
    return tally


def main() -> int:
    import st_llm2vec

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--model", default="llm2vec-tiny")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    pool = texts(200, asked.seed)
    known = dict(zip(pool, st_llm2vec.load(asked.model, device="cpu").encode(pool), strict=True))
    with server(asked.model, "--name", "served") as (_, port):
        end = time.monotonic() + asked.seconds
        tally = asyncio.run(storm(port, "served", known, lambda: time.monotonic() < end, asked.clients, asked.seed))
    print(f"{asked.seconds:g} s, {asked.clients} clients, {asked.model}: {tally}")
    return int(bool(tally.lost or tally.failed or set(tally.statuses) != {200} or not tally.difference <= 1e-5))


if __name__ == "__main__":
    sys.exit(main())
