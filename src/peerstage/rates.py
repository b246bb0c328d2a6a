"""Two token buckets: one limits the bandwidth, the other enforces a minimum rate."""

from __future__ import annotations

import time
from collections.abc import Callable

from peerstage.records import KIB, Limits

#: Seconds of unused bandwidth that are saved, to make up for a pause; longer pauses would be followed by a burst.
_MAX_SAVED = 0.1
#: Seconds: shorter waits are put off until they add up to this.
_MIN_DELAY = 0.005
#: Seconds for which the bytes in flight last if the round trip is short, and their least number, unless that lasts for
#: more than a second: many small packets cost more than few large ones.
_MIN_SECONDS_IN_FLIGHT = 1 / 4
_MIN_IN_FLIGHT = 32 * KIB


class BandwidthLimit:
    """A token bucket that limits received bytes to *rate* a second.

    Bytes are taken from it after they were received. That may overdraw it; the caller waits until that is paid back.

    Args:
        rate: Bytes per second.
        clock: Returns monotonic seconds.
    """

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._paid_at = clock()

    def take(self, size: int) -> float:
        """Take *size* bytes, and return how many seconds to wait before receiving more."""
        now = self._clock()
        self._paid_at = max(self._paid_at, now - _MAX_SAVED) + size / self.rate
        delay = self._paid_at - now
        return delay if delay >= _MIN_DELAY else 0.0

    def max_in_flight(self, round_trip: float = 0.0) -> int:
        """Return how many bytes the peer may send ahead, which it does as fast as the line allows.

        They last for a quarter of a second, or for two round trips, and for one second at most. The fewer they are, the
        smoother the rate; fewer than pass in one round trip would lower it.

        Args:
            round_trip: The time from a request to its reply, in seconds, as far as it is known.
        """
        seconds = max(_MIN_SECONDS_IN_FLIGHT, min(2 * round_trip, 1.0))
        return min(self.rate, max(_MIN_IN_FLIGHT, int(self.rate * seconds)))


class MinRateCheck:
    """A token bucket of time that enforces `Limits.min_rate`.

    Each byte adds the time that it takes at that rate. The bucket holds at most `Limits.grace`, and is full at first.
    Times are seconds spent waiting for the peer.
    """

    def __init__(self, limits: Limits, now: float = 0.0) -> None:
        self._grace = limits.grace
        self._seconds_per_byte = 1 / limits.min_rate
        self._received = 0
        self._good_until = now + self._grace

    def is_too_slow(self, received: int, now: float) -> bool:
        """Return whether the bucket is empty after *received* bytes in all; call it regularly."""
        earned = (received - self._received) * self._seconds_per_byte
        self._received = received
        self._good_until = min(now + self._grace, self._good_until + earned)
        return now > self._good_until
