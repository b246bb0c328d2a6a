"""Counts the files and bytes that a target receives, for progress and for the deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peerstage.errors import StageError
from peerstage.records import Entry, Ownership
from peerstage.target.base import (
    Buffer,
    CommandTarget,
    IncomingFile,
    ListingChanges,
    Selection,
    Target,
    require_command_target,
)
from peerstage.target.ranges import Ranges


class CountingTarget(CommandTarget):
    """Delegates to *target*, and counts the bytes that it has.

    Bytes that arrive again after a reconnect count once; those of a file that fails or starts over are subtracted.

    Args:
        target: The target of the files.
        on_change: Called after each change.

    Attributes:
        files: Files that are complete or have failed.
        bytes: Bytes that the target has.
        high_water: The highest sum of *files* and *bytes* so far, without those bytes that an earlier run has kept.
    """

    def __init__(self, target: Target, on_change: Callable[[], object] = lambda: None) -> None:
        self.selection = target.selection
        self.verifies_stability = target.verifies_stability
        self.files = 0
        self.bytes = 0
        self.high_water = 0
        self._target = target
        self._on_change = on_change
        self._unfinished: dict[bytes, int] = {}  # bytes of each file that has some
        self._kept: dict[bytes, int] = {}
        self._all_kept = 0

    def admit(self, entries: Sequence[Entry]) -> Sequence[IncomingFile]:
        files = self._target.admit(entries)
        if self.selection is Selection.NONE:
            return files
        return [self._begin(file) for file in files]

    def recheck(self, changes: ListingChanges) -> Sequence[IncomingFile]:
        """See `Target.recheck`. A file that is fetched again counts again."""
        return [self._begin(file) for file in self._target.recheck(changes)]

    def _begin(self, file: IncomingFile) -> IncomingFile:
        name = file.entry.name
        received, count = _received_ranges(file)
        before = self._unfinished.pop(name, 0)
        if not count:
            self._all_kept -= self._kept.pop(name, 0)
        elif not before:
            self._kept[name] = count
            self._all_kept += count
        self.bytes += count - before  # a file that starts over has nothing
        if count:
            self._unfinished[name] = count
        return _CountingFile(file, received, self)

    def refuse(self, name: bytes, error: StageError) -> None:
        self._target.refuse(name, error)

    def create_workspace(self) -> str:
        return require_command_target(self._target).create_workspace()

    def create_workspace_for(self, owner: Ownership) -> int:
        return require_command_target(self._target).create_workspace_for(owner)

    def import_file(self, name: bytes, check: Callable[[], object] = lambda: None) -> int:
        size = require_command_target(self._target).import_file(name, check)
        self._add(1, size)
        return size

    def count_bytes(self, name: bytes, size: int) -> None:
        """Count *size* new bytes of a file."""
        self._unfinished[name] = self._unfinished.get(name, 0) + size
        self._add(0, size)

    def count_file(self, name: bytes, *, has_failed: bool = False) -> None:
        """Count a file that is complete or has failed; the bytes of a failed one are subtracted."""
        size = self._unfinished.pop(name, 0)
        kept = self._kept.pop(name, 0)
        if has_failed:
            self._all_kept -= kept
        self._add(1, -size if has_failed else 0)

    def count_dropped(self, name: bytes, size: int) -> None:
        """Count no longer the first *size* bytes of a file, which were of another version."""
        self._unfinished[name] = self._unfinished.get(name, 0) - size
        self._all_kept -= self._kept.pop(name, 0)
        self._add(0, -size)

    def _add(self, files: int, size: int) -> None:
        self.files += files
        self.bytes += size
        self.high_water = max(self.high_water, self.bytes - self._all_kept + self.files)
        self._on_change()


class _CountingFile(IncomingFile):
    """Counts each byte of a file once, although some arrive again, and over SCP all of them."""

    __slots__ = ("_counting", "_file", "_is_resumed", "_received", "entry")

    def __init__(self, file: IncomingFile, received: Ranges | None, counting: CountingTarget) -> None:
        self.entry = file.entry
        self._file = file
        self._received = received
        self._is_resumed = received is not None
        self._counting = counting

    @property
    def is_finished(self) -> bool:
        return self._file.is_finished

    def missing(self) -> Sequence[tuple[int, int]]:
        missing = self._file.missing()
        if self._is_resumed and self._received is not None and any(self._received.overlaps(*pair) for pair in missing):
            before = self._received.size
            self._received, count = _ranges_beside(missing, self.entry.size)
            self._counting.count_dropped(self.entry.name, before - count)
        return missing

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._file.write(offset, buffers)
        if self._received is None:
            self._received = Ranges()
        self._counting.count_bytes(self.entry.name, self._received.add(offset, offset + sum(map(len, buffers))))

    def finish(self) -> None:
        if not self._file.is_finished:
            self._file.finish()
            self._received = None  # a transport may keep every file to the end
            self._counting.count_file(self.entry.name)

    def fail(self, error: StageError) -> None:
        if not self._file.is_finished:
            self._file.fail(error)
            self._received = None
            self._counting.count_file(self.entry.name, has_failed=True)


def _received_ranges(file: IncomingFile) -> tuple[Ranges | None, int]:
    """Return the ranges of *file* that need not be fetched, and their number of bytes; None if there are none."""
    size, missing = file.entry.size, file.missing()
    if not size or tuple(missing) == ((0, size),):  # most files: there may be a hundred thousand
        return None, 0
    return _ranges_beside(missing, size)


def _ranges_beside(missing: Sequence[tuple[int, int]], size: int) -> tuple[Ranges, int]:
    """Return the ranges below *size* that are not *missing*, and their number of bytes."""
    received, position, count = Ranges(), 0, 0
    for start, end in (*missing, (size, size)):
        count += received.add(position, start)
        position = end
    return received, count
