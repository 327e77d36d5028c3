"""How long the rest of a piece of work will take, going by what is done of it."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic


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
