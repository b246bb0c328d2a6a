"""The files in the private directory while they come: few of them open, and what the disk says in our words."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TYPE_CHECKING

from peerstage.errors import LandingError

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from peerstage.landing.slot import FileSlot

_FLAGS = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)

_ADVICE = {
    errno.ENOSPC: "Make room in the target, then stage again; the files that were there before are untouched.",
    errno.EDQUOT: "Raise the quota or make room, then stage again; the files that were there before are untouched.",
    errno.EACCES: "Give this user the right to write there, or choose another target.",
    errno.EROFS: "Mount the target writable, or choose another one.",
    errno.EPERM: "Run as root to give files away, or leave ownership out; if it is not that, the target is protected.",
    errno.ENOENT: "The target was removed meanwhile; make it again, then stage again.",
    errno.EIO: "The disk failed; the files that were there before are untouched.",
}


class Store:
    """Opens and closes the files that slots write to, never more at once than the process can afford.

    Args:
        target: The target's path, for messages.
        fd: Descriptor of the private directory.
    """

    def __init__(self, target: str, fd: int) -> None:
        self.target = target
        self.fd = fd
        self._open: dict[FileSlot, None] = {}
        self._max_open = max(4, min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))

    def open(self, slot: FileSlot, *, create: bool) -> int:
        """Open *slot*'s file, and close the one that has been open longest when there are too many."""
        if len(self._open) >= self._max_open:
            next(iter(self._open)).close()
        flags = _FLAGS | os.O_CREAT | os.O_EXCL if create else _FLAGS
        fd = os.open(slot.place, flags, 0o600, dir_fd=self.fd)
        self._open[slot] = None
        return fd

    def close(self, slot: FileSlot, fd: int) -> None:
        """Close *fd*, which was opened for *slot*."""
        self._open.pop(slot, None)
        os.close(fd)

    def close_all(self) -> None:
        """Close every file; what the disk says about it comes too late to matter."""
        for slot in list(self._open):
            with contextlib.suppress(OSError):
                slot.close()

    def error(self, exc: OSError, *, published: int = 0) -> LandingError:
        """Return *exc* as the error that leaves the landing: the target named, and what to do about it."""
        return disk_error(exc, self.target, published)


def disk_error(exc: OSError, target: str, published: int = 0) -> LandingError:
    """Return what the local file system said as a `LandingError` with advice; so many files had their names by then."""
    advice = _ADVICE.get(exc.errno or 0, "The files that were there before are untouched.")
    if published:
        advice = f"By then {published} files had been replaced, each as a whole; the others are as before. Stage again."
    return LandingError(f"{exc.strerror or exc}. {advice}", path=target, errno=exc.errno)
