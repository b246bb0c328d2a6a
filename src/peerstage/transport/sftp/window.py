"""The number of bytes to keep in flight: enough to fill the line, and no more than it delivers in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from peerstage.rates import BandwidthLimit
from peerstage.records import KIB, MIB, Limits

#: The least window of a line that delivers it in time, even if its bandwidth-delay product is smaller: fastest on a
#: loopback or a local network, where the two ends take turns. A larger one only fills the server's buffers.
LOCAL_WINDOW = 4 * MIB

_MIN_WINDOW = 8 * KIB
#: The share of `Limits.reply_timeout` within which everything in flight must arrive.
_DRAIN_SHARE = 1 / 4
#: Seconds after which a lower rate replaces the estimate, unless a round trip takes longer.
_MIN_RATE_INTERVAL = 0.02

#: When a request was sent: the time, and how many bytes had arrived by then.
SendMark: TypeAlias = "tuple[float, int]"


class Window:
    """Sizes the bytes in flight to twice the bandwidth-delay product, which it measures continuously.

    The window never exceeds what the line delivers in a quarter of `Limits.reply_timeout`: at `Limits.min_rate` until
    the first reply, then at the measured rate. Each reply yields a sample of the rate: the bytes that arrived since its
    request was sent, over that time. A higher rate counts at once, a lower one after a round trip.

    It never exceeds `Limits.in_flight_bytes`. A bandwidth limit reduces it further, see `BandwidthLimit`.

    Attributes:
        size: The number of bytes to keep in flight now.
    """

    def __init__(
        self, limits: Limits, clock: Callable[[], float] = time.monotonic, *, bandwidth: BandwidthLimit | None = None
    ) -> None:
        self._drain_seconds = limits.reply_timeout * _DRAIN_SHARE
        self._max_size = limits.in_flight_bytes
        self._min_size = int(min(self._max_size, max(_MIN_WINDOW, limits.min_rate * self._drain_seconds)))
        self._bandwidth = bandwidth
        self.size = self._min_size if bandwidth is None else min(self._min_size, bandwidth.fair_in_flight(0.0))
        self._clock = clock
        self._received = 0
        self._round_trip = float("inf")
        self._rate = self._best_sample = 0.0
        self._rate_set_at = 0.0

    @property
    def max_read_length(self) -> int:
        """The number of bytes that one READ may request: two of them fill the window."""
        return self.size // 2

    def mark_send(self) -> SendMark:
        """Return the mark of a request that is sent now, for `record_reply`."""
        return self._clock(), self._received

    def record_reply(self, size: int, sent: SendMark) -> None:
        """Measure by a reply of *size* bytes to a request marked *sent*."""
        sent_at, received_then = sent
        now = self._clock()
        elapsed = now - sent_at
        self._received += size
        if elapsed <= 0:
            return
        self._round_trip = min(self._round_trip, elapsed)
        sample = (self._received - received_then) / elapsed
        self._best_sample = max(self._best_sample, sample)
        if now - self._rate_set_at >= max(_MIN_RATE_INTERVAL, self._round_trip):
            self._rate, self._best_sample, self._rate_set_at = self._best_sample, 0.0, now
        elif sample > self._rate:
            self._rate = sample
        else:
            return
        fills_line = max(LOCAL_WINDOW, 2 * self._rate * self._round_trip)
        self.size = int(min(self._max_size, max(self._min_size, min(fills_line, self._rate * self._drain_seconds))))
        if self._bandwidth is not None:
            self.size = min(self.size, self._bandwidth.fair_in_flight(self._round_trip))
