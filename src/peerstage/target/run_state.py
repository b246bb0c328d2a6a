"""State that the partial files of one run share: descriptors, failures, early write-back, and number of ranges."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from peerstage.errors import ProtocolError, StageError
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.system_errors import max_open_files
from peerstage.target import durability
from peerstage.target.file_descriptors import NO_FOLLOW
from peerstage.target.writeback import EarlyWriteback

#: Disjoint ranges of all partial files, each of which takes memory: far more than there are requests in flight.
_MAX_RANGES = 1 << 16
#: Bounds on the files that one run keeps open.
_MIN_OPEN = 4
_MAX_OPEN = 256
#: Characters of different texts that are kept for one directory.
_MAX_CHARS = 1 << 19


class RunState:
    """State that the partial files of one run share.

    Args:
        target: Path of the target, for messages.
        private_fd: Descriptor of the private directory.
        writeback: Whether a thread may start writing data to the disk while more arrives.
        wants_digests: Whether the SHA-256 of every file is wanted.

    Attributes:
        missing_bytes: Bytes of all admitted files that have not arrived yet.
        uncreated_files: Number of admitted files that the private directory does not have yet.
    """

    def __init__(self, target: str, private_fd: int, *, writeback: bool, wants_digests: bool = False) -> None:
        self.target = target
        self.wants_digests = wants_digests
        self.descriptors = DescriptorPool(private_fd)
        self.failures = Failures()
        start = durability.start_writeback if writeback and durability.can_start_writeback() else None
        self.writeback = EarlyWriteback(self.descriptors.max_open // 4, start)
        self.missing_bytes = 0
        self.uncreated_files = 0
        self._ranges = 0

    def count_ranges(self, count: int) -> None:
        """Account for *count* additional disjoint ranges.

        Raises:
            ProtocolError: If there are too many.
        """
        self._ranges += count
        if self._ranges > _MAX_RANGES:
            raise ProtocolError(f"The peer sends files in more than {_MAX_RANGES} ranges with gaps between them.")


class DescriptorPool:
    """Opens and closes files in one directory, few at a time.

    All runs of a process together keep a quarter of its limit (RLIMIT_NOFILE) open, and each may open four in any case.

    Args:
        dir_fd: Descriptor of the directory.

    Attributes:
        dir_fd: Descriptor of the directory.
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _pools: ClassVar[weakref.WeakSet[DescriptorPool]] = weakref.WeakSet()

    def __init__(self, dir_fd: int) -> None:
        self.dir_fd = dir_fd
        self._close_callbacks: dict[int, Callable[[], None]] = {}
        with self._lock:
            self._pools.add(self)

    @property
    def open_count(self) -> int:
        """The number of open files."""
        return len(self._close_callbacks)

    @property
    def max_open(self) -> int:
        """The maximum number of open files at the moment, from 4 to 256: an equal share, of what others leave."""
        limit = max_open_files()
        if limit is None:
            return _MAX_OPEN
        of_all = limit // 4
        with self._lock:
            counts = [pool.open_count for pool in self._pools]
        left = of_all - sum(counts) + self.open_count
        return max(_MIN_OPEN, min(_MAX_OPEN, of_all // max(1, len(counts)), left))

    def open(self, name: str, close: Callable[[], None], *, create: bool) -> int:
        """Open the file *name* for reading and writing; at the limit, call the *close* of those opened first."""
        max_open = self.max_open
        while len(self._close_callbacks) >= max_open:
            next(iter(self._close_callbacks.values()))()
        flags = os.O_RDWR | NO_FOLLOW | (os.O_CREAT | os.O_EXCL if create else 0)
        fd = os.open(name, flags, 0o600, dir_fd=self.dir_fd)
        self._close_callbacks[fd] = close
        return fd

    def close(self, fd: int) -> None:
        """Close *fd*, which `open` returned."""
        self._close_callbacks.pop(fd, None)
        os.close(fd)

    def close_all(self) -> None:
        """Close every file of a run that has ended, so that errors no longer matter."""
        for close in list(self._close_callbacks.values()):
            with contextlib.suppress(OSError):
                close()
        with self._lock:
            self._pools.discard(self)


class Failure(NamedTuple):
    """Why an entry could not be staged.

    Attributes:
        text: One printable line.
        reason: The machine-readable reason.
    """

    text: str
    reason: Reason


class Failures:
    """The failures of one directory. Equal ones share an object, since a peer may cause one for each entry.

    After `_MAX_CHARS` characters, a new text is replaced by the class of its error.
    """

    def __init__(self) -> None:
        self._known: dict[Failure, Failure] = {}
        self._chars = 0

    def intern(self, error: StageError) -> Failure:
        """Return the failure that describes *error*."""
        failure = Failure(escape(error.message), error.reason)
        if failure not in self._known:
            if self._chars + len(failure.text) > _MAX_CHARS:
                text = f"{type(error).__name__} (no further details are kept, because too many entries failed)."
                failure = Failure(text, error.reason)
            self._chars += len(failure.text)
        return self._known.setdefault(failure, failure)
