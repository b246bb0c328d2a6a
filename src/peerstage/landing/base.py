"""The landing as a transport sees it: small enough to be spoken over a pipe.

A transport announces what it will bring, opens a slot for each file, writes byte ranges in whatever order they arrive,
and finishes or fails each slot. What becomes visible, and when, is none of its business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from peerstage.errors import NotAvailable

if TYPE_CHECKING:
    from peerstage.errors import StageError
    from peerstage.records import Entry, Ownership

Buffer: TypeAlias = "bytes | bytearray | memoryview"

#: Files that are opened on the peer, and not read, where content is not wanted: to see whether they can be read.
MAX_TRIALS = 1000


class Ranges:
    """The set of byte ranges of one file that have arrived: disjoint, sorted, merged."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def holds(self, start: int, end: int) -> bool:
        """Whether all bytes from *start* up to *end* have arrived."""
        at = bisect_right(self._starts, start) - 1
        return start >= end or (at >= 0 and self._ends[at] >= end)

    def add(self, start: int, end: int) -> int:
        """Add the bytes from *start* up to *end*; return how many of them are new."""
        starts, ends = self._starts, self._ends
        if start >= end:
            return 0
        if not ends:
            starts.append(start)
            ends.append(end)
            return end - start
        if ends[-1] == start:  # the common case: replies mostly come in order
            ends[-1] = end
            return end - start
        low = bisect_right(ends, start - 1)
        high = bisect_right(starts, end)
        covered = sum(min(e, end) - max(s, start) for s, e in zip(starts[low:high], ends[low:high], strict=True))
        if low < high:
            starts[low:high], ends[low:high] = [min(start, starts[low])], [max(end, ends[high - 1])]
        else:
            starts.insert(low, start)
            ends.insert(low, end)
        return end - start - covered

    def missing(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges below *size* that have not arrived, as (start, end)."""
        at = 0
        for start, end in zip(self._starts, self._ends, strict=True):
            if start >= size:
                break
            if at < start:
                yield at, start
            at = end
        if at < size:
            yield at, size

    def covers(self, size: int) -> bool:
        """Whether every byte below *size* has arrived, and none beyond it."""
        return (
            size == 0 if not self._ends else (self._starts[0] == 0 and len(self._ends) == 1 and self._ends[0] == size)
        )


class Slot(ABC):
    """One file being landed."""

    __slots__ = ()

    @property
    @abstractmethod
    def is_finished(self) -> bool:
        """Whether `finish` or `fail` has settled this file; it needs nothing more from the peer."""

    @abstractmethod
    def missing(self) -> Sequence[tuple[int, int]]:
        """Return the ranges to fetch, as (start, end): the whole file, or after a lost connection what has not arrived.

        After a lost connection they also hold a few short ranges that have arrived. They are compared when they are
        written; if they differ, the file was replaced on the peer, and all that came over earlier connections is
        missing again. So whoever has fetched these ranges asks once more before it calls `finish`.
        """

    @abstractmethod
    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Take the bytes of *buffers*, one after the other, as the file's content from *offset* on.

        Raises:
            LandingError: They could not be stored; the whole run ends.
            ProtocolError: They reach beyond the size that was promised.
        """

    @abstractmethod
    def finish(self) -> None:
        """Say that the peer has nothing more to give; a slot with ranges missing fails as `IncompleteFile`."""

    @abstractmethod
    def fail(self, error: StageError) -> None:
        """Give this file up; the others are not concerned."""


def ranges_to_fetch(slot: Slot) -> Iterator[tuple[int, int]]:
    """Yield what is missing of a file, and then what has come to be missing while that was written."""
    yield from slot.missing()
    yield from slot.missing()


class Landing(ABC):
    """Where the files of one directory come down.

    Attributes:
        wants_content: Whether the files are wanted, and not only to know what there is. Without, no slot has anything
            missing: a transport opens the file, closes it and finishes the slot. Behind the first `MAX_TRIALS` files,
            slots are finished from the start, so that nothing is opened.
    """

    wants_content: bool = True

    @abstractmethod
    def expect(self, files: int, size: int) -> None:
        """Announce how many files and bytes will come, before the first is opened.

        Raises:
            LandingError: There is no room for them. Nothing has been written.
        """

    @abstractmethod
    def open(self, entry: Entry) -> Slot:
        """Return the slot for *entry*: a new one, or after a lost connection the one that was begun.

        A slot that was begun is continued only if the entry still has the same size and time; else it starts anew.

        Raises:
            LandingError: The local side failed; the whole run ends.
        """

    @abstractmethod
    def refuse(self, name: bytes, error: StageError) -> None:
        """Record that the entry *name* can not be staged and was not read."""

    # For a foreign command, which can not be given slots.

    def workspace(self) -> str:
        """Return the path of an empty directory that a command may fill; it goes with the landing.

        Raises:
            NotAvailable: This landing has none.
            LandingError: It can not be made.
        """
        raise NotAvailable("An rcp command can only be told to copy, which is not what was asked for. Use SFTP or SCP.")

    def hand_over(self, owner: Ownership) -> int:
        """Return a descriptor of an empty directory that belongs to *owner*, for a command that runs as that user.

        It takes the place of the `workspace`. The descriptor stays the landing's.

        Raises:
            NotAvailable, LandingError: As `workspace`.
        """
        self.workspace()
        raise NotAvailable("This landing has no directory to give to another user.")

    def adopt(self, name: bytes, check: Callable[[], object] = lambda: None) -> int:
        """Take the file *name* out of the workspace, as if it had come through a slot; return its size in bytes.

        What is no regular file of the workspace's owner, with one link, is refused.

        Args:
            name: A plain name.
            check: Called now and then if it takes long; what it raises ends the run.

        Raises:
            NotAvailable: As `workspace`.
            LandingError: The local side failed; the whole run ends.
        """
        raise NotAvailable("This landing takes no files of a command.")
