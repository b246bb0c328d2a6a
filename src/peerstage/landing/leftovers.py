"""The sweep of private directories that killed runs left."""

from __future__ import annotations

import contextlib
import errno
import os

from peerstage.errors import LandingError, escape
from peerstage.landing.private import (
    LOCK,
    LOCK_FLAGS,
    PREFIX,
    close_quietly,
    closing,
    empty_directory,
    lock,
    log,
    open_directory,
    require_posix,
)
from peerstage.landing.walk import walk
from peerstage.peer_log import PeerLog
from peerstage.records import StrOrBytesPath
from peerstage.system_errors import target_reason_of


def sweep_directory(target_fd: int, log: PeerLog = log) -> list[str]:
    """Remove the leftovers of killed runs that lie directly in *target_fd*; log and return their names.

    Only directories with our name and owner are touched, and only if nobody holds their lock. Links are not followed.

    Raises:
        OSError: If the directory cannot be read. A leftover that cannot be removed is logged.
    """
    with os.scandir(target_fd) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(PREFIX)]
    return [name for name in names if _remove_stale(target_fd, name, log)]


def sweep(root: StrOrBytesPath) -> list[str]:
    """Remove what killed runs left anywhere below *root*, a staging directory or a whole pool of them.

    Leftovers of runs that still live are not touched; links are not followed. Runs beside anything else. Neither depth
    nor width of the tree costs stack or descriptors; what cannot be read below *root* is left out.

    Returns:
        The paths of the directories that were removed.

    Raises:
        LandingError: If *root* cannot be read.
    """
    require_posix()
    top = os.fsdecode(root)
    removed: list[str] = []
    try:
        for parts, fd, names in walk(top):
            if any(name.startswith(PREFIX) for name in names):
                names[:] = [name for name in names if not name.startswith(PREFIX)]
                with contextlib.suppress(OSError):
                    removed.extend(os.path.join(top, *parts, name) for name in sweep_directory(fd))
    except OSError as exc:
        raise LandingError(
            f"It can not be swept: {exc.strerror}.", path=top, errno=exc.errno, reason=target_reason_of(exc)
        ) from exc
    return removed


def _remove_stale(target_fd: int, name: str, log: PeerLog) -> bool:
    try:
        fd = open_directory(name, dir_fd=target_fd)
    except OSError:  # not a directory, or gone meanwhile
        return False
    with closing(fd):
        lock_fd = None
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                return False
            with contextlib.suppress(FileNotFoundError):  # then its owner died, or is, between mkdir and lock: it is
                lock_fd = os.open(LOCK, LOCK_FLAGS, dir_fd=fd)  # empty, and a living owner chooses another name
            if lock_fd is not None:
                if not lock(lock_fd, without_locks=False):
                    return False
                empty_directory(fd)
            os.rmdir(name, dir_fd=target_fd)
        except FileNotFoundError:  # its owner, or another sweep, was quicker
            return False
        except OSError as exc:
            if lock_fd is not None or not _was_locked_by_now(fd, exc):
                log.warning("The leftover %s could not be removed: %s.", escape(name), exc.strerror)
            return False
        finally:
            if lock_fd is not None:
                close_quietly(lock_fd)
    log.info("Removed %s, which a killed run had left.", escape(name))
    return True


def _was_locked_by_now(fd: int, exc: OSError) -> bool:
    """Whether a directory that had no lock is not empty because its owner, which lives, has made it by now.

    The lock is the first file that an owner makes and the last that it removes.
    """
    if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        return False
    with contextlib.suppress(OSError):
        names = os.listdir(fd)
        return not names or LOCK in names
    return False
