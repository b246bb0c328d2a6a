"""One file being landed in the private directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from peerstage.errors import IncompleteFile, ProtocolError, StageError
from peerstage.landing.arrived import Arrived
from peerstage.landing.base import Buffer, Slot
from peerstage.landing.store import Failure, Store
from peerstage.reasons import Reason
from peerstage.records import Entry

_IOV_MAX = 512

_UNFINISHED = Failure("The run ended before it was complete.", Reason.INCOMPLETE_FILE)


class _Arriving:
    """What is kept of a file while it comes."""

    __slots__ = ("arrived", "created", "fd")

    def __init__(self, size: int) -> None:
        self.arrived = Arrived(size)
        self.created = False
        self.fd = -1


class FileSlot(Slot):
    """A file in the private directory, named by a number until it is published.

    A directory may hold a hundred thousand of these: what only a file on its way needs is in its `_Arriving`.

    Attributes:
        entry: The file as the peer's listing describes it.
        number: Its name in the private directory.
        resumed: Bytes that survived a lost connection, and did not have to be sent again.
    """

    __slots__ = ("_arriving", "_failure", "_is_complete", "_store", "entry", "number", "resumed")

    def __init__(self, store: Store, entry: Entry, number: int) -> None:
        self.entry = entry
        self.number = number
        self.resumed = 0
        self._store = store
        self._arriving: _Arriving | None = None
        self._is_complete = False
        self._failure: Failure | None = None

    @property
    def place(self) -> str:
        """The file's name in the private directory."""
        return str(self.number)

    @property
    def is_finished(self) -> bool:
        return self._is_complete or self._failure is not None

    @property
    def is_ready(self) -> bool:
        """Whether the file is complete and may be published."""
        return self._is_complete and self._failure is None

    @property
    def failure(self) -> Failure | None:
        """Why the file cannot be published; None for a complete one."""
        return None if self.is_ready else self._failure or _UNFINISHED

    @property
    def received(self) -> int:
        """Bytes that have come and are kept."""
        if self._arriving is not None:
            return self._arriving.arrived.received
        return self.entry.size if self.is_ready else 0

    def missing(self) -> Sequence[tuple[int, int]]:
        if self._arriving is not None:
            return tuple(self._arriving.arrived.missing())
        return () if self.is_finished or not self.entry.size else ((0, self.entry.size),)

    def resume(self) -> None:
        """Continue the file over another connection."""
        if self._arriving is not None:
            arrived = self._arriving.arrived
            before = arrived.pieces
            arrived.resume()
            self._store.count_pieces(arrived.pieces - before)
        self.resumed = self.entry.size - sum(end - start for start, end in self.missing()) if self.received else 0

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = sum(len(buffer) for buffer in buffers)
        end = offset + length
        if offset < 0 or end > self.entry.size:
            raise ProtocolError("More bytes came than were promised.", path=self.entry.name)
        try:
            fd = self._descriptor()
            _pwrite_all(fd, buffers, offset, length)
        except OSError as exc:
            raise self._store.error(exc) from exc
        arrived = self._arrival().arrived
        before, kept = arrived.pieces, arrived.received
        arrived.add(offset, buffers, length)
        if arrived.received < kept:  # the file was replaced: what earlier connections brought is dropped
            self.resumed = 0
        self._store.count_pieces(arrived.pieces - before)
        self._store.wrote(fd, length)

    def finish(self) -> None:
        if self.is_finished:
            return
        size = self.entry.size
        if size and (self._arriving is None or not self._arriving.arrived.is_complete):
            self.fail(IncompleteFile(f"{self.received} of {size} bytes arrived. Stage again once the peer is well."))
            return
        try:
            fd = self._descriptor()
            on_disk = os.fstat(fd).st_size
            self._store.completes(fd, size)
            self.close()
        except OSError as exc:
            raise self._store.error(exc) from exc
        if on_disk != size:
            self.fail(IncompleteFile(f"{on_disk} of {size} bytes are on the disk. Stage again."))
            return
        self._is_complete = True
        self._forget_ranges()

    def adopt(self, name: bytes | str, directory_fd: int) -> None:
        """Take the file *name* of another directory as what has come, whole."""
        try:
            os.rename(name, self.place, src_dir_fd=directory_fd, dst_dir_fd=self._store.fd)
        except OSError as exc:
            raise self._store.error(exc) from exc
        self._is_complete = True

    def fail(self, error: StageError) -> None:
        if self._failure is None:
            self._failure = self._store.failures.keep(error)
            self.discard()

    def discard(self) -> None:
        """Forget what has come."""
        with contextlib.suppress(OSError):  # what the disk says of these bytes does not matter any more
            self.close()
        with contextlib.suppress(OSError):
            os.unlink(self.place, dir_fd=self._store.fd)
        self._forget_ranges()

    def close(self) -> None:
        """Close the descriptor; the next write opens another."""
        arriving = self._arriving
        if arriving is not None and arriving.fd >= 0:
            fd, arriving.fd = arriving.fd, -1
            self._store.close(self, fd)

    def _forget_ranges(self) -> None:
        if self._arriving is not None:
            self._store.count_pieces(-self._arriving.arrived.pieces)
            self._arriving = None

    def _arrival(self) -> _Arriving:
        if self._arriving is None:
            self._arriving = _Arriving(self.entry.size)
        return self._arriving

    def _descriptor(self) -> int:
        arriving = self._arrival()
        if arriving.fd < 0:
            arriving.fd = self._store.open(self, create=not arriving.created)
            arriving.created = True
        return arriving.fd


def _pwrite_all(fd: int, buffers: Sequence[Buffer], offset: int, length: int) -> None:
    if len(buffers) > 1 and hasattr(os, "pwritev") and len(buffers) <= _IOV_MAX:
        written = os.pwritev(fd, buffers, offset)
        if written == length:
            return
        rest = memoryview(b"".join(buffers))[written:]
    else:
        written = 0
        rest = memoryview(buffers[0] if len(buffers) == 1 else b"".join(buffers))
    with rest:  # not held by an error's traceback
        at = 0
        while at < len(rest):
            at += os.pwrite(fd, rest[at:] if at else rest, offset + written + at)
