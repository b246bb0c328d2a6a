"""Read small files that the user named: regular files only, with a size limit."""

from __future__ import annotations

import errno
import glob
import os
import re
import shlex
import stat

from peerstage.errors import ConfigurationError, Location
from peerstage.reasons import Reason
from peerstage.system_errors import is_machine_wide, system_error

#: Bytes to read at once beyond the size that fstat(2) reports.
_CHUNK = 256 * 1024


def read_regular_file(path: str, max_bytes: int) -> bytes:
    """Return the content of the regular file *path*, following symlinks. See `read_file_and_status`."""
    return read_file_and_status(path, max_bytes)[0]


def read_file_and_status(path: str, max_bytes: int) -> tuple[bytes, os.stat_result]:
    """Return the content of the regular file *path*, following symlinks, and the status of the very file read.

    Raises:
        OSError: If it cannot be read, is not a regular file, or is larger than *max_bytes*.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError as exc:  # it contains NUL, or cannot be encoded for the file system
        raise OSError(errno.EINVAL, f"invalid path ({exc})") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        data = read_at_most(fd, max_bytes + 1)
    finally:
        os.close(fd)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", path)
    return data, status


def read_trusted_file(path: str, max_bytes: int) -> bytes:
    """Return the content of a configuration file that no other user can change. Symlinks are followed.

    Raises:
        FileNotFoundError: If it does not exist.
        ConfigurationError: If it cannot be read, is not a regular file, or is larger than *max_bytes*; or if its owner
            is neither root nor the user of this process, or its group or others can write to it.
        StageError: If this machine is short of descriptors or memory, or its disk fails.
    """
    location = Location(path)
    try:
        data, status = read_file_and_status(path, max_bytes)
    except FileNotFoundError:
        raise
    except OSError as exc:
        if is_machine_wide(exc):
            raise system_error("It cannot be read", exc, path=path) from exc
        raise ConfigurationError(
            f"It cannot be read: {exc.strerror}.",
            path=path,
            reason=Reason.CONFIGURATION_UNREADABLE,
            location=location,
        ) from exc
    own = os.geteuid() if hasattr(os, "geteuid") else status.st_uid
    is_foreign = status.st_uid not in (0, own)
    if is_foreign or stat.S_IMODE(status.st_mode) & 0o022:
        quoted = shlex.quote(path)
        chown = f"chown {own} {quoted} && " if is_foreign else ""
        raise ConfigurationError(
            f"Other users can write to it. Run `{chown}chmod go-w {quoted}`.",
            path=path,
            reason=Reason.INSECURE_CONFIGURATION,
            location=location,
        )
    return data


def read_at_most(fd: int, max_bytes: int) -> bytes:
    """Return the rest of the file *fd*, up to *max_bytes*; allocates for the file's size, not for *max_bytes*.

    Raises:
        OSError: If it cannot be read.
    """
    size = os.fstat(fd).st_size
    chunks: list[bytes] = []
    count = 0
    while count < max_bytes and (chunk := os.read(fd, min(max_bytes - count, max(_CHUNK, size - count)))):
        chunks.append(chunk)
        count += len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def glob_paths(pattern: str) -> list[str]:
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
            if is_machine_wide(exc):
                raise system_error("It cannot be listed", exc, path=directory) from exc
    return sorted(glob.glob(pattern))
