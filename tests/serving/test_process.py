"""The server as a process: ready means ready, clients that leave cost the others nothing, stopping loses nothing."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

import st_llm2vec
from st_llm2vec.cli import main

from .clients import body, request, server, storm, texts, vectors

NAME = "llm2vec-tiny"


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[subprocess.Popen[str], int]]:
    with server(NAME) as found:
        yield found


@pytest.fixture(scope="module")
def port(running: tuple[subprocess.Popen[str], int]) -> int:
    return running[1]


def metric(port: int, name: str, label: str = "") -> float:
    shown = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    return sum(float(line.split()[-1]) for line in shown.splitlines() if line.startswith(name) and label in line)


async def once(port: int, condition: str, least: float, most: float) -> None:
    while not least <= await asyncio.to_thread(metric, port, condition) <= most:
        await asyncio.sleep(0.02)


def test_it_says_ready_once_it_answers(port: int) -> None:
    """The fixture connects as soon as the line has come, and never tries again."""
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200


def test_clients_that_leave_cost_the_others_nothing(port: int) -> None:
    pool = texts(60)
    known = dict(zip(pool, st_llm2vec.load(NAME, device="cpu").encode(pool), strict=True))
    turns = itertools.count()
    tally = asyncio.run(storm(port, NAME, known, lambda: next(turns) < 150))
    assert tally.answered + tally.left == 150
    assert min(tally.answered, tally.left) > 25
    assert (tally.lost, set(tally.statuses)) == (0, {200})
    assert tally.difference < 1e-5
    asyncio.run(once(port, "llm2vec_waiting_tokens", 0, 0))
    assert metric(port, "llm2vec_requests_total", 'status="499"') > 0
    assert metric(port, "llm2vec_requests_total", 'status="5') == 0


def test_texts_of_a_client_that_left_are_not_encoded(port: int) -> None:
    async def leave() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(body(["a text of some length, " * 40] * 1024, NAME)))
        await writer.drain()
        await once(port, "llm2vec_waiting_tokens", 1, np.inf)
        writer.transport.abort()
        await once(port, "llm2vec_waiting_tokens", 0, 0)

    before = metric(port, "llm2vec_texts_total")
    asyncio.run(leave())
    assert metric(port, "llm2vec_texts_total") - before < 1024


def test_an_address_that_is_taken_is_said_before_the_model_is_loaded(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "nowhere/no-model", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"Error: --host '127.0.0.1', --port {port} cannot be listened on: Address already in use.")
    assert "Loading" not in said


def test_stopping_finishes_what_was_taken_on(running: tuple[subprocess.Popen[str], int]) -> None:
    """The last test: the server is gone after it."""
    process, port = running
    asked = texts(32, seed=1)

    async def stop() -> list[np.ndarray]:
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        for _, writer in connections:
            writer.write(request(body(asked, NAME)))
        await once(port, "llm2vec_waiting_tokens", 1, np.inf)
        process.send_signal(signal.SIGTERM)
        answers = [await reader.read() for reader, _ in connections]
        for _, writer in connections:
            writer.close()
        return [vectors(answer.partition(b"\r\n\r\n")[2]) for answer in answers]

    assert {found.shape for found in asyncio.run(stop())} == {(32, 256)}
    assert process.wait(60) in (0, -signal.SIGTERM)
    assert process.stderr is not None
    assert process.stderr.read() == ""  # no traceback of anything above
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass
