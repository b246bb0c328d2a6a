"""Progress: what lands is counted on its way, and told to whoever asked, ten times a second at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from peerstage.errors import StageError
from peerstage.landing.base import Buffer, Landing, Slot
from peerstage.records import Entry, Progress
from peerstage.transport.base import Transport

_INTERVAL = 0.1


class Observing(Transport):
    """Tells *on_progress* how far a pull has come, in the thread that called it.

    What *on_progress* raises ends the run and comes out as it is.
    """

    def __init__(
        self,
        transport: Transport,
        on_progress: Callable[[Progress], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capabilities = transport.capabilities
        self._transport = transport
        self._on_progress = on_progress
        self._clock = clock

    @property
    def host_key(self) -> str | None:  # type: ignore[override]
        return self._transport.host_key

    @property
    def retries(self) -> int:  # type: ignore[override]
        return self._transport.retries

    def pull(self, directory: bytes, landing: Landing) -> None:
        counting = _CountingLanding(landing, self._on_progress, self._clock)
        self._transport.pull(directory, counting)
        counting.tell()

    def exists(self, path: bytes) -> bool:
        return self._transport.exists(path)

    def touch(self, path: bytes) -> None:
        self._transport.touch(path)

    def close(self) -> None:
        self._transport.close()


class _CountingLanding(Landing):
    """Passes everything on, and counts it."""

    def __init__(self, landing: Landing, on_progress: Callable[[Progress], object], clock: Callable[[], float]) -> None:
        self._landing = landing
        self._on_progress = on_progress
        self._clock = clock
        self._next = clock()
        self._expected: tuple[int | None, int | None] = (None, None)
        self._slots: dict[bytes, _CountingSlot] = {}
        self._files = 0
        self._bytes = 0

    def expect(self, files: int, size: int) -> None:
        self._landing.expect(files, size)
        self._expected = (files, size)
        self.tell()

    def open(self, entry: Entry) -> Slot:
        slot = self._landing.open(entry)
        known = self._slots.get(entry.name)
        if known is None or known.slot is not slot:
            known = self._slots[entry.name] = _CountingSlot(slot, self)
        return known

    def refuse(self, name: bytes, error: StageError) -> None:
        self._landing.refuse(name, error)

    def tell(self) -> None:
        """Tell now."""
        self._next = self._clock() + _INTERVAL
        self._on_progress(Progress(self._files, self._expected[0], self._bytes, self._expected[1]))

    def count(self, files: int, size: int) -> None:
        """Count what has come, and tell if it is time."""
        self._files += files
        self._bytes += size
        if self._clock() >= self._next:
            self.tell()


class _CountingSlot(Slot):
    __slots__ = ("_landing", "slot")

    def __init__(self, slot: Slot, landing: _CountingLanding) -> None:
        self.slot = slot
        self._landing = landing

    @property
    def is_finished(self) -> bool:
        return self.slot.is_finished

    def missing(self) -> Sequence[tuple[int, int]]:
        return self.slot.missing()

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self.slot.write(offset, buffers)
        self._landing.count(0, sum(len(buffer) for buffer in buffers))

    def finish(self) -> None:
        self.slot.finish()
        self._landing.count(1, 0)

    def fail(self, error: StageError) -> None:
        self.slot.fail(error)
        self._landing.count(1, 0)
