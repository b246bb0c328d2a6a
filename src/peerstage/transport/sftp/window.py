"""How many bytes to have in flight: enough to fill the line, and no more than it delivers in good time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from peerstage.records import KIB, MIB, Limits

#: What a fast line gets although its bandwidth-delay product is less: best on a loopback or a local network, where the
#: two ends take turns. More only fills the server's buffers.
LOCAL = 4 * MIB
#: Never more than this: memory for one peer is bounded.
CEILING = 24 * MIB

#: The part of `Limits.reply_timeout` within which everything in flight is to arrive.
_IN_TIME = 1 / 4
_SMALLEST = 8 * KIB
#: Seconds after which a lower rate is believed, if no round trip takes longer.
_INTERVAL = 0.02

#: When a request was made: the time, and the bytes that had arrived by then.
Mark: TypeAlias = "tuple[float, int]"


class Window:
    """Sizes what is in flight to twice the bandwidth-delay product, as it is measured, up and down.

    It holds no more than the line delivers in a quarter of `Limits.reply_timeout`: at first at the lowest rate that is
    tolerated, and from the first answer on at the measured rate. Each answer gives a sample of that: the bytes that
    arrived since it was asked for, by the time that took. A higher rate counts at once, a lower one after a round trip.

    Attributes:
        size: Bytes to have in flight now.
    """

    __slots__ = ("_best", "_clock", "_in_time", "_least", "_rate", "_received", "_round_trip", "_since", "size")

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_time = limits.reply_timeout * _IN_TIME
        self._least = int(min(CEILING, max(_SMALLEST, limits.min_rate * self._in_time)))
        self.size = self._least
        self._clock = clock
        self._received = 0
        self._round_trip = float("inf")
        self._rate = self._best = 0.0
        self._since = 0.0

    @property
    def read_bytes(self) -> int:
        """Bytes that one request may ask for: two of them fill the window."""
        return self.size // 2

    def mark(self) -> Mark:
        """Return what `arrived` needs with the answer to what is asked for now."""
        return self._clock(), self._received

    def arrived(self, size: int, asked: Mark) -> None:
        """Take note that *size* bytes arrived which were asked for at *asked*."""
        asked_at, received_then = asked
        now = self._clock()
        took = now - asked_at
        self._received += size
        if took <= 0:
            return
        self._round_trip = min(self._round_trip, took)
        rate = (self._received - received_then) / took
        self._best = max(self._best, rate)
        if now - self._since >= max(_INTERVAL, self._round_trip):
            self._rate, self._best, self._since = self._best, 0.0, now
        elif rate > self._rate:
            self._rate = rate
        else:
            return
        fills_the_line = max(LOCAL, 2 * self._rate * self._round_trip)
        self.size = int(min(CEILING, max(self._least, min(fills_the_line, self._rate * self._in_time))))
