"""What the server costs beside the encoder itself: one text at a time, one client, 32 clients; both sides in one run.

    python benchmarks/serving.py                            # llm2vec-tiny
    python benchmarks/serving.py --model FOLDER --seconds 20

The encoder runs in this process, then `st-llm2vec serve` in another on the loopback interface, in turns, each alone;
the figures are medians over the rounds. Clients keep their connection and send the next request when the answer has
come. They run in this process, on the same cores as the server. Texts have 50 tokens, none is sent twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import st_llm2vec

WORDS = Path(__file__).read_text(encoding="utf-8").split()
TOKENS = 50


class Texts:
    """Different texts of the same number of tokens."""

    def __init__(self, model: Any) -> None:
        self._tokenizer, self._number = model.tokenizer, count()

    def take(self, n: int) -> list[str]:
        return [self._one(next(self._number)) for _ in range(n)]

    def _one(self, i: int) -> str:
        rng = np.random.default_rng(i)
        text = " ".join([str(i), *rng.choice(WORDS, 2 * TOKENS)])
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"][: TOKENS - 1]
        return str(self._tokenizer.decode(ids))


@contextlib.contextmanager
def server(model: str, options: list[str]) -> Iterator[int]:
    """The port of a server that is ready."""
    command = [sys.executable, "-m", "st_llm2vec", "serve", model, "--name", "served", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = ""
            for line in process.stderr or ():
                said += line
                if " is ready at http://127.0.0.1:" in line:
                    yield int(line.rpartition(":")[2])
                    return
            sys.exit(said)
        finally:
            process.terminate()


class Client:
    """One connection."""

    async def connect(self, port: int) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        return self

    async def ask(self, texts: list[str]) -> int:
        """Tokens that were read for the answer."""
        body = json.dumps({"model": "served", "input": texts, "encoding_format": "base64"}).encode()
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
        content = json.loads(await self._reader.readexactly(length))
        if not answer.startswith(b"http/1.1 200"):
            sys.exit(f"The server said: {content}")
        return int(content["usage"]["total_tokens"])

    def close(self) -> None:
        self._writer.close()


async def load(port: int, clients: int, per_request: int, texts: Texts, seconds: float) -> tuple[float, float]:
    """Requests and tokens per second."""
    requests = tokens = 0
    pool = [texts.take(per_request) for _ in range(clients)]  # made before, as the clients share the cores

    async def one(client: Client, asked: list[str]) -> None:
        nonlocal requests, tokens
        while time.perf_counter() < end:
            # Another text of the same length: the first word is a number.
            asked = [f"{requests} {text.partition(' ')[2]}" for text in asked]
            read = await client.ask(asked)  # other clients count while this one waits
            tokens, requests = tokens + read, requests + 1

    connected = [await Client().connect(port) for _ in range(clients)]
    start = time.perf_counter()
    end = start + seconds
    await asyncio.gather(*(one(client, asked) for client, asked in zip(connected, pool, strict=True)))
    took = time.perf_counter() - start
    for client in connected:
        client.close()
    return requests / took, tokens / took


async def alone(port: int, texts: list[str]) -> list[float]:
    """Seconds of each request, one after the other."""
    client = await Client().connect(port)
    found = [await timed(client, text) for text in texts]
    client.close()
    return found


async def timed(client: Client, text: str) -> float:
    start = time.perf_counter()
    await client.ask([text])
    return time.perf_counter() - start


def here(model: Any, texts: Texts, singles: int, seconds: float) -> dict[str, float]:
    """What the encoder does in this process."""
    times = []
    for text in texts.take(singles):
        start = time.perf_counter()
        model.encode(text, show_progress_bar=False)
        times.append(time.perf_counter() - start)
    tokens, took = 0, 0.0
    while took < seconds:
        many = texts.take(256)  # new ones, as the server gets: other lengths of batches cost something
        tokens += sum(len(row.input_ids) for row in model[0].tokenized(many))
        start = time.perf_counter()
        model.encode(many, show_progress_bar=False)
        took += time.perf_counter() - start
    return {"p50": statistics.median(times), "tokens": tokens / took}


def there(port: int, texts: Texts, clients: int, singles: int, seconds: float) -> dict[str, float]:
    """What the server does."""
    found = {"p50": statistics.median(asyncio.run(alone(port, texts.take(singles))))}
    found["one"], _ = asyncio.run(load(port, 1, 1, texts, seconds))
    found["many"], found["tokens"] = asyncio.run(load(port, clients, 1, texts, seconds))
    _, found["tokens by 16"] = asyncio.run(load(port, clients, 16, texts, seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llm2vec-tiny")
    parser.add_argument("--dtype", default="float32", help="of both sides")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--singles", type=int, default=100, help="texts of a round, one at a time")
    parser.add_argument("--seconds", type=float, default=5, help="of each load")
    asked = parser.parse_args()
    model = st_llm2vec.load(asked.model, device="cpu", dtype=asked.dtype)
    texts = Texts(model)
    model.encode(texts.take(256), show_progress_bar=False)
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    with server(asked.model, ["--device", "cpu", "--dtype", asked.dtype]) as port:
        there(port, texts, asked.clients, 10, 0.5)
        for _ in range(asked.rounds):
            own = here(model, texts, asked.singles, asked.seconds)
            rounds.append((own, there(port, texts, asked.clients, asked.singles, asked.seconds)))
    own, served = (
        {name: statistics.median(r[side][name] for r in rounds) for name in rounds[0][side]} for side in (0, 1)
    )
    print(f"{asked.model}, {asked.dtype}, {os.cpu_count()} cores, texts of {TOKENS} tokens, {asked.rounds} rounds")
    print("| | in this process | server | ratio | target |\n| --- | ---: | ---: | ---: | --- |")
    rows = [
        ("one text, p50, ms", own["p50"] * 1e3, served["p50"] * 1e3, served["p50"] / own["p50"], "<= 1.3"),
        # Batching gives a server no more than it gives the encoder itself: small models gain, large ones are busy.
        (
            f"texts/s, {asked.clients} at once over one by one",
            own["tokens"] / TOKENS * own["p50"],
            served["many"] / served["one"],
            served["many"] / served["one"],
            ">= 3",
        ),
        ("tokens/s, 1 text a request", own["tokens"], served["tokens"], served["tokens"] / own["tokens"], ">= 0.8"),
        (
            "tokens/s, 16 texts a request",
            own["tokens"],
            served["tokens by 16"],
            served["tokens by 16"] / own["tokens"],
            ">= 0.8",
        ),
    ]
    for name, a, b, ratio, target in rows:
        print(f"| {name} | {a:,.2f} | {b:,.2f} | {ratio:.2f} | {target} |")


if __name__ == "__main__":
    main()
