"""Durability: which system calls guarantee that data is on the disk, and where they are reliable.

fsync(2) costs a disk write for each file. syncfs(2) costs little more than the data, but also writes what other
processes have dirty. So a few files get an fsync each; many files, and those of runs that end together, get one syncfs
where it is reliable: Linux reports write errors there since 5.8, and not every file system does for syncfs what it does
for fsync.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from functools import lru_cache
from typing import Any

#: Up to this many files, an fsync each is cheaper than a sync of the whole file system.
MAX_FSYNCS = 16
_SYNC_FILE_RANGE_WRITE = 2
#: The first Linux whose syncfs(2) reports that an earlier write failed.
_REPORTS_ERRORS = (5, 8)
#: Types (f_type of statfs(2)) of file systems whose syncfs does all that fsync does: ext2 to ext4, xfs, btrfs, f2fs,
#: zfs, tmpfs. FUSE does not forward it to the program that serves the files; overlayfs hides errors of lower layers.
_RELIABLE = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x2FC12FC1, 0x01021994})


@lru_cache(maxsize=1)
def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "syncfs") else None


def is_syncfs_reliable(fd: int) -> bool:
    """Return whether `syncfs` makes every file of the file system of *fd* durable and reports errors."""
    if _libc() is None:
        return False
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release is None or (int(release[1]), int(release[2])) < _REPORTS_ERRORS:
        return False
    return _file_system_type(fd) in _RELIABLE


def _file_system_type(fd: int) -> int:
    """Return the type of the file system of *fd*, 0 if unknown."""
    statfs = (ctypes.c_long * 64)()  # struct statfs begins with f_type and is smaller
    return int(statfs[0]) & 0xFFFFFFFF if _libc().fstatfs(fd, statfs) == 0 else 0


def syncfs(fd: int) -> None:
    """Write all dirty data of the file system of *fd* to the disk, and wait.

    Raises:
        OSError: If a write failed, so that some data may not be durable.
    """
    if _libc().syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def sync_directory(fd: int) -> None:
    """Write the names in a directory to the disk. A file system without fsync for directories does so by itself.

    Raises:
        OSError: If the disk failed.
    """
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def can_start_writeback() -> bool:
    """Return whether this system has `start_writeback`."""
    libc = _libc()
    return libc is not None and hasattr(libc, "sync_file_range")


def start_writeback(fd: int) -> None:
    """Ask the kernel to start writing the dirty pages of *fd*; block while the device's queue is full.

    Errors are ignored: the sync at the end reports them.
    """
    _libc().sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
