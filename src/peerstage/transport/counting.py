"""Counts the files and bytes that land, for progress and for the deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peerstage.errors import StageError
from peerstage.landing.base import Buffer, Landing, Ranges, Slot
from peerstage.records import Entry, Ownership


class CountingLanding(Landing):
    """Passes everything on to *landing*, and counts the bytes that are there.

    Bytes that come again after a reconnect count once; those of a file that fails or starts over are subtracted.

    Args:
        landing: Where the files go.
        on_change: Called after each change.

    Attributes:
        files: Files that are complete or have failed.
        bytes: Bytes that are there.
        high_water: The highest sum of *files* and *bytes* so far.
    """

    def __init__(self, landing: Landing, on_change: Callable[[], object] | None = None) -> None:
        self.wants_content = landing.wants_content
        self.files = 0
        self.bytes = 0
        self.high_water = 0
        self._landing = landing
        self._on_change = on_change
        self._unfinished: dict[bytes, int] = {}

    def expect(self, files: int, size: int) -> None:
        self._landing.expect(files, size)

    def open(self, entry: Entry) -> Slot:
        slot = self._landing.open(entry)
        if slot.is_finished or not self.wants_content:
            return slot
        here, kept = _ranges_here(slot, entry.size)
        self.bytes -= self._unfinished.get(entry.name, 0) - kept  # a file may start over, with nothing
        self._unfinished[entry.name] = kept
        return _CountingSlot(slot, entry.name, here, self)

    def refuse(self, name: bytes, error: StageError) -> None:
        self._landing.refuse(name, error)

    def workspace(self) -> str:
        return self._landing.workspace()

    def hand_over(self, owner: Ownership) -> int:
        return self._landing.hand_over(owner)

    def adopt(self, name: bytes, check: Callable[[], object] = lambda: None) -> int:
        size = self._landing.adopt(name, check)
        self.files += 1
        self.bytes += size
        self._changed()
        return size

    def count_bytes(self, name: bytes, size: int) -> None:
        """Count *size* new bytes of a file."""
        if name in self._unfinished:
            self._unfinished[name] += size
            self.bytes += size
            self._changed()

    def count_file(self, name: bytes, *, failed: bool = False) -> None:
        """Count a file that is complete or has failed; the bytes of a failed one are discarded."""
        kept = self._unfinished.pop(name, None)
        if kept is not None:
            self.files += 1
            self.bytes -= kept if failed else 0
            self._changed()

    def _changed(self) -> None:
        now = self.bytes + self.files
        if now > self.high_water:
            self.high_water = now
        if self._on_change is not None:
            self._on_change()


class _CountingSlot(Slot):
    """A slot whose bytes are counted, each once: some arrive again, and over SCP all of them."""

    __slots__ = ("_here", "_landing", "_name", "_slot")

    def __init__(self, slot: Slot, name: bytes, here: Ranges, landing: CountingLanding) -> None:
        self._slot = slot
        self._name = name
        self._here = here
        self._landing = landing

    @property
    def is_finished(self) -> bool:
        return self._slot.is_finished

    def missing(self) -> Sequence[tuple[int, int]]:
        return self._slot.missing()

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._slot.write(offset, buffers)
        self._landing.count_bytes(self._name, self._here.add(offset, offset + sum(map(len, buffers))))

    def finish(self) -> None:
        self._slot.finish()
        self._landing.count_file(self._name)

    def fail(self, error: StageError) -> None:
        self._slot.fail(error)
        self._landing.count_file(self._name, failed=True)


def _ranges_here(slot: Slot, size: int) -> tuple[Ranges, int]:
    """Return which ranges of a file of *size* bytes need not be fetched, and how many bytes these are."""
    here, at, kept = Ranges(), 0, 0
    for start, end in (*slot.missing(), (size, size)):
        kept += here.add(at, start)
        at = end
    return here, kept
