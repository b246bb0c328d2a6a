"""Progress: what lands is counted on its way, and told to whoever asked, ten times a second at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from peerstage.errors import StageError
from peerstage.landing.base import Buffer, Landing, Slot
from peerstage.records import Capabilities, Entry, Ownership, Progress
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
        self._transport = transport
        self._on_progress = on_progress
        self._clock = clock

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self._transport.capabilities

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

    def execute(self, command: bytes, said: Callable[[Buffer], object]) -> int | None:
        return self._transport.execute(command, said)

    def close(self) -> None:
        self._transport.close()


class _CountingLanding(Landing):
    """Passes everything on, and counts it."""

    def __init__(self, landing: Landing, on_progress: Callable[[Progress], object], clock: Callable[[], float]) -> None:
        self.wants_content = landing.wants_content
        self._landing = landing
        self._on_progress = on_progress
        self._clock = clock
        self._next = clock()
        self._expected: tuple[int | None, int | None] = (None, None)
        self._unfinished: dict[bytes, int] = {}
        self._files = 0
        self._bytes = 0

    def expect(self, files: int, size: int) -> None:
        self._landing.expect(files, size)
        self._expected = (files, size)
        self.tell()

    def open(self, entry: Entry) -> Slot:
        slot = self._landing.open(entry)
        if not slot.is_finished:
            kept = entry.size - sum(end - start for start, end in slot.missing())
            self._bytes -= self._unfinished.get(entry.name, 0) - kept  # what was begun and is begun anew comes again
            self._unfinished[entry.name] = kept
        return _CountingSlot(slot, entry.name, self)

    def refuse(self, name: bytes, error: StageError) -> None:
        self._landing.refuse(name, error)

    def workspace(self) -> str:
        return self._landing.workspace()

    def hand_over(self, owner: Ownership) -> int:
        return self._landing.hand_over(owner)

    def adopt(self, name: bytes, check: Callable[[], object] = lambda: None) -> int:
        size = self._landing.adopt(name, check)
        self._files += 1
        self._bytes += size
        self._tell_in_time()
        return size

    def tell(self) -> None:
        """Tell now."""
        self._next = self._clock() + _INTERVAL
        self._on_progress(Progress(self._files, self._expected[0], self._bytes, self._expected[1]))

    def came(self, name: bytes, size: int) -> None:
        """Count bytes of a file."""
        if name in self._unfinished:
            self._unfinished[name] += size
        self._bytes += size
        self._tell_in_time()

    def settled(self, name: bytes) -> None:
        """Count a file."""
        if self._unfinished.pop(name, None) is not None:
            self._files += 1
            self._tell_in_time()

    def _tell_in_time(self) -> None:
        if self._clock() >= self._next:
            self.tell()


class _CountingSlot(Slot):
    __slots__ = ("_landing", "_name", "_slot")

    def __init__(self, slot: Slot, name: bytes, landing: _CountingLanding) -> None:
        self._slot = slot
        self._name = name
        self._landing = landing

    @property
    def is_finished(self) -> bool:
        return self._slot.is_finished

    def missing(self) -> Sequence[tuple[int, int]]:
        return self._slot.missing()

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._slot.write(offset, buffers)
        self._landing.came(self._name, sum(len(buffer) for buffer in buffers))

    def finish(self) -> None:
        self._slot.finish()
        self._landing.settled(self._name)

    def fail(self, error: StageError) -> None:
        self._slot.fail(error)
        self._landing.settled(self._name)
