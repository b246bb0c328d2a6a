"""Progress reports while files are pulled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from peerstage.records import Entry, Progress
from peerstage.target.base import IncomingFile, ListingChanges, Target
from peerstage.transport.base import Transport, TransportWrapper
from peerstage.transport.counting import CountingTarget

_INTERVAL = 0.1


class ProgressTransport(TransportWrapper):
    """Calls *on_progress* when the listing is known, at the end, and at most ten times a second in between.

    It does so in the thread that called `pull`, and passes on what *on_progress* raises, which ends the run.
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
        progress_target = _ProgressTarget(target, self._transport, self._on_progress, self._clock)
        self._transport.pull(directory, progress_target)
        progress_target.report()


class _ProgressTarget(CountingTarget):
    """Reports what it counts; the totals are those of the files that are fetched.

    A listing is admitted before the first byte arrives, perhaps in several parts: nothing is reported until then.
    """

    def __init__(
        self,
        target: Target,
        transport: Transport,
        on_progress: Callable[[Progress], object],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(target, self._report_if_due)
        self._transport = transport
        self._on_progress = on_progress
        self._clock = clock
        self._due = clock()
        self._sizes: dict[bytes, int] = {}
        self._total_size = 0
        self._fetched_again = 0

    def admit(self, entries: Sequence[Entry]) -> Sequence[IncomingFile]:
        files = super().admit(entries)
        for entry in (file.entry for file in files):
            self._total_size += entry.size - self._sizes.get(entry.name, 0)
            self._sizes[entry.name] = entry.size
        return files

    def recheck(self, changes: ListingChanges) -> Sequence[IncomingFile]:
        files = super().recheck(changes)
        self._fetched_again += len(files)
        self._total_size += sum(file.entry.size for file in files)
        return files

    def report(self) -> None:
        """Report now."""
        self._due = self._clock() + _INTERVAL
        is_listed = self._transport.capabilities.can_list
        totals = (len(self._sizes) + self._fetched_again, self._total_size) if is_listed else (None, None)
        self._on_progress(Progress(self.files, totals[0], self.bytes, totals[1]))

    def _report_if_due(self) -> None:
        if self._clock() >= self._due:
            self.report()
