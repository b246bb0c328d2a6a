"""Append to known_hosts files: atomically, and under a lock, so that concurrent writers lose no lines."""

from __future__ import annotations

import base64
import contextlib
import errno
import hmac
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator

from peerstage.bounded_files import read_at_most
from peerstage.errors import NotAvailable
from peerstage.ssh.hostkeys.known_hosts import MAX_BYTES, known_hosts_name
from peerstage.ssh.keys.public_keys import format_public_key

if sys.platform != "win32":
    import fcntl

#: Seconds to wait for the lock, which other processes hold for milliseconds.
LOCK_TIMEOUT = 5.0
_LOCK_INTERVAL = 0.02
_SALT_BYTES = 20
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
#: Characters with a meaning in known_hosts: those of patterns, lists, hashes, markers and comments, and white space.
_SPECIAL = re.compile(rb"[*?!,|@#\s\x00-\x1f]")


def format_entry(host: str, port: int, key: bytes, *, hashed: bool) -> bytes:
    """Return the known_hosts line for *key* of *host*.

    Args:
        host: Name or address; an IPv6 address without brackets.
        port: TCP port.
        key: The public key, as SSH encodes it.
        hashed: Whether to hash the name (HashKnownHosts). A name that would be read as a pattern is always hashed.
    """
    name = known_hosts_name(host, port)
    if hashed or _SPECIAL.search(name):
        salt = secrets.token_bytes(_SALT_BYTES)
        name = b"|1|" + b"|".join(base64.b64encode(part) for part in (salt, hmac.digest(salt, name, "sha1")))
    return b"%s %s\n" % (name, format_public_key(key).encode("ascii"))


class LockedKnownHosts:
    """A known_hosts file locked against other writers. Made by `lock_known_hosts`."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    def append(self, lines: bytes) -> None:
        """Append *lines* atomically: replace the file by a copy with all of them, or leave it as it is.

        The copy has the mode and owner of the file, and is synced before it is renamed.

        Raises:
            OSError: If the file cannot be written.
        """
        status = os.fstat(self._fd)
        if status.st_size + len(lines) > MAX_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), self._path)
        os.lseek(self._fd, 0, os.SEEK_SET)
        content = read_at_most(self._fd, MAX_BYTES)
        if content and not content.endswith(b"\n"):
            content += b"\n"
        directory, name = os.path.split(self._path)
        copy = os.path.join(directory, f".{name}.peerstage")  # used by the holder of the lock only
        with contextlib.suppress(FileNotFoundError):  # left by a process that was killed
            os.unlink(copy)
        fd = os.open(copy, _FLAGS | os.O_EXCL, 0o600)
        try:
            _try_lock(fd)  # before the rename, so that no other writer can lock it first
            with open(fd, "wb", closefd=False) as file:
                file.write(content + lines)
            copy_status = os.fstat(fd)
            if (copy_status.st_uid, copy_status.st_gid) != (status.st_uid, status.st_gid):
                os.fchown(fd, status.st_uid, status.st_gid)
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
            os.fsync(fd)
            os.replace(copy, self._path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(copy)
            raise
        replaced, self._fd = self._fd, fd
        os.close(replaced)
        _sync_directory(directory)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)


@contextlib.contextmanager
def lock_known_hosts(path: str, *, sleep: Callable[[float], object] = time.sleep) -> Iterator[LockedKnownHosts]:
    """Lock *path* against other peerstage processes; create it if it is missing (mode 0600, its directory 0700).

    A symlink is followed and kept. The lock is flock(2) on the file itself; since `append` replaces the file, a process
    that waited for the lock checks that it did not lock the replaced file. ssh itself takes no lock.

    Args:
        path: The known_hosts file.
        sleep: Sleeps for the given seconds; may raise to give up.

    Raises:
        OSError: If the file cannot be opened for writing, is not a regular file, or stays locked for `LOCK_TIMEOUT`.
        NotAvailable: If the system has no flock(2).
    """
    if sys.platform == "win32":
        raise NotAvailable("Writing known_hosts needs a POSIX system. Use ssh-keyscan, and compare the fingerprints.")
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        real_path = os.path.realpath(path)
        with contextlib.closing(LockedKnownHosts(real_path, fd := _open(real_path))) as file:
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    problem = f"another process has kept it locked for {LOCK_TIMEOUT:g} s"
                    raise TimeoutError(errno.ETIMEDOUT, problem, real_path)
                sleep(_LOCK_INTERVAL)
            if _is_current(real_path, fd):
                yield file
                return


def _open(path: str) -> int:
    try:
        fd = os.open(path, _FLAGS, 0o600)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.mkdir(os.path.dirname(path), 0o700)
        fd = os.open(path, _FLAGS, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _try_lock(fd: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _is_current(path: str, fd: int) -> bool:
    """Return whether *path* still names the file *fd*, which has then not been replaced."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _sync_directory(directory: str) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync directories, and the line is already added
        fd = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
