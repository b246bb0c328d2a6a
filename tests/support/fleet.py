"""Helpers for tests of fleets: a clock that passes only while a run waits."""

from __future__ import annotations

import queue
from typing import Any

from peerstage.fleet.schedule import Clock


class FrozenClock(Clock):
    """A clock that stands still but for waits and `advance`.

    Attributes:
        wall: Seconds since the epoch, which a test may set.
    """

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self.wall = wall
        self._monotonic = 1000.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self._monotonic

    def wait(self, messages: queue.SimpleQueue[Any], seconds: float) -> Any:
        """Return a message that is there; else let the time pass at once."""
        try:
            return messages.get_nowait()
        except queue.Empty:
            self.advance(seconds)
            return None

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self.wall += seconds
        self._monotonic += seconds
