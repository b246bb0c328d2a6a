"""Progress reports while files are pulled."""

from __future__ import annotations

import time
from collections.abc import Callable

from peerstage.records import Progress
from peerstage.target.base import Target
from peerstage.transport.base import Transport, TransportWrapper
from peerstage.transport.counting import CountingTarget

_INTERVAL = 0.1


class ProgressTransport(TransportWrapper):
    """Calls *on_progress* during a pull, at most ten times a second, in the thread that called `pull`.

    An exception that *on_progress* raises ends the run and is passed on unchanged.
    """

    def __init__(
        self,
        transport: Transport,
        on_progress: Callable[[Progress], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(transport)
        self._on_progress = on_progress
        self._clock = clock

    def pull(self, directory: bytes, target: Target) -> None:
        progress_target = _ProgressTarget(target, self._on_progress, self._clock)
        self._transport.pull(directory, progress_target)
        progress_target.report()


class _ProgressTarget(CountingTarget):
    """Reports what it counts."""

    def __init__(self, target: Target, on_progress: Callable[[Progress], object], clock: Callable[[], float]) -> None:
        super().__init__(target, self._report_if_due)
        self._on_progress = on_progress
        self._clock = clock
        self._due = clock()
        self._expected: tuple[int | None, int | None] = (None, None)

    def expect(self, files: int, size: int) -> None:
        super().expect(files, size)
        self._expected = (files, size)
        self.report()

    def report(self) -> None:
        """Report now."""
        self._due = self._clock() + _INTERVAL
        self._on_progress(Progress(self.files, self._expected[0], self.bytes, self._expected[1]))

    def _report_if_due(self) -> None:
        if self._clock() >= self._due:
            self.report()
