"""Stragglers and preemption on paper: what a fleet of workers loses, with the real protocol of shards.

    python benchmarks/preemption.py

Shards are written, skipped, listed and finished by `st_llm2vec.shards.Shards`, as `encode` does; workers are given them
as `st_llm2vec.workers` gives them (in order, two ahead for every worker, a shard whose worker died once more) and
written as soon as they are done. Encoding alone is simulated: vectors are made of the text's hash, and a shard takes a
minute of a clock that only counts. Each scenario must leave the bytes of a calm run, or the script fails. The table is
that of docs/cost.md.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from st_llm2vec.errors import WorkerError
from st_llm2vec.ingestion.passages import Passage
from st_llm2vec.shards import Shards
from st_llm2vec.workers import _AHEAD, _ATTEMPTS

WORKERS, SHARDS, TEXTS = 32, 640, 4  # texts of a shard
MINUTES = 1.0  # of a shard, on an ordinary worker
DIMENSION = 8
START = 3.0  # minutes until a new worker, or a driver that was started again, has loaded the model
SETTING = {"fingerprint": "simulated", "task": "document", "prompt": None, "format": "npy"}


class Scenario(NamedTuple):
    """A share of slow workers and how slow, minutes that a worker lasts, and deaths of the driver."""

    slow: float = 0.0
    slowness: float = 4.0
    lifetime: float = float("inf")
    drivers: int = 0


SCENARIOS = {
    "calm": Scenario(),
    "5 % of the workers are 4 times slower": Scenario(slow=0.05),
    "a worker lasts 30 minutes": Scenario(lifetime=30),
    "a worker lasts 10 minutes": Scenario(lifetime=10),
    "the driver is killed 3 times": Scenario(drivers=3),
    "slow workers, 30 minutes, 3 drivers": Scenario(slow=0.05, lifetime=30, drivers=3),
}


class KilledError(Exception):
    """The driver has died: nothing is cleaned up."""


class Corpus:
    """Passages, as `Shards` reads them."""

    fields: tuple[str, ...] = ()

    def batches(self, size: int) -> Iterator[list[Passage]]:
        for shard in range(SHARDS):
            yield [Passage(f"{shard}:{i}", f"text {i} of shard {shard}", {}) for i in range(size)]

    def type_of(self, name: str) -> tuple[str, bool]:
        raise KeyError(name)


@dataclass
class Task:
    tag: Any
    passages: list[Passage]
    given: bool = False
    done: bool = False
    deaths: int = 0


@dataclass
class Fleet:
    """Workers on a clock of its own; `each` stands in for that of `st_llm2vec.corpus.Embed`.

    Attributes:
        clock: Minutes since the beginning, over all runs.
        encoded: How often each shard was begun.
        deaths: Of workers.
    """

    scenario: Scenario
    rng: random.Random
    clock: float = 0.0
    encoded: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    total: int = 0
    driver_dies: float = float("inf")

    def __post_init__(self) -> None:
        slow = round(self.scenario.slow * WORKERS)
        self.speeds = [1 / self.scenario.slowness] * slow + [1.0] * (WORKERS - slow)

    def each(
        self, batches: Iterable[tuple[Any, list[Passage]]], *, ordered: bool
    ) -> Iterator[tuple[Any, list[Passage], Any]]:
        coming, tasks = iter(batches), deque[Task]()
        idle, events = list(range(WORKERS)), list[tuple[float, int, bool, Task | None]]()
        self.clock += START
        while True:
            while len(tasks) < _AHEAD * WORKERS and (batch := next(coming, None)):
                tasks.append(Task(*batch))
            if not tasks:
                return
            if task := next((task for task in (islice(tasks, 1) if ordered else tasks) if task.done), None):
                tasks.remove(task)
                yield task.tag, task.passages, np.stack([vector(passage.text) for passage in task.passages])
                continue
            for task in [task for task in tasks if not task.given][: len(idle)]:
                self._give(task, idle.pop(0), events)
            self._advance(idle, events)

    def _give(self, task: Task, worker: int, events: list[Any]) -> None:
        task.given = True
        self.encoded[task.passages[0].id] += 1
        takes = MINUTES / self.speeds[worker] * self.rng.uniform(0.9, 1.1)
        lasts = self.rng.expovariate(1) * self.scenario.lifetime
        heapq.heappush(events, (self.clock + min(takes, lasts), worker, takes <= lasts, task))

    def _advance(self, idle: list[int], events: list[Any]) -> None:
        self.clock, worker, finished, task = heapq.heappop(events)
        if self.clock >= self.driver_dies:
            self.driver_dies = float("inf")
            raise KilledError
        if task is None or finished:
            idle.append(worker)
            if task:
                task.done = True
            return
        self.deaths += 1
        task.given, task.deaths = False, task.deaths + 1
        heapq.heappush(events, (self.clock + START, worker, True, None))
        if task.deaths == _ATTEMPTS:
            raise WorkerError("two workers died over the same texts")


def vector(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)[:DIMENSION].astype(np.float32)


def run(scenario: Scenario, folder: Path) -> tuple[Fleet, int]:
    """The fleet after its work is done, and how many times the command was run."""
    fleet, runs = Fleet(scenario, random.Random(0)), 0
    ideal = SHARDS * MINUTES / WORKERS
    while True:
        runs += 1
        left = scenario.drivers + 1 - runs
        fleet.driver_dies = fleet.clock + START + ideal / (scenario.drivers + 1) if left > 0 else float("inf")
        try:
            shards = Shards(folder, SETTING)
            shards.finish(shards.write(Corpus(), fleet, TEXTS))  # type: ignore[arg-type]
            return fleet, runs
        except (KilledError, WorkerError):
            continue


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def table() -> str:
    """The rows, or an error where a scenario leaves other bytes than the calm one."""
    lines = ["| what goes wrong | minutes | of the least | shards begun twice | workers lost | runs |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    calm: dict[str, str] = {}
    for name, scenario in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as place:
            fleet, runs = run(scenario, Path(place) / "vectors")
            found = contents(Path(place) / "vectors")
        calm = calm or found
        if found != calm:
            sys.exit(f"{name}: other bytes than those of a calm run")
        twice = sum(fleet.encoded.values()) - SHARDS
        least = SHARDS * MINUTES / sum(fleet.speeds) + START
        row = (name, f"{fleet.clock:.0f}", f"{fleet.clock / least:.2f}", str(twice), str(fleet.deaths), str(runs))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
