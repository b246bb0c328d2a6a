"""Getting data onto the disk: as little waiting as possible, as much as was promised.

fsync(2) of every file costs a disk a file; syncfs(2) of the file system costs little more than the data, but also
writes what others have dirty. So: fsync for a few files, syncfs for many, where it can be relied on: it reports write
errors since Linux 5.8, and not every file system has it do what fsync does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from functools import lru_cache
from typing import Any

#: Up to so many files an fsync each is cheaper than a sync of the whole file system.
FEW = 16
_SYNC_FILE_RANGE_WRITE = 2
#: The first Linux whose syncfs(2) reports that an earlier write failed.
_REPORTS_ERRORS = (5, 8)
#: File systems (f_type of statfs(2)) whose syncfs does all that fsync does: ext2 to ext4, xfs, btrfs, f2fs, zfs, tmpfs.
#: FUSE does not pass it on to the program that serves the files, and overlayfs does not tell of errors below it.
_RELIABLE = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x2FC12FC1, 0x01021994})


@lru_cache(maxsize=1)
def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "syncfs") else None


def can_sync_all(fd: int, *, release: str | None = None, kind: int | None = None) -> bool:
    """Return whether `syncfs` makes every file durable, and reports when that fails.

    Args:
        fd: A descriptor of something in the file system.
        release: The kernel's release, as uname(2) tells it; None asks it.
        kind: The type of the file system, as statfs(2) tells it; None asks.
    """
    if _libc() is None:
        return False
    found = re.match(r"(\d+)\.(\d+)", os.uname().release if release is None else release)
    if found is None or (int(found[1]), int(found[2])) < _REPORTS_ERRORS:
        return False
    return (_type_of(fd) if kind is None else kind) in _RELIABLE


def _type_of(fd: int) -> int:
    """Return the type of the file system that *fd* lies on, 0 where it cannot be told."""
    answer = (ctypes.c_long * 64)()  # struct statfs begins with f_type and is smaller
    return int(answer[0]) & 0xFFFFFFFF if _libc().fstatfs(fd, answer) == 0 else 0


def syncfs(fd: int) -> None:
    """Write everything of the file system that *fd* lies on to the disk, and wait.

    Raises:
        OSError: A write failed; what was to be made durable may not be.
    """
    if _libc().syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def sync_directory(fd: int) -> None:
    """Put the names in a directory on the disk; file systems that can not do that for a directory keep them anyhow.

    Raises:
        OSError: The disk failed.
    """
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def can_start_writeback() -> bool:
    """Return whether `start_writeback` does anything on this system."""
    libc = _libc()
    return libc is not None and hasattr(libc, "sync_file_range")


def start_writeback(fd: int) -> None:
    """Ask the kernel to begin writing the dirty pages of *fd*; blocks while the device's queue is full.

    A failure does not matter here: the sync at the end reports it.
    """
    _libc().sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
