"""State that the partial files of one run share: descriptors, failures, early write-back, and number of ranges."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from peerstage.errors import ProtocolError, StageError
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.target import durability
from peerstage.target.file_descriptors import NO_FOLLOW
from peerstage.target.writeback import EarlyWriteback

if sys.platform != "win32":
    import resource

#: Disjoint ranges of all partial files, each of which takes memory: far more than there are requests in flight.
_MAX_RANGES = 1 << 16
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
    """Opens and closes files in one directory, few at a time, within the process's limit (RLIMIT_NOFILE).

    Args:
        dir_fd: Descriptor of the directory.

    Attributes:
        dir_fd: Descriptor of the directory.
        max_open: Maximum number of open files: a quarter of the process's limit, from 4 to 256.
    """

    def __init__(self, dir_fd: int) -> None:
        self.dir_fd = dir_fd
        self.max_open = max(4, min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._close_callbacks: dict[int, Callable[[], None]] = {}

    def open(self, name: str, close: Callable[[], None], *, create: bool) -> int:
        """Open the file *name* for reading and writing; at the limit, call the *close* of the one opened first."""
        if len(self._close_callbacks) >= self.max_open:
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
