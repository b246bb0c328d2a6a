"""One file being landed in the private directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from peerstage.errors import IncompleteFile, ProtocolError, StageError, escape
from peerstage.landing import durability
from peerstage.landing.base import Buffer, Ranges, Slot
from peerstage.landing.store import Store
from peerstage.records import Entry, FileResult

_IOV_MAX = 512


class FileSlot(Slot):
    """A file in the private directory, named by a number until it is published."""

    __slots__ = (
        "_created",
        "_dirty",
        "_error",
        "_fd",
        "_finished",
        "_ranges",
        "_store",
        "_writeback",
        "entry",
        "mode",
        "place",
        "received",
    )

    def __init__(self, store: Store, entry: Entry, place: str, *, writeback: bool) -> None:
        self.entry = entry
        self.place = place
        self.received = 0
        self.mode: int | None = None
        self._writeback = writeback
        self._store = store
        self._created = False
        self._ranges: Ranges | None = None
        self._fd = -1
        self._dirty = 0
        self._finished = False
        self._error: StageError | None = None

    @property
    def is_finished(self) -> bool:
        return self._finished or self._error is not None

    @property
    def is_ready(self) -> bool:
        """Whether the file is complete and may be published."""
        return self._finished and self._error is None

    def missing(self) -> Sequence[tuple[int, int]]:
        if self._ranges is None:
            return ((0, self.entry.size),) if self.entry.size and not self._finished else ()
        return tuple(self._ranges.missing(self.entry.size))

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = sum(len(buffer) for buffer in buffers)
        end = offset + length
        if offset < 0 or end > self.entry.size:
            raise ProtocolError("More bytes came than were promised.", path=self.entry.name)
        try:
            _pwrite_all(self._descriptor(), buffers, offset, length)
        except OSError as exc:
            raise self._store.error(exc) from exc
        if self._ranges is None:
            self._ranges = Ranges()
        self.received += self._ranges.add(offset, end)
        self._dirty += length
        if self._writeback and self._dirty >= durability.WRITEBACK_BYTES:
            durability.start_writeback(self._descriptor(), 0, 0)
            self._dirty = 0

    def finish(self) -> None:
        if self.is_finished:
            return
        size = self.entry.size
        if not (self._ranges.covers(size) if self._ranges is not None else size == 0):
            self.fail(IncompleteFile(f"{self.received} of {size} bytes arrived. Stage again once the peer is well."))
            return
        try:
            on_disk = os.fstat(self._descriptor()).st_size
            self.close()
        except OSError as exc:
            raise self._store.error(exc) from exc
        if on_disk != size:
            self.fail(IncompleteFile(f"{on_disk} of {size} bytes are on the disk. Stage again."))
            return
        self._finished = True
        self._ranges = None

    def fail(self, error: StageError) -> None:
        if self._error is None:
            self._error = error
            self.discard()

    def discard(self) -> None:
        """Forget what has come."""
        with contextlib.suppress(OSError):  # what the disk says of these bytes does not matter any more
            self.close()
        if self._created:
            with contextlib.suppress(OSError):
                os.unlink(self.place, dir_fd=self._store.fd)
        self._created = False
        self._ranges = None
        self.received = 0

    def close(self) -> None:
        """Close the descriptor; the next write opens another."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._store.close(self, fd)

    def _descriptor(self) -> int:
        if self._fd < 0:
            self._fd = self._store.open(self, create=not self._created)
            self._created = True
        return self._fd

    def result(self) -> FileResult:
        """Return what became of this file."""
        error = self._error
        if error is None and not self._finished:
            error = IncompleteFile("The run ended before it was complete.")
        name = os.fsdecode(self.entry.name)
        if error is not None:
            return FileResult(name, self.entry.size, None, self.entry.mtime, escape(error.message))
        return FileResult(name, self.entry.size, self.mode, self.entry.mtime)


def _pwrite_all(fd: int, buffers: Sequence[Buffer], offset: int, length: int) -> None:
    if len(buffers) > 1 and hasattr(os, "pwritev") and len(buffers) <= _IOV_MAX:
        written = os.pwritev(fd, buffers, offset)
        if written == length:
            return
        rest = memoryview(b"".join(buffers))[written:]
    else:
        written = 0
        rest = memoryview(buffers[0] if len(buffers) == 1 else b"".join(buffers))
    while rest:
        count = os.pwrite(fd, rest, offset + written)
        written += count
        rest = rest[count:]
