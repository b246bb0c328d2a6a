"""Reading small files that the user named: regular ones, in one piece, and no more than a bound."""

from __future__ import annotations

import errno
import glob
import os
import re
import stat

from peerstage.system_errors import is_of_this_machine, system_error

#: Bytes to ask for of a file that is longer than it says.
_PIECE = 256 * 1024


def read_regular(path: str, most: int) -> bytes:
    """Return the content of the regular file *path*, links followed. See `read_with_status`."""
    return read_with_status(path, most)[0]


def read_with_status(path: str, most: int) -> tuple[bytes, os.stat_result]:
    """Return the content of the regular file *path*, links followed, and the status of the very file that was read.

    Raises:
        OSError: It can not be read, is no regular file, or holds more than *most* bytes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError as exc:  # a NUL in it, or what no file system's encoding has
        raise OSError(errno.EINVAL, f"no path ({exc})") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        data = read_at_most(fd, most + 1)
    finally:
        os.close(fd)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", path)
    return data, status


def read_at_most(fd: int, most: int) -> bytes:
    """Return the rest of the file *fd*, *most* bytes of it at most; memory is taken for what is there, not for *most*.

    Raises:
        OSError: If it cannot be read.
    """
    size = os.fstat(fd).st_size
    pieces: list[bytes] = []
    count = 0
    while count < most and (piece := os.read(fd, min(most - count, max(_PIECE, size - count)))):
        pieces.append(piece)
        count += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def matching_paths(pattern: str) -> list[str]:
    """Return the paths that match *pattern* (glob(7)), sorted.

    Raises:
        StageError: If this machine is short of descriptors or memory, or its disk fails; `glob` would find nothing.
    """
    fixed = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    if fixed != pattern:
        directory = os.path.dirname(fixed)
        try:
            os.scandir(directory).close()
        except OSError as exc:
            if is_of_this_machine(exc):
                raise system_error("It cannot be listed", exc, path=directory) from exc
    return sorted(glob.glob(pattern))
