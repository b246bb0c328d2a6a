"""The files in the private directory while they come: few of them open, and what the disk says in our words."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from peerstage.errors import LandingError, ProtocolError, StageError, escape
from peerstage.landing import durability
from peerstage.landing.writeback import EarlyWriteback
from peerstage.reasons import Reason
from peerstage.system_errors import target_reason_of

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from peerstage.landing.slot import FileSlot

_FLAGS = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)

#: Characters of texts to keep for one directory.
_FAILURES_CHARS = 1 << 19

#: Pieces in which the files on their way may lie here: far more than there are requests in flight.
_MOST_PIECES = 1 << 16

_ADVICE = {
    errno.ENOSPC: "Make room in the target, then stage again; the files that were there before are untouched.",
    errno.EDQUOT: "Raise the quota or make room, then stage again; the files that were there before are untouched.",
    errno.EACCES: "Give this user the right to write there, or choose another target.",
    errno.EROFS: "Mount the target writable, or choose another one.",
    errno.EPERM: "Run as root to give files away, or leave ownership out; if it is not that, the target is protected.",
    errno.ENOENT: "The target was removed meanwhile; make it again, then stage again.",
    errno.EIO: "The disk failed; the files that were there before are untouched.",
}


#: Fewer free inodes than this are none: what a run that has just failed had made is removed by then.
_FEW_INODES = 8


class Failure(NamedTuple):
    """Why an entry is not staged.

    Attributes:
        text: One printable line.
        reason: The same for programs.
    """

    text: str
    reason: Reason


class Failures:
    """Why entries are not staged, in little memory: a peer has a say in these texts, one for each of its entries.

    Equal ones are kept once. Once there are `_FAILURES_CHARS`, a new text is replaced by the kind of failure it is.
    """

    def __init__(self) -> None:
        self._known: dict[Failure, Failure] = {}
        self._chars = 0

    def keep(self, error: StageError) -> Failure:
        """Return what *error* says."""
        failure = Failure(escape(error.message), error.reason)
        if failure not in self._known:
            if self._chars + len(failure.text) > _FAILURES_CHARS:
                text = f"{type(error).__name__}; so many entries failed that not every reason is kept."
                failure = Failure(text, error.reason)
            self._chars += len(failure.text)
        return self._known.setdefault(failure, failure)


class Store:
    """Opens and closes the files that slots write to, never more at once than the process can afford.

    Args:
        target: The target's path, for messages.
        fd: Descriptor of the private directory.
        writeback: Whether data is handed to the disk while it comes, by a thread.
    """

    def __init__(self, target: str, fd: int, *, writeback: bool) -> None:
        self.target = target
        self.fd = fd
        self.failures = Failures()
        self._pieces = 0
        self._open: dict[FileSlot, None] = {}
        self._max_open = max(4, min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._writeback: EarlyWriteback | None = None
        if writeback and durability.can_start_writeback():
            self._writeback = EarlyWriteback(self._max_open // 4, durability.start_writeback)

    def open(self, slot: FileSlot, *, create: bool) -> int:
        """Open *slot*'s file, and close the one that has been open longest when there are too many."""
        if len(self._open) >= self._max_open:
            next(iter(self._open)).close()
        flags = _FLAGS | os.O_CREAT | os.O_EXCL if create else _FLAGS
        fd = os.open(slot.place, flags, 0o600, dir_fd=self.fd)
        self._open[slot] = None
        return fd

    def count_pieces(self, more: int) -> None:
        """Take note that files on their way consist of so many more pieces; each takes memory.

        Raises:
            ProtocolError: There are too many.
        """
        self._pieces += more
        if self._pieces > _MOST_PIECES:
            raise ProtocolError(f"What comes is in more than {_MOST_PIECES} pieces with gaps between them.")

    def wrote(self, fd: int, count: int) -> None:
        """Account for *count* bytes that were written to *fd*."""
        if self._writeback is not None:
            self._writeback.wrote(fd, count)

    def completes(self, fd: int, size: int) -> None:
        """Say that the file of *size* bytes that *fd* is open on is complete and about to be closed."""
        if self._writeback is not None:
            self._writeback.closes(fd, size)

    def close(self, slot: FileSlot, fd: int) -> None:
        """Close *fd*, which was opened for *slot*."""
        self._open.pop(slot, None)
        os.close(fd)

    def close_all(self) -> None:
        """Close every file; what the disk says about it comes too late to matter."""
        for slot in list(self._open):
            with contextlib.suppress(OSError):
                slot.close()

    def end_writeback(self) -> None:
        """End the thread that hands data to the disk."""
        if self._writeback is not None:
            self._writeback.close()

    def error(self, exc: OSError, *, published: int = 0, reason: Reason | None = None) -> LandingError:
        """Return *exc* as the error that leaves the landing: the target named, and what to do about it."""
        return disk_error(exc, self.target, published, reason)


def disk_error(exc: OSError, target: str, published: int = 0, reason: Reason | None = None) -> LandingError:
    """Return what the local file system said as a `LandingError` with advice; so many files had their names by then.

    The *reason* follows from the error number unless it is given.
    """
    reason = reason or target_reason_of(exc)
    if reason is Reason.NO_SPACE and _has_no_inodes(target):
        reason = Reason.NO_INODES
    advice = _ADVICE.get(exc.errno or 0, "The files that were there before are untouched.")
    if published:
        advice = f"By then {published} files had been replaced, each as a whole; the others are as before. Stage again."
    return LandingError(f"{exc.strerror or exc}. {advice}", path=target, errno=exc.errno, reason=reason)


def _has_no_inodes(target: str) -> bool:
    """Return whether it is inodes that the target's file system is out of (ENOSPC, too)."""
    try:
        found = os.statvfs(target)
    except OSError:
        return False
    return found.f_files > 0 and found.f_ffree < _FEW_INODES and found.f_bavail > 0
