"""How many bytes to have in flight: enough to fill the line, and no more than that."""

from __future__ import annotations

import time
from collections.abc import Callable

from peerstage.records import MIB

#: Never less than this: best on a loopback or a local network, where more only fills the server's buffers.
FLOOR = 4 * MIB
#: Never more than this: memory for one peer is bounded.
CEILING = 24 * MIB


class Window:
    """Sizes what is in flight to twice the bandwidth-delay product, as it is measured, up and down.

    Attributes:
        size: Bytes to have in flight now.
    """

    __slots__ = ("_bytes", "_clock", "_round_trip", "_since", "size")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = FLOOR
        self._clock = clock
        self._round_trip = float("inf")
        self._bytes = 0
        self._since = clock()

    def now(self) -> float:
        """The time, to be given to `arrived` with the reply to what is asked now."""
        return self._clock()

    def arrived(self, size: int, asked_at: float) -> None:
        """Say that *size* bytes came which were asked for at *asked_at*."""
        now = self._clock()
        self._round_trip = min(self._round_trip, now - asked_at)
        self._bytes += size
        elapsed = now - self._since
        if elapsed < max(0.02, self._round_trip):
            return
        product = self._bytes / elapsed * self._round_trip
        self.size = int(min(CEILING, max(FLOOR, 2 * product)))
        self._bytes = 0
        self._since = now
