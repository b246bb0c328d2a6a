"""Threads that sleep in simulated time: one runs at a time, and the clock moves on when all of them sleep."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence


class SimulatedTime:
    """A clock, and threads that sleep by it, in the same order in every run.

    Attributes:
        now: The time in seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._sleeping: list[tuple[float, int, threading.Event]] = []

    def __call__(self) -> float:
        return self.now

    def run(self, works: Sequence[Callable[[], object]]) -> None:
        """Do *works* in a thread each, and return when all are done; raise what any of them raised."""
        failures: list[BaseException] = []

        def run_one(work: Callable[[], object], may_start: threading.Event) -> None:
            may_start.wait()
            try:
                work()
            except BaseException as exc:
                failures.append(exc)
            finally:
                self._wake_next()

        threads = []
        for work in works:
            heapq.heappush(self._sleeping, (self.now, next(self._order), may_start := threading.Event()))
            threads.append(threading.Thread(target=run_one, args=(work, may_start), daemon=True))
        for thread in threads:
            thread.start()
        self._wake_next()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        for failure in failures:
            raise failure

    def sleep(self, seconds: float) -> None:
        """Sleep, and let the thread run whose time comes first."""
        awake = threading.Event()
        heapq.heappush(self._sleeping, (self.now + seconds, next(self._order), awake))
        self._wake_next()
        awake.wait()

    def _wake_next(self) -> None:
        if self._sleeping:
            at, _, awake = heapq.heappop(self._sleeping)
            self.now = max(self.now, at)
            awake.set()
