"""A clock that a test controls."""

from __future__ import annotations


class Clock:
    """Time that passes only when a test advances it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Advance it."""
        self.now += seconds
