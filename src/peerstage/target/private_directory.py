"""The private directory that a run fills inside its target: ``.peerstage-XXXXXXXX``, mode 0700, with a lock file.

The owner holds the lock (flock(2)) until it ends. The kernel releases the lock with the process, so a private directory
whose lock is free was left by a killed run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import sys

from peerstage.errors import NotAvailable, TargetError
from peerstage.forks import OwnerProcess
from peerstage.peer_log import PeerLog
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.target.file_descriptors import LOCK_FILE, close_quietly, closing, open_directory

if sys.platform != "win32":
    import fcntl

PREFIX = ".peerstage-"
_NAME = re.compile(re.escape(PREFIX) + "[0-9a-f]{8}")
LOCK_NAME = "lock"
#: Names to try while a sweep keeps removing the new directory between mkdir(2) and flock(2).
_MAX_TRIES = 100
#: Directories removed in one call, nested or not; the next sweep removes the rest.
_MAX_DIRECTORIES = 20_000


def require_posix() -> None:
    """Raise `NotAvailable` on a system without directory descriptors and flock(2)."""
    if sys.platform == "win32":
        raise NotAvailable("Staging needs a POSIX system (Linux, macOS, a BSD); on Windows only imports work.")


def is_private_name(name: str) -> bool:
    """Return whether a private directory can have this name; `PREFIX` begins other names of peerstage, too."""
    return _NAME.fullmatch(name) is not None


def is_private_directory(name: str, target_fd: int) -> bool:
    """Return whether *name* is a private directory, not a file that only has a similar name.

    Args:
        name: A name in the target.
        target_fd: Descriptor of the target.
    """
    if not is_private_name(name):
        return False
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=target_fd, follow_symlinks=False).st_mode)
    except OSError:  # removed by its owner
        return False


class PrivateDirectory:
    """A new private directory in *target_fd*, locked until `remove`.

    Args:
        target_fd: Descriptor of the target.
        target: Path of the target, for messages.
        log: Log for a directory that cannot be removed.

    Attributes:
        name: The directory's name in the target.
        fd: The directory's descriptor, for ``dir_fd=``.
    """

    def __init__(self, target_fd: int, target: str, log: PeerLog) -> None:
        self._target_fd = target_fd
        self._target = target
        self._log = log
        self._owner = OwnerProcess()
        for _ in range(_MAX_TRIES):
            self.name = PREFIX + secrets.token_hex(4)
            self.fd = self._lock_fd = -1
            try:
                os.mkdir(self.name, 0o700, dir_fd=target_fd)
            except FileExistsError:
                continue
            try:
                if self._lock():
                    return
            except BaseException:
                with contextlib.suppress(OSError):
                    if self.fd >= 0:
                        empty_directory(self.fd)
                    os.rmdir(self.name, dir_fd=target_fd)
                self._close()
                raise
            self._close()
        raise TargetError(
            "Another process keeps removing the private directory. Wait until its sweep has ended, then stage again.",
            path=target,
            reason=Reason.TARGET_INTERFERED,
        )

    def belongs_to_this_process(self) -> bool:
        """Return False in a forked child."""
        return self._owner.is_current()

    def remove(self) -> None:
        """Remove the directory with its content. If that fails, log it and leave the rest to the next sweep.

        A forked child removes nothing: the directory belongs to its parent.
        """
        if not self._owner.is_current():
            self._close()
            return
        try:
            empty_directory(self.fd)
            with contextlib.suppress(FileNotFoundError):  # removed by a sweep
                os.rmdir(self.name, dir_fd=self._target_fd)
        except OSError as exc:
            self._log.warning(
                "%s could not be removed: %s; the next run or `peerstage sweep` tries again.",
                escape(os.path.join(self._target, self.name)),
                exc.strerror,
            )
        finally:
            self._close()

    def _lock(self) -> bool:
        """Open and lock the directory; return False if a sweep has removed it."""
        try:
            self.fd = open_directory(self.name, dir_fd=self._target_fd)
            self._lock_fd = open_lock(self.fd, create=True)
        except FileNotFoundError:
            return False
        if os.fstat(self._lock_fd).st_uid != os.fstat(self.fd).st_uid or os.listdir(self.fd) not in ([LOCK_NAME], []):
            self._close()  # not the directory made above: a user with write access to the target has replaced it
            raise TargetError(
                "Another user replaced the private directory. Choose a target that only you can write to.",
                path=self._target,
                reason=Reason.TARGET_INTERFERED,
            )
        return try_lock(self._lock_fd, if_unsupported=True) and os.fstat(self._lock_fd).st_nlink > 0

    def _close(self) -> None:
        for fd in (self._lock_fd, self.fd):
            close_quietly(fd)
        self._lock_fd = self.fd = -1


def open_lock(dir_fd: int, *, create: bool = False) -> int:
    """Return a descriptor of the lock file in a private directory; with *create* it must not exist."""
    return os.open(LOCK_NAME, LOCK_FILE | os.O_CREAT | os.O_EXCL if create else LOCK_FILE, 0o600, dir_fd=dir_fd)


def try_lock(fd: int, *, if_unsupported: bool) -> bool:
    """Lock *fd* without waiting; return False if another process holds the lock.

    On a file system without locks return *if_unsupported*: a run continues there, a sweep removes nothing.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        return if_unsupported and exc.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def empty_directory(fd: int) -> None:
    """Remove everything in the directory *fd*, the lock file last, so that a sweep can resume an interrupted removal.

    Nested directories are moved up before they are emptied, so that depth costs neither descriptors nor stack.
    """
    count = 0
    while directories := _unlink_files(fd):
        count += len(directories)
        if count > _MAX_DIRECTORIES:
            raise OSError(errno.EBUSY, "it holds too many directories, or another process keeps adding some")
        for name in directories:
            _flatten(fd, name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(LOCK_NAME, dir_fd=fd)


def _unlink_files(fd: int) -> list[str]:
    """Unlink everything but the lock file and directories; return the names of the directories."""
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name != LOCK_NAME]
    for name, is_directory in found:
        if not is_directory:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)
    return [name for name, is_directory in found if is_directory]


def _flatten(fd: int, name: str) -> None:
    """Remove the directory *name* after moving its subdirectories up into *fd*."""
    with contextlib.suppress(FileNotFoundError):
        with closing(_open_writable(name, fd)) as inner:
            for directory in _unlink_files(inner):
                with closing(_open_writable(directory, inner)):  # moving a directory writes to it: ".." changes
                    os.rename(directory, f"moved-{secrets.token_hex(8)}", src_dir_fd=inner, dst_dir_fd=fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(LOCK_NAME, dir_fd=inner)
        os.rmdir(name, dir_fd=fd)


def _open_writable(name: str, dir_fd: int) -> int:
    """Open a directory and make it writable; root also takes its ownership."""
    try:
        fd = open_directory(name, dir_fd=dir_fd)
    except PermissionError:  # never for root, so no link that another user plants here can be followed by root
        os.chmod(name, 0o700, dir_fd=dir_fd)
        fd = open_directory(name, dir_fd=dir_fd)
    try:
        if os.geteuid() == 0 and os.fstat(fd).st_uid != 0:  # else a process of its owner could refill it endlessly
            os.fchown(fd, 0, 0)
        os.fchmod(fd, 0o700)
    except OSError:
        close_quietly(fd)
        raise
    return fd
