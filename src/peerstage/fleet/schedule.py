"""`Schedule`: which peer of a run is asked next, and when; and the clock that runs follow."""

from __future__ import annotations

import datetime
import heapq
import queue
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

#: Connections started per second, at most. At that pace, about six handshakes of 0.1 s overlap; from ten on, an sshd,
#: such as that of a jump host, refuses some (MaxStartups).
STARTS_PER_SECOND = 64.0
#: Seconds until a peer that is not ready is asked again, at first and at most; they double from time to time.
FIRST_PAUSE = 60.0
MAX_PAUSE = 15 * 60.0
#: The share of a pause that chance may take away, so that peers do not come back together.
_JITTER = 0.25
#: A question so many seconds before the end is postponed to the end.
_MIN_PAUSE = 5.0
#: A peer that was asked so many seconds before the end was asked at the end: the two clocks differ a little.
_TOLERANCE = 0.5
#: The end is the next such time of day within twelve hours.
_MAX_SECONDS_TO_END = 12 * 3600.0


class Clock:
    """The time, and waiting for it; tests replace it."""

    def time(self) -> float:
        """Return seconds since the epoch, which a person may set."""
        return time.time()

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def wait(self, messages: queue.SimpleQueue[Any], seconds: float) -> Any:
        """Return the next of *messages*, or None if there is none within *seconds*."""
        try:
            return messages.get(timeout=seconds)
        except queue.Empty:
            return None


def find_end(until: datetime.time | None, started: float) -> float | None:
    """Return when peers are asked for the last time, in seconds since the epoch; None if they are asked once.

    It is the next moment, within twelve hours, at which a clock on the wall shows *until*. A time that the clock skips
    that day, because it is set forward, is one hour later; of one that occurs twice, the first that is to come.

    Args:
        until: The local time of day, or that of its own time zone.
        started: When the run started, in seconds since the epoch.
    """
    if until is None:
        return None
    today = datetime.datetime.fromtimestamp(started, until.tzinfo).date()
    moments = []
    for days in (0, 1):
        first = datetime.datetime.combine(today + datetime.timedelta(days=days), until.replace(fold=0)).timestamp()
        second = datetime.datetime.combine(today + datetime.timedelta(days=days), until.replace(fold=1)).timestamp()
        moments += [first, max(first, second)]  # in the hour that is skipped, the second is the earlier one
    return min((at for at in moments if started < at <= started + _MAX_SECONDS_TO_END), default=None)


class Schedule:
    """The peers of a run that are yet to be asked, in the order in which they are due.

    Every peer is asked once before any is asked again.

    Args:
        names: The names of the peers, in the plan's order.
        end: When they are asked for the last time, in seconds since the epoch; None to ask them once.
        clock: The clock.
        jitter: Returns a random number from 0 to 1.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        end: float | None = None,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock or Clock()
        self._end = end
        self._jitter = jitter
        self._order = {name: number for number, name in enumerate(names)}
        self._due = [(0.0, number, name) for name, number in self._order.items()]
        self._pauses: dict[str, float] = {}
        self._next_start = 0.0

    def __bool__(self) -> bool:
        return bool(self._due)

    def next_due(self) -> str | None:
        """Return the peer that is to be asked now; None if none is due, or the pace forbids it."""
        is_due = self._due and max(self._due[0][0], self._next_start) <= self._clock.monotonic()
        return self._due[0][2] if is_due else None

    def pop(self) -> None:
        """Remove the peer that `next_due` returned: it is being asked."""
        heapq.heappop(self._due)
        self._next_start = self._clock.monotonic() + 1 / STARTS_PER_SECOND

    def seconds_to_next(self) -> float | None:
        """Return the seconds until a peer is due; None if there is no other peer."""
        if not self._due:
            return None
        return max(0.0, max(self._due[0][0], self._next_start) - self._clock.monotonic())

    def ask_again(self, name: str) -> bool:
        """Have a peer that is not ready asked again, at the end for the last time; return False after that."""
        left = 0.0 if self._end is None else self._end - self._clock.time()
        if left < _TOLERANCE:
            return False
        pause = self._pauses.get(name, FIRST_PAUSE)
        self._pauses[name] = min(2 * pause, MAX_PAUSE)
        pause *= 1 - _JITTER * self._jitter()
        if pause > left - _MIN_PAUSE:
            pause = left
        heapq.heappush(self._due, (self._clock.monotonic() + pause, self._order[name], name))
        return True

    def put_back(self, name: str) -> None:
        """Have a peer asked that could not be asked after all, before the others."""
        heapq.heappush(self._due, (0.0, self._order[name], name))

    def drain(self) -> Iterator[str]:
        """Remove and yield every peer that is yet to be asked, in the plan's order."""
        waiting, self._due = sorted(number_and_name[1:] for number_and_name in self._due), []
        yield from (name for _, name in waiting)
