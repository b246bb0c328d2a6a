"""The private directory that a run fills inside its target.

A private directory is called ``.peerstage-XXXXXXXX``, has mode 0700 and holds a file ``lock`` that its owner keeps
locked (flock(2)) while it lives. The kernel drops the lock with the process, so what is not locked is a leftover.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Iterator

from peerstage.errors import LandingError, NotAvailable
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason

if sys.platform != "win32":
    import fcntl

PREFIX = ".peerstage-"
LOCK = "lock"
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
LOCK_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)

#: Directories that are cleared away in one go, each inside another or not; what is left is the next sweep's.
_MOST_DIRECTORIES = 20_000

log = PeerLog("peerstage.landing")


def open_directory(path: str | bytes, *, dir_fd: int | None = None, follow: bool = False) -> int:
    """Return a descriptor of the directory *path*; everything below is done relative to it."""
    flags = _DIRECTORY & ~getattr(os, "O_NOFOLLOW", 0) if follow else _DIRECTORY
    return os.open(path, flags, dir_fd=dir_fd)


def require_posix() -> None:
    """Raise `NotAvailable` where there are no descriptors of directories and no flock(2)."""
    if sys.platform == "win32":
        raise NotAvailable("Staging needs a POSIX system (Linux, macOS, a BSD); on Windows only imports work.")


class PrivateDirectory:
    """A directory of our own inside *target_fd*, locked while this object is open.

    Args:
        target_fd: A descriptor of the target.
        log: For what is left behind.

    Attributes:
        name: Its name in the target.
        fd: Its descriptor, for ``dir_fd=``.
    """

    def __init__(self, target_fd: int, log: PeerLog = log) -> None:
        self._target_fd = target_fd
        self._log = log
        self._process = os.getpid()
        for _ in range(8):  # a sweep that runs right between mkdir and flock takes the name away: choose another
            self.name = PREFIX + secrets.token_hex(4)
            self.fd = self._lock_fd = -1
            try:
                os.mkdir(self.name, 0o700, dir_fd=target_fd)
            except FileExistsError:
                continue
            try:
                if self._take():
                    return
            except BaseException:
                with contextlib.suppress(OSError):
                    if self.fd >= 0:
                        empty_directory(self.fd)
                    os.rmdir(self.name, dir_fd=target_fd)
                self._close()
                raise
            self._close()
        raise LandingError(
            "Another process keeps removing the private directory; let its sweep end, then run again.",
            reason=Reason.TARGET_INTERFERED,
        )

    def remove(self) -> None:
        """Remove the directory with all it holds. What can not be removed is logged and left to the next sweep.

        In a forked child nothing is removed: the directory is the parent's.
        """
        if os.getpid() != self._process:
            self._close()
            return
        try:
            empty_directory(self.fd)
            with contextlib.suppress(FileNotFoundError):  # a sweep was quicker
                os.rmdir(self.name, dir_fd=self._target_fd)
        except OSError as exc:
            self._log.warning(
                "%s could not be removed: %s; the next run or `sweep` tries again.", self.name, exc.strerror
            )
        finally:
            self._close()

    def _take(self) -> bool:
        """Open and lock the directory; False if a sweep was quicker."""
        try:
            self.fd = open_directory(self.name, dir_fd=self._target_fd)
            self._lock_fd = os.open(LOCK, LOCK_FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        if os.fstat(self._lock_fd).st_uid != os.fstat(self.fd).st_uid or os.listdir(self.fd) not in ([LOCK], []):
            self._close()  # it is not the one that was made: another user, who may write to the target, put it there
            raise LandingError(
                "Another user exchanges the private directory for another. Stage where none but you write.",
                reason=Reason.TARGET_INTERFERED,
            )
        return lock(self._lock_fd, without_locks=True) and os.fstat(self._lock_fd).st_nlink > 0

    def _close(self) -> None:
        for fd in (self._lock_fd, self.fd):
            if fd >= 0:
                close_quietly(fd)
        self._lock_fd = self.fd = -1


def empty_directory(fd: int) -> None:
    """Remove everything in the directory, the lock last: whatever is interrupted here is still seen as a leftover.

    What lies in a sub-directory is moved up first, so that no depth takes descriptors or stack.
    """
    seen = 0
    while directories := _unlink_files(fd):
        seen += len(directories)
        if seen > _MOST_DIRECTORIES:
            raise OSError(errno.EBUSY, "it holds directories without end, or somebody keeps filling it")
        for name in directories:
            _flatten(fd, name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(LOCK, dir_fd=fd)


def _unlink_files(fd: int) -> list[str]:
    """Unlink all but the lock; return the names of the directories, which are left."""
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name != LOCK]
    for name, is_directory in found:
        if not is_directory:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)
    return [name for name, is_directory in found if is_directory]


def _flatten(fd: int, name: str) -> None:
    """Remove the directory *name*, its own directories moved up beside it."""
    with contextlib.suppress(FileNotFoundError):
        with closing(_open_to_change(name, fd)) as inner:
            for directory in _unlink_files(inner):
                with closing(_open_to_change(directory, inner)):  # what is moved is written to: its ".." changes
                    os.rename(directory, f"{PREFIX}{secrets.token_hex(8)}", src_dir_fd=inner, dst_dir_fd=fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(LOCK, dir_fd=inner)
        os.rmdir(name, dir_fd=fd)


def _open_to_change(name: str, dir_fd: int) -> int:
    """Open a directory that a command of ours has made, and may have closed to us; another user's is taken away."""
    try:
        fd = open_directory(name, dir_fd=dir_fd)
    except PermissionError:  # not for root, whom nothing that another user puts there may lead astray
        os.chmod(name, 0o700, dir_fd=dir_fd)
        fd = open_directory(name, dir_fd=dir_fd)
    try:
        if os.geteuid() == 0 and os.fstat(fd).st_uid != 0:  # or who is still in it might fill it as fast as we empty it
            os.fchown(fd, 0, 0)
        os.fchmod(fd, 0o700)
    except OSError:
        close_quietly(fd)
        raise
    return fd


def lock(fd: int, *, without_locks: bool) -> bool:
    """Take the lock without waiting; False if another process has it.

    On a file system that has no locks the answer is *without_locks*: a run goes on there, a sweep removes nothing.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        return without_locks and exc.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close *fd*, of a directory or a lock, at the end; what the disk says about that does not matter."""
    try:
        yield fd
    finally:
        close_quietly(fd)


def close_quietly(fd: int) -> None:
    """Close a descriptor that nothing was written to."""
    with contextlib.suppress(OSError):
        os.close(fd)
