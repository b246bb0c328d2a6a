"""Partial files: files in the private directory, until they are complete and published."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from peerstage.errors import IncompleteFile, ProtocolError, StageError
from peerstage.reasons import Reason
from peerstage.records import Entry
from peerstage.target.base import Buffer, IncomingFile
from peerstage.target.disk_errors import disk_error, disk_errors
from peerstage.target.received_data import ReceivedData
from peerstage.target.run_state import Failure, RunState

_IOV_MAX = 512

_UNFINISHED = Failure("The run ended before it was complete.", Reason.INCOMPLETE_FILE)


class _Transfer:
    """State of a file that is needed only while its bytes arrive."""

    __slots__ = ("data", "fd", "is_created")

    def __init__(self, size: int) -> None:
        self.data = ReceivedData(size)
        self.is_created = False
        self.fd = -1


class PartialFile(IncomingFile):
    """A file in the private directory, named by a number until it is published.

    A directory may have a hundred thousand of these, so what only a transfer needs is in `_Transfer`.

    Args:
        run: State shared by the files of the run.
        entry: The file as the peer lists it.
        number: The number that is its name in the private directory.

    Attributes:
        resumed_bytes: Bytes that were kept after a lost connection and not sent again.
    """

    __slots__ = ("_failure", "_is_complete", "_run", "_transfer", "entry", "number", "resumed_bytes")

    def __init__(self, run: RunState, entry: Entry, number: int) -> None:
        self.entry = entry
        self.number = number
        self.resumed_bytes = 0
        self._run = run
        self._transfer: _Transfer | None = None
        self._is_complete = False
        self._failure: Failure | None = None
        run.missing_bytes += entry.size
        run.uncreated_files += 1

    @property
    def private_name(self) -> str:
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
    def received_bytes(self) -> int:
        """Bytes that have arrived and are kept."""
        if self._transfer is not None:
            return self._transfer.data.received_bytes
        return self.entry.size if self.is_ready else 0

    def missing(self) -> Sequence[tuple[int, int]]:
        if self._transfer is not None:
            return tuple(self._transfer.data.missing())
        return () if self.is_finished or not self.entry.size else ((0, self.entry.size),)

    def resume(self) -> None:
        """Continue the file over another connection."""
        if self._transfer is not None:
            data = self._transfer.data
            before = data.range_count
            data.resume()
            self._run.count_ranges(data.range_count - before)
        missing = sum(end - start for start, end in self.missing())
        self.resumed_bytes = self.entry.size - missing if self.received_bytes else 0

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = sum(len(buffer) for buffer in buffers)
        if offset < 0 or offset + length > self.entry.size:
            raise ProtocolError("The peer sent more bytes than the listing promised.", path=self.entry.name)
        transfer = self._begin_transfer()
        try:
            fd = self._open(transfer)
            _pwrite_all(fd, buffers, offset, length)
        except OSError as exc:
            raise disk_error(exc, self._run.target) from exc
        data = transfer.data
        ranges, received = data.range_count, data.received_bytes
        data.add(offset, buffers, length)
        self._run.missing_bytes -= data.received_bytes - received
        if data.received_bytes < received:  # the file was replaced on the peer; earlier bytes are dropped
            self.resumed_bytes = 0
        self._run.count_ranges(data.range_count - ranges)
        self._run.writeback.add_written(fd, length)

    def finish(self) -> None:
        if self.is_finished:
            return
        size = self.entry.size
        if size and (self._transfer is None or not self._transfer.data.is_complete):
            message = f"{self.received_bytes} of {size} bytes arrived. Stage again."
            self.fail(IncompleteFile(message))
            return
        try:
            fd = self._open(self._begin_transfer())
            size_on_disk = os.fstat(fd).st_size
            self._run.writeback.add_complete(fd, size)
            self.close()
        except OSError as exc:
            raise disk_error(exc, self._run.target) from exc
        if size_on_disk != size:
            self.fail(IncompleteFile(f"{size_on_disk} of {size} bytes are on the disk. Stage again."))
            return
        self._is_complete = True
        self._end_transfer()

    def import_file(self, name: bytes | str, directory_fd: int) -> None:
        """Move the file *name* from another directory; it is the complete content."""
        with disk_errors(self._run.target):
            os.rename(name, self.private_name, src_dir_fd=directory_fd, dst_dir_fd=self._run.descriptors.dir_fd)
        self._withdraw()
        self._is_complete = True

    def fail(self, error: StageError) -> None:
        if self._failure is None:
            self.discard()
            self._failure = self._run.failures.intern(error)

    def discard(self) -> None:
        """Remove the received bytes; errors of the disk do not matter for them."""
        if not self.is_finished:
            self._withdraw()
        with contextlib.suppress(OSError):
            self.close()
        with contextlib.suppress(OSError):
            os.unlink(self.private_name, dir_fd=self._run.descriptors.dir_fd)
        self._end_transfer()

    def close(self) -> None:
        """Close the descriptor; the next write opens another."""
        transfer = self._transfer
        if transfer is not None and transfer.fd >= 0:
            fd, transfer.fd = transfer.fd, -1
            self._run.descriptors.close(fd)

    def _withdraw(self) -> None:
        """Count the file no longer among those that need space."""
        self._run.missing_bytes -= self.entry.size - self.received_bytes
        self._run.uncreated_files -= self._transfer is None or not self._transfer.is_created

    def _begin_transfer(self) -> _Transfer:
        if self._transfer is None:
            self._transfer = _Transfer(self.entry.size)
        return self._transfer

    def _end_transfer(self) -> None:
        if self._transfer is not None:
            self._run.count_ranges(-self._transfer.data.range_count)
            self._transfer = None

    def _open(self, transfer: _Transfer) -> int:
        if transfer.fd < 0:
            transfer.fd = self._run.descriptors.open(self.private_name, self.close, create=not transfer.is_created)
            self._run.uncreated_files -= not transfer.is_created
            transfer.is_created = True
        return transfer.fd


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
