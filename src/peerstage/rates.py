"""Two token buckets: one limits the bandwidth, the other enforces a minimum rate."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from peerstage.documented import Documented
from peerstage.forks import call_in_forked_child
from peerstage.records import KIB, Limits

#: Seconds of unused bandwidth that are saved, to make up for a pause; longer pauses would be followed by a burst.
_MAX_SAVED = 0.1
#: Seconds: shorter waits are put off until they add up to this.
_MIN_DELAY = 0.005
#: Seconds that a portion lasts at the full rate, and its least bytes. Larger ones would make each of many peers wait
#: for long; smaller ones would cost wake-ups.
_PORTION_SECONDS = 0.02
_MIN_PORTION = KIB
#: Seconds for which the bytes in flight last if the round trip is short, and their least number, unless that lasts for
#: more than a second: many small packets cost more than few large ones.
_MIN_SECONDS_IN_FLIGHT = 1 / 4
_MIN_IN_FLIGHT = 32 * KIB

_lock = threading.Lock()


class BandwidthLimit(metaclass=Documented):
    """Limits the bytes that are received from one peer, or from several together, to *rate* a second on average.

    Peers that share it (see `RemotePeer.bandwidth`) may work in different threads. Those that want more than there is
    get equal shares of what the others leave; one alone gets all of it. Processes cannot share it: after a fork, the
    child has a limit of its own.

    Args:
        rate: Bytes per second, an integer above 0.
        clock: Returns monotonic seconds.

    Raises:
        ValueError: If the rate is invalid.
    """

    # A token bucket. Bytes are taken from it after they were received. That may overdraw it; the caller waits until
    # that is paid back. While peers compete, each takes portions of the same size, one at a time: this is a round
    # robin, whatever the size of the chunks in which their data arrives.

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        if isinstance(rate, bool) or not isinstance(rate, int) or rate <= 0:
            raise ValueError(f"A bandwidth limit must be an integer above 0, in bytes per second, not {rate!r}.")
        self.rate = rate
        self._portion = max(_MIN_PORTION, int(rate * _PORTION_SECONDS))
        self._clock = clock
        self._paid_at = clock()

    def __repr__(self) -> str:
        return f"BandwidthLimit({self.rate})"

    def take(self, received: int) -> tuple[int, float]:
        """Take a part of *received* bytes, and return its size, and how many seconds to wait before taking the rest.

        The size is 0 if there is less than a portion, and others wait: it is to be taken with what is received next.
        """
        with _lock:
            now = self._clock()
            others_wait = self._paid_at - now >= _MIN_DELAY
            size = 0 if others_wait and received < self._portion else min(received, self._portion)
            if not size:
                return 0, 0.0
            self._paid_at = max(self._paid_at, now - _MAX_SAVED) + size / self.rate
            delay = self._paid_at - now
        return size, delay if delay >= _MIN_DELAY else 0.0

    def max_in_flight(self, round_trip: float = 0.0) -> int:
        """Return how many bytes the peer may send ahead, which it does as fast as the line allows.

        They last for a quarter of a second, or for two round trips, and for one second at most. The fewer they are, the
        smoother the rate; fewer than pass in one round trip would lower it.

        Args:
            round_trip: The time from a request to its reply, in seconds, as far as it is known.
        """
        seconds = max(_MIN_SECONDS_IN_FLIGHT, min(2 * round_trip, 1.0))
        return min(self.rate, max(_MIN_IN_FLIGHT, int(self.rate * seconds)))

    def fair_in_flight(self, round_trip: float) -> int:
        """Return the part of `max_in_flight` that is due to one peer while others wait for their portions."""
        waiting = int(max(0.0, self._paid_at - self._clock()) * self.rate / self._portion)
        return max(min(self.rate, _MIN_IN_FLIGHT), self.max_in_flight(round_trip) // (1 + waiting))


class Throttle:
    """One run's use of a bandwidth limit, and how long it has waited for it.

    Args:
        bandwidth: The limit, which other runs may share; None for none.
        clock: Returns monotonic seconds.
    """

    def __init__(self, bandwidth: BandwidthLimit | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._bandwidth = bandwidth
        self._clock = clock
        self._received = 0
        self._not_taken = 0
        self._waited = 0.0
        self._waiting_since: float | None = None

    def take(self, size: int, sleep: Callable[[float], object]) -> None:
        """Account for *size* bytes that were received; call *sleep* with the seconds to wait, perhaps repeatedly."""
        if self._bandwidth is None:
            return
        self._received += size
        self._not_taken += size
        taken = 1
        while taken:
            taken, delay = self._bandwidth.take(self._not_taken)
            self._not_taken -= taken
            if delay:
                with self.waiting():
                    sleep(delay)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block. Blocks must not overlap."""
        self._waiting_since = self._clock()
        try:
            yield
        finally:
            self._waited, self._waiting_since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Seconds waited so far."""
        since = self._waiting_since
        return self._waited + (self._clock() - since if since is not None else 0.0)

    def seconds_for(self, received: int) -> float:
        """Return how long the limit has kept *received* bytes waiting, or may have, if others enforce it.

        That is their part of the time waited so far, or the time that they take at the full rate, and a second for
        bytes that are on their way.
        """
        if self._bandwidth is None:
            return 0.0
        part = min(1.0, received / self._received) if self._received else 0.0
        return max(received / self._bandwidth.rate, self.seconds * part) + 1.0


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


def _renew_lock() -> None:
    """In a forked child, forget the lock: another thread of the parent may have held it."""
    global _lock
    _lock = threading.Lock()


call_in_forked_child(_renew_lock)
