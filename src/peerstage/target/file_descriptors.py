"""Descriptors of directories. The target opens each directory once and names files relative to it (openat(2)).

Python adds O_CLOEXEC to every open(2).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
#: To read a file that may be a FIFO or a terminal instead, without waiting for it or taking it over.
READ_WITHOUT_WAITING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
#: To open a file for flock(2), which may be a FIFO instead.
LOCK_FILE = os.O_RDWR | NO_FOLLOW | getattr(os, "O_NONBLOCK", 0)
CREATE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW

_BY_DESCRIPTOR = re.compile(r"/proc/\d+/fd/\d+", re.ASCII)
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)


def open_directory(path: str | bytes, *, dir_fd: int | None = None, follow: bool = False) -> int:
    """Return a descriptor of the directory *path*; a symlink is an error unless *follow* is given."""
    return os.open(path, _DIRECTORY if follow else _DIRECTORY | NO_FOLLOW, dir_fd=dir_fd)


def readable_path(path: str) -> str:
    """Return where *path* leads if it names an open directory by its descriptor (``/proc/1/fd/7``), else *path*."""
    if _BY_DESCRIPTOR.fullmatch(path):
        with contextlib.suppress(OSError):
            return os.readlink(path)
    return path


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close *fd* at the end of the block, as `close_quietly` does."""
    try:
        yield fd
    finally:
        close_quietly(fd)


def close_quietly(fd: int) -> None:
    """Close a descriptor that nothing was written to, so that an error of close(2) means nothing; ignore -1."""
    with contextlib.suppress(OSError):
        os.close(fd)
