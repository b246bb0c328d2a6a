"""Removal of the private directories that killed runs left behind."""

from __future__ import annotations

import contextlib
import errno
import os

from peerstage.peer_log import PeerLog
from peerstage.printable import escape
from peerstage.records import StrOrBytesPath
from peerstage.system_errors import target_errors
from peerstage.target.file_descriptors import close_quietly, closing, open_directory
from peerstage.target.private_directory import (
    LOCK_NAME,
    PREFIX,
    empty_directory,
    is_private_name,
    open_lock,
    require_posix,
    try_lock,
)
from peerstage.target.walk import walk

_log = PeerLog("peerstage.target")


def sweep_directory(target_fd: int, path: str = "", log: PeerLog = _log) -> list[str]:
    """Remove stale private directories directly in *target_fd*; log and return their names.

    A directory is stale if it has the name of a private directory and our owner, and nobody holds its lock. Symlinks
    are not followed.

    Args:
        target_fd: Descriptor of the directory.
        path: Its path, for the log.
        log: The log.

    Raises:
        OSError: If the directory cannot be read. A failed removal is only logged.
    """
    with os.scandir(target_fd) as entries:
        names = [entry.name for entry in entries if is_private_name(entry.name)]
    return [name for name in names if _remove_stale(target_fd, name, path, log)]


def sweep(root: StrOrBytesPath) -> list[str]:
    """Remove stale private directories anywhere below *root*, a staging directory or a whole pool of them.

    Private directories of live runs are kept, and symlinks are not followed, so a sweep may run at any time. Other
    directories of peerstage, such as the records of a pool, are neither removed nor entered. Neither the depth nor the
    width of the tree costs stack or descriptors. Subdirectories that cannot be read are skipped.

    Returns:
        The paths of the removed directories.

    Raises:
        TargetError: If *root* cannot be read.
    """
    require_posix()
    top = os.fsdecode(root)
    removed: list[str] = []
    with target_errors("It cannot be swept", top):
        for parts, fd, names in walk(top):
            if any(name.startswith(PREFIX) for name in names):
                names[:] = [name for name in names if not name.startswith(PREFIX)]
                path = os.path.join(top, *parts)
                with contextlib.suppress(OSError):
                    removed.extend(os.path.join(path, name) for name in sweep_directory(fd, path))
    return removed


def _remove_stale(target_fd: int, name: str, path: str, log: PeerLog) -> bool:
    try:
        fd = open_directory(name, dir_fd=target_fd)
    except OSError:  # not a directory, or already gone
        return False
    with closing(fd):
        lock_fd = None
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                return False
            # Without a lock file the owner died, or still is, between mkdir(2) and open(2). The directory is empty
            # then: rmdir(2) succeeds, and a live owner tries another name.
            with contextlib.suppress(FileNotFoundError):
                lock_fd = open_lock(fd)
            if lock_fd is not None:
                if not try_lock(lock_fd, if_unsupported=False):
                    return False
                empty_directory(fd)
            os.rmdir(name, dir_fd=target_fd)
        except FileNotFoundError:  # removed by its owner or another sweep
            return False
        except OSError as exc:
            if lock_fd is not None or not _owner_has_locked(fd, exc):
                log.warning("The leftover %s could not be removed: %s.", escape(os.path.join(path, name)), exc.strerror)
            return False
        finally:
            if lock_fd is not None:
                close_quietly(lock_fd)
    log.info("Removed %s, left by a killed run.", escape(os.path.join(path, name)))
    return True


def _owner_has_locked(fd: int, exc: OSError) -> bool:
    """Return whether rmdir(2) failed because a live owner has created the lock file since we looked for it.

    The lock file is the first file that an owner creates and the last that it removes.
    """
    if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        return False
    with contextlib.suppress(OSError):
        names = os.listdir(fd)
        return not names or LOCK_NAME in names
    return False
