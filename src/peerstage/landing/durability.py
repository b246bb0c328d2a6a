"""Getting data onto the disk: as little waiting as possible, as much as was promised.

fsync(2) of every file costs a disk a file; syncfs(2) of the file system costs little more than the data, but also
writes what others have dirty. So: fsync for a few files, syncfs for many (Linux only; it reports errors since 5.8).
While a large file arrives its dirty pages are handed to the disk early, so that little is left to wait for at the end.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import lru_cache
from typing import Any

#: Up to so many files an fsync each is cheaper than a sync of the whole file system.
FEW = 16
#: Bytes of one file that may be dirty before write-back is started.
WRITEBACK_BYTES = 8 * 1024 * 1024
_SYNC_FILE_RANGE_WRITE = 2


@lru_cache(maxsize=1)
def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "syncfs") else None


def has_syncfs() -> bool:
    """Whether this system can sync one file system as a whole, and reports when that fails."""
    return _libc() is not None


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


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing a range of *fd*; waits for nothing and can not fail in a way that matters."""
    libc = _libc()
    if libc is not None and hasattr(libc, "sync_file_range"):
        libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)
