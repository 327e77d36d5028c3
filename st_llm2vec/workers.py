"""A function applied to items by several workers: processes of this machine, or actors of a Ray cluster.

Each worker has a copy of the function, with the encoder in it. An item whose worker dies is given to another, once. At
most two items for every worker are in memory, done or not. In the items' order, a slow worker so holds up the others
once they are that far ahead; where the order is of no account, it does not.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from .errors import InvalidInputError, MissingExtraError, WorkerError

Tag = TypeVar("Tag")
_AHEAD = 2  # items that are under way or wait, for every worker
_ATTEMPTS = 2
_FAREWELL = 10.0  # seconds that a process has for its end


class Work(Protocol):
    """A function that can be pickled.

    Attributes:
        gpu: Whether each worker needs a GPU.
    """

    gpu: bool

    def __call__(self, item: Any, /) -> Any: ...

    def begin(self, number: int, count: int) -> None:
        """Called once in each worker, with its number (from 0) and how many there are."""


def in_processes(
    function: Work, items: Iterable[tuple[Tag, Any]], count: int, *, ordered: bool = True
) -> Iterator[tuple[Tag, Any]]:
    """Yield (tag, function(item)) for every (tag, item), worked out by processes of this machine.

    Args:
        function: What they do.
        items: Read no further ahead than two for every process.
        count: Processes, at most; none is started before there is something for it to do.
        ordered: In the order of the items; else each as soon as it is done.

    Raises:
        WorkerError: A process died, and so did the one that was given its item.
        Exception: What the function raised.
    """
    coming = iter(items)
    payload = pickle.dumps(function)  # by value: shared memory is small in many a container
    tasks: deque[_Task] = deque()  # in their order
    processes: list[_Process] = []
    try:
        while True:
            tasks.extend(_Task(tag, item) for tag, item in islice(coming, _AHEAD * count - len(tasks)))
            if not tasks:
                return
            if task := next((task for task in (islice(tasks, 1) if ordered else tasks) if task.done), None):
                tasks.remove(task)
                yield task.tag, task.result
                continue
            processes = [process for process in processes if process.alive or process.task]
            for task in tasks:
                if not task.done and not task.given:
                    idle = next((process for process in processes if not process.task), None)
                    if idle is None and len(processes) < count:
                        taken = {process.number for process in processes}
                        number = next(number for number in range(count) if number not in taken)
                        processes.append(idle := _Process(payload, number, count))
                    if idle is None:
                        break
                    idle.give(task)
            busy = {process.connection: process for process in processes if process.task}
            for ready in wait(busy):
                busy[ready].take()  # type: ignore[index]
    finally:
        for process in processes:
            process.dismiss()
        for process in processes:
            process.end()


class _Task:
    def __init__(self, tag: Any, item: Any) -> None:
        self.tag, self.item = tag, item
        self.result: Any = None
        self.given = self.done = False
        self.deaths: list[int | None] = []  # exit codes of those that had it


class _Process:
    """A process, and the task that it has."""

    def __init__(self, payload: bytes, number: int, count: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, number, count), daemon=True)
        self._process.start()
        theirs.close()  # so that its death is the end of the file
        self.number = number
        self.task: _Task | None = None
        self._send(payload)

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def _send(self, payload: bytes) -> None:
        with suppress(OSError):  # it is dead, which `take` sees
            self.connection.send_bytes(payload)

    def give(self, task: _Task) -> None:
        self.task, task.given = task, True
        self._send(pickle.dumps(task.item))

    def take(self) -> None:
        """Receive what became of the task, or put it back if the process died."""
        assert self.task is not None
        task, self.task = self.task, None
        try:
            worked, value = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            task.given = False
            task.deaths.append(self._process.exitcode)
            if len(task.deaths) == _ATTEMPTS:
                raise WorkerError(
                    f"two workers died over the same texts (exit codes {task.deaths}; -9 is often too little memory). "
                    "What was done before is kept: run it again, with fewer workers. A program that is run as a file "
                    "must start them below: if __name__ == '__main__'."
                ) from None
            return
        if not worked:
            raise value
        task.result, task.done, task.item = value, True, None

    def dismiss(self) -> None:
        """Let it end by itself, so that it cleans up, or at once if nobody waits any more for what it does."""
        self.connection.close()
        if self.task:
            self._process.terminate()

    def end(self) -> None:
        self._process.join(_FAREWELL)
        self._process.kill()
        self._process.join()


def _work(connection: Connection, number: int, count: int) -> None:
    """What a process does, until there is nothing more to do or nobody who wants it."""
    with suppress(EOFError, OSError, KeyboardInterrupt):
        function = pickle.loads(connection.recv_bytes())  # noqa: S301 - of the process that started this one
        function.begin(number, count)
        while True:
            item = pickle.loads(connection.recv_bytes())  # noqa: S301
            try:
                outcome = True, function(item)
            except Exception as error:
                outcome = False, error
            connection.send(outcome)


def on_ray(
    function: Work, items: Iterable[tuple[Tag, Any]], count: int, *, ordered: bool = True
) -> Iterator[tuple[Tag, Any]]:
    """As `in_processes`, worked out by actors of the Ray cluster that there is, or of one on this machine.

    Raises:
        MissingExtraError: Ray is not installed.
        WorkerError: An actor died over an item, and so did the one that took its place.
    """
    ray = _require_ray()
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False)
        except ConnectionError:  # Ray waits for ever for CPUs that it does not have, so it gets one for every actor
            ray.init(address="local", num_cpus=max(count, os.cpu_count() or 1), log_to_driver=False)
    remote = ray.remote(num_cpus=1, num_gpus=int(function.gpu), max_restarts=-1, max_task_retries=_ATTEMPTS - 1)(_Actor)
    shared = ray.put(pickle.dumps(function))  # Ray's own pickles take our classes along, where ours name them
    actors = [remote.remote(shared, number, count) for number in range(count)]
    under_way: dict[Any, tuple[Tag, Any]] = {}  # by the reference to the result: tag and actor
    coming, free = iter(items), actors * _AHEAD
    try:
        while True:
            for tag, item in islice(coming, len(free)):
                actor = free.pop(0)
                under_way[actor.work.remote(item)] = tag, actor
            if not under_way:
                return
            done = next(iter(under_way)) if ordered else ray.wait(list(under_way), num_returns=1)[0][0]
            tag, actor = under_way.pop(done)
            yield _got(ray, tag, done)
            free.append(actor)
    finally:
        for actor in actors:
            ray.kill(actor)


def _got(ray: Any, tag: Tag, reference: Any) -> tuple[Tag, Any]:
    try:
        return tag, ray.get(reference)
    except ray.exceptions.RayActorError as error:
        raise WorkerError(
            f"two workers of Ray died over the same texts. What was done before is kept: run it again. ({error})"
        ) from error


class _Actor:
    """A worker of Ray."""

    def __init__(self, payload: bytes, number: int, count: int) -> None:
        self._function: Work = pickle.loads(payload)  # noqa: S301 - of the driver
        self._function.begin(number, count)

    def work(self, item: Any) -> Any:
        return self._function(item)


def _require_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError('engine="ray" needs Ray. Install it with: pip install "st-llm2vec[ray]"') from error
    return ray


def require_engine(engine: str) -> None:
    """Raise an error unless there is such an engine, and what it needs is installed."""
    if engine not in ENGINES:
        raise InvalidInputError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}.")
    if engine == "ray":
        _require_ray()


ENGINES: dict[str, Callable[..., Iterator[tuple[Any, Any]]]] = {"local": in_processes, "ray": on_ray}
