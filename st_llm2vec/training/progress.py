"""What a caller is told of long work: how far it is, and how long the rest will take at this rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from time import monotonic
from typing import Any

from transformers import TrainerCallback


class Clock:
    """Starts when it is made.

    Args:
        whole: All that is to be done, counted in what you like.
        done: What was done before.

    Example:
        >>> Clock(100, done=50).left(100)
        '0:00:00'
    """

    def __init__(self, whole: int, done: int = 0) -> None:
        self.whole, self.before, self.begun = whole, done, monotonic()

    def left(self, done: int) -> str:
        """Return hours, minutes and seconds until all is done, where this much is now."""
        each = (monotonic() - self.begun) / max(1, done - self.before)
        return str(timedelta(seconds=round(each * (self.whole - done))))


class ToldSteps(TrainerCallback):  # type: ignore[misc]
    """Hands what the trainer logs to the caller's function."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self.clock: Clock | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.clock = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.clock is None:  # what a resumed run passes over comes first
            self.clock = Clock(state.max_steps, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        skipped = ("epoch", "total_flos", "runtime", "per_second", "model_preparation_time")
        shown = [f"{key} {value:.4g}" for key, value in (logs or {}).items() if not key.endswith(skipped)]
        if shown:
            step = f"step {state.global_step} of {state.max_steps}" if self.clock else "before the first step"
            unfinished = self.clock if state.global_step < state.max_steps else None
            left = f", {unfinished.left(state.global_step)} left" if unfinished else ""
            self.log(f"{step}: {', '.join(shown)}{left}")
