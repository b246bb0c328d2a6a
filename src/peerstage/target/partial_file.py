"""Partial files: files in the private directory, until they are complete and published."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Literal

from peerstage.errors import IncompleteFile, ProtocolError, StageError
from peerstage.reasons import Reason
from peerstage.records import MIB, Entry
from peerstage.target.base import Buffer, IncomingFile
from peerstage.target.digest import PrefixDigest
from peerstage.target.disk_errors import disk_error, disk_errors
from peerstage.target.file_descriptors import NO_FOLLOW, closing
from peerstage.target.link_dest import Linked, LinkSource
from peerstage.target.ranges import Ranges
from peerstage.target.received_data import ReceivedData
from peerstage.target.run_state import Failure, RunState

_IOV_MAX = 512
#: Bytes to read back for the digest, at most, for each byte that arrives: reading back delays the transfer.
_READ_BACK_FACTOR = 2
#: Bytes to read back when a file is complete; a longer rest is read back at the commit, after the transfer.
_MAX_READ_BACK = 8 * MIB

_UNFINISHED = Failure("The run ended before it was complete.", Reason.INCOMPLETE_FILE)


class _Transfer:
    """State of a file that is needed only while its bytes arrive."""

    __slots__ = ("data", "digest", "fd", "has_record", "is_created")

    def __init__(self, size: int, digest: PrefixDigest | None) -> None:
        self.data = ReceivedData(size)
        self.digest = digest
        self.is_created = False
        self.has_record = False
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
        linked: How it was taken from an earlier staging directory; None if it is fetched.
    """

    __slots__ = (
        *("_digest", "_is_resumed", "_outcome", "_run", "_transfer"),
        *("entry", "linked", "number", "resumed_bytes"),
    )

    def __init__(self, run: RunState, entry: Entry, number: int) -> None:
        self.entry = entry
        self.number = number
        self.resumed_bytes = 0
        self.linked: Linked | None = None
        self._run = run
        self._transfer: _Transfer | None = None
        self._digest: PrefixDigest | bytes | None = None  # of a complete file; a `PrefixDigest` has to be completed
        self._is_resumed = False
        self._outcome: Failure | Literal[True] | None = None  # True if it is complete
        run.missing_bytes += entry.size
        run.uncreated_files += 1

    @property
    def private_name(self) -> str:
        """The file's name in the private directory."""
        return str(self.number)

    @property
    def is_finished(self) -> bool:
        return self._outcome is not None

    @property
    def is_ready(self) -> bool:
        """Whether the file is complete and may be published."""
        return self._outcome is True

    @property
    def is_from_one_connection(self) -> bool:
        """Whether all its bytes come from one connection, so that it is not an earlier version or a mixture of two."""
        return self.linked is None and not self._is_resumed

    @property
    def is_copy_due(self) -> bool:
        """Whether the file is complete but for a copy of the earlier file, which `copy` creates."""
        return self.linked is not None and self.linked.is_due

    @property
    def failure(self) -> Failure | None:
        """Why the file cannot be published; None for a complete one."""
        return None if self._outcome is True else self._outcome or _UNFINISHED

    @property
    def sha256(self) -> bytes | None:
        """The SHA-256 of the complete file, if the run wants digests; None until it is known."""
        return self._digest if isinstance(self._digest, bytes) else None

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

    @property
    def has_begun(self) -> bool:
        """Whether there is something of the file already."""
        return self._transfer is not None

    @property
    def is_untouched(self) -> bool:
        """Whether the file was taken over, and nothing was written to it since."""
        return self._transfer is not None and self._transfer.has_record

    def ranges_to_keep(self) -> Ranges:
        """Return what has arrived of one version of the file; nothing if it has failed."""
        ranges = Ranges()
        if self.linked is not None:  # a link shares its data with the earlier file, which must not change
            pass
        elif self.is_ready:
            ranges.add(0, self.entry.size)
        elif self._transfer is not None and not self._transfer.has_record:
            ranges = self._transfer.data.consistent_ranges
        return ranges

    def take_over(self, ranges: Ranges, samples: Ranges) -> None:
        """Begin with what an earlier run has kept, which is already in the private directory, with its record.

        Args:
            ranges: What was kept.
            samples: Parts of it that are fetched again and compared.

        Raises:
            ProtocolError: If the run has too many ranges.
        """
        transfer = self._begin_transfer()
        transfer.is_created = transfer.has_record = True
        self._is_resumed = True
        transfer.data.take_over(ranges, samples)
        self._run.missing_bytes -= ranges.size
        self._run.uncreated_files -= 1
        self._run.count_ranges(transfer.data.range_count)
        self.resumed_bytes = ranges.size - samples.size

    def resume(self) -> None:
        """Continue the file over another connection."""
        if self.linked is not None:
            return
        if self._transfer is not None:
            data = self._transfer.data
            before = data.range_count
            data.resume()
            self._is_resumed = True
            self._run.count_ranges(data.range_count - before)
        missing = sum(end - start for start, end in self.missing())
        self.resumed_bytes = self.entry.size - missing if self.received_bytes else 0

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = sum(len(buffer) for buffer in buffers)
        if offset < 0 or offset + length > self.entry.size:
            raise ProtocolError("The peer sent more bytes than the file's announced size.", path=self.entry.name)
        transfer = self._begin_transfer()
        data, digest = transfer.data, transfer.digest
        ranges, received = data.range_count, data.received_bytes
        try:
            fd = self._open(transfer)
            if transfer.has_record:
                os.ftruncate(fd, self.entry.size)
                transfer.has_record = False
            if any(
                _differs_from_disk(fd, offset, buffers, *part) for part in data.samples_within(offset, offset + length)
            ):
                data.drop_earlier()
                self.resumed_bytes = 0
            if digest is not None:
                digest.compare(fd, offset, buffers, length)
            _pwrite_all(fd, buffers, offset, length)
        except OSError as exc:
            raise disk_error(exc, self._run.target) from exc
        data.add(offset, buffers, length)
        self._run.missing_bytes -= data.received_bytes - received
        if data.received_bytes < received:  # the file was replaced on the peer; earlier bytes are dropped
            self.resumed_bytes = 0
        self._run.count_ranges(data.range_count - ranges)
        self._run.writeback.add_written(fd, length)
        if digest is not None:
            digest.add(offset, buffers)
            if digest.position < data.prefix_end:
                with disk_errors(self._run.target):
                    digest.read_back(fd, min(data.prefix_end, digest.position + _READ_BACK_FACTOR * length))

    def finish(self) -> None:
        if self.is_finished:
            return
        size = self.entry.size
        if size and (self._transfer is None or not self._transfer.data.is_complete):
            message = f"{self.received_bytes} of {size} bytes arrived. Stage again."
            self.fail(IncompleteFile(message))
            return
        transfer = self._begin_transfer()
        try:
            fd = self._open(transfer)
            size_on_disk = os.fstat(fd).st_size
            if transfer.digest is not None and size - transfer.digest.position <= _MAX_READ_BACK:
                transfer.digest.read_back(fd, size)
            self._run.writeback.add_complete(fd, size)
            self.close()
        except OSError as exc:
            raise disk_error(exc, self._run.target) from exc
        if size_on_disk != size:
            self.fail(_too_short(size_on_disk, size))
            return
        self._outcome = True
        self._end_transfer()
        self._keep_digest(transfer.digest)

    def import_file(self, name: bytes | str, directory_fd: int) -> None:
        """Move the file *name* from another directory; it is the complete content."""
        with disk_errors(self._run.target):
            os.rename(name, self.private_name, src_dir_fd=directory_fd, dst_dir_fd=self._run.descriptors.dir_fd)
        self._withdraw()
        self._outcome = True

    def open_complete(self) -> int:
        """Return a descriptor to read the complete file, which the caller closes.

        Raises:
            OSError: If the disk failed.
        """
        return os.open(self.private_name, os.O_RDONLY | NO_FOLLOW, dir_fd=self._run.descriptors.dir_fd)

    def complete_digest(self, check: Callable[[], object]) -> None:
        """Compute `sha256` of a complete file, unless it is known; fail the file if it is too short on the disk.

        Args:
            check: Called from time to time; an exception that it raises ends the run.

        Raises:
            TargetError: If the disk failed.
        """
        if not self.is_ready or self.is_copy_due or isinstance(self._digest, bytes):
            return
        digest = self._digest or PrefixDigest()
        with disk_errors(self._run.target), closing(self.open_complete()) as fd:
            digest.read_back(fd, self.entry.size, check)
        if not self._keep_digest(digest):
            self.fail(_too_short(digest.position, self.entry.size))

    def link(self, source: LinkSource) -> None:
        """Take the file from an earlier staging directory, if it is unchanged there; then it is complete.

        If it has to be a copy, it needs space, and `is_copy_due`.
        """
        with disk_errors(self._run.target):
            self.linked = source.link(self.entry, self.private_name)
        if self.linked is not None:
            if not self.is_copy_due:
                self._withdraw()
            self._outcome = True
            if self._run.wants_digests:
                self._digest = self.linked.sha256

    def copy(self, source: LinkSource, on_copied: Callable[[int], object]) -> bool:
        """Create the copy that is due; return False if the earlier file has changed. See `LinkSource.copy`."""
        with disk_errors(self._run.target):
            if not source.copy(self.entry, self.private_name, on_copied):
                return False
        self._end_copy()
        return True

    def fail(self, error: StageError) -> None:
        if self._outcome is None or self._outcome is True:
            self.discard()
            self._outcome = self._run.failures.intern(error)

    def discard(self) -> None:
        """Remove the received bytes; errors of the disk do not matter for them."""
        if self.is_copy_due:
            self._end_copy()
        elif not self.is_finished:
            self._withdraw()
        with contextlib.suppress(OSError):
            self.close()
        with contextlib.suppress(OSError):
            os.unlink(self.private_name, dir_fd=self._run.descriptors.dir_fd)
        self._end_transfer()
        self._digest = None

    def close(self) -> None:
        """Close the descriptor; the next write opens another."""
        transfer = self._transfer
        if transfer is not None and transfer.fd >= 0:
            fd, transfer.fd = transfer.fd, -1
            self._run.descriptors.close(fd)

    def _withdraw(self) -> None:
        """Count the file no longer among those that need space."""
        self._run.missing_bytes -= self.entry.size - (0 if self.is_copy_due else self.received_bytes)
        self._run.uncreated_files -= self._transfer is None or not self._transfer.is_created

    def _end_copy(self) -> None:
        self._withdraw()
        self.linked = None if self.linked is None else self.linked._replace(is_due=False)

    def _begin_transfer(self) -> _Transfer:
        if self._transfer is None:
            self._transfer = _Transfer(self.entry.size, PrefixDigest() if self._run.wants_digests else None)
        return self._transfer

    def _end_transfer(self) -> None:
        if self._transfer is not None:
            self._run.count_ranges(-self._transfer.data.range_count)
            self._transfer = None

    def _keep_digest(self, digest: PrefixDigest | None) -> bool:
        """Keep *digest*, of the complete file; return whether it covers the whole of it."""
        if digest is None or digest.position < self.entry.size:
            self._digest = digest
            return False
        self._digest = digest.digest()
        return True

    def _open(self, transfer: _Transfer) -> int:
        if transfer.fd < 0:
            transfer.fd = self._run.descriptors.open(self.private_name, self.close, create=not transfer.is_created)
            self._run.uncreated_files -= not transfer.is_created
            transfer.is_created = True
        return transfer.fd


def _too_short(size_on_disk: int, size: int) -> IncompleteFile:
    return IncompleteFile(f"{size_on_disk} of {size} bytes are on the disk. Stage again.")


def _differs_from_disk(fd: int, offset: int, buffers: Sequence[Buffer], start: int, end: int) -> bool:
    """Return whether *buffers*, to be written at *offset*, differ from the disk between *start* and *end*."""
    arrived = b"".join(buffers)[start - offset : end - offset]
    return os.pread(fd, end - start, start) != arrived


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
