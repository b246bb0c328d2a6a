"""How many bytes to have in flight: enough to fill the line, and no more than it delivers in good time."""

from __future__ import annotations

import time
from collections.abc import Callable

from peerstage.records import KIB, MIB, Limits

#: What a fast line gets although its bandwidth-delay product is less: best on a loopback or a local network, where the
#: two ends take turns. More only fills the server's buffers.
LOCAL = 4 * MIB
#: Never more than this: memory for one peer is bounded.
CEILING = 24 * MIB

#: The part of `Limits.reply_timeout` within which everything in flight is to arrive.
_IN_TIME = 1 / 4
_SMALLEST = 8 * KIB
#: Seconds that a measurement takes at least, but for the first one.
_MEASURE = 0.02


class Window:
    """Sizes what is in flight to twice the bandwidth-delay product, as it is measured, up and down.

    It holds no more than the line delivers in a quarter of `Limits.reply_timeout`: at first at the lowest rate that is
    tolerated, and from the first measurement on at the measured rate.

    Attributes:
        size: Bytes to have in flight now.
    """

    __slots__ = ("_bytes", "_clock", "_in_time", "_least", "_measure", "_round_trip", "_since", "size")

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_time = limits.reply_timeout * _IN_TIME
        self._least = int(min(CEILING, max(_SMALLEST, limits.min_rate * self._in_time)))
        self.size = self._least
        self._clock = clock
        self._round_trip = float("inf")
        self._bytes = 0
        self._since: float | None = None
        self._measure = 0.0

    def now(self) -> float:
        """The time, to be given to `arrived` with the reply to what is asked now."""
        now = self._clock()
        if self._since is None:
            self._since = now
        return now

    @property
    def read_bytes(self) -> int:
        """Bytes that one request may ask for: two of them fill the window."""
        return self.size // 2

    def arrived(self, size: int, asked_at: float) -> None:
        """Say that *size* bytes came which were asked for at *asked_at*."""
        now = self._clock()
        since = asked_at if self._since is None else self._since
        self._round_trip = min(self._round_trip, now - asked_at)
        self._bytes += size
        elapsed = now - since
        if elapsed <= 0 or elapsed < max(self._measure, self._round_trip):
            return
        rate = self._bytes / elapsed
        fills_the_line = max(LOCAL, 2 * rate * self._round_trip)
        self.size = int(min(CEILING, max(self._least, min(fills_the_line, rate * self._in_time))))
        self._bytes = 0
        self._since = now
        self._measure = _MEASURE
