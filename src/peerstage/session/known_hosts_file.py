"""Writing known_hosts: lines are added whole or not at all, and none that another writer adds meanwhile is lost."""

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

from peerstage.errors import NotAvailable
from peerstage.session.certificates import blob_type
from peerstage.session.files import read_at_most
from peerstage.session.known_hosts import MOST_BYTES, lookup_name

if sys.platform != "win32":
    import fcntl

#: Seconds that another writer is waited for; it needs milliseconds.
PATIENCE = 5.0
_PAUSE = 0.02
_SALT_BYTES = 20
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
#: What would be read as something else than one name (sshd(8)): patterns, lists, markers, comments, white space.
_NOT_LITERAL = re.compile(rb"[*?!,|@#\s\x00-\x1f]")


def line_of(host: str, port: int, key: bytes, *, hashed: bool) -> bytes:
    """Return the line by which *host* is known by *key*.

    Args:
        host: Name or address; an IPv6 address without brackets.
        port: TCP port.
        key: The public key, as SSH encodes it.
        hashed: Whether the name is hidden (HashKnownHosts). A name that would be read as a pattern always is: hashed it
            stands for itself alone.
    """
    name = lookup_name(host, port)
    if hashed or _NOT_LITERAL.search(name):
        salt = secrets.token_bytes(_SALT_BYTES)
        name = b"|1|" + b"|".join(base64.b64encode(part) for part in (salt, hmac.digest(salt, name, "sha1")))
    return b"%s %s %s\n" % (name, blob_type(key).encode("ascii"), base64.b64encode(key))


class LockedFile:
    """A known_hosts file that nobody else writes meanwhile. Made by `locked`."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    def append(self, lines: bytes) -> None:
        """Add *lines* behind what the file holds: afterwards it holds all of them, or as before a failure none.

        The new file has the mode and the owner of the old one, and is on the disk before it takes its name.

        Raises:
            OSError: It can not be written.
        """
        status = os.fstat(self._fd)
        if status.st_size + len(lines) > MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), self._path)
        old = _read_all(self._fd)
        head = old if not old or old.endswith(b"\n") else old + b"\n"
        directory, name = os.path.split(self._path)
        new = os.path.join(directory, f".{name}.peerstage")  # whoever holds the lock is alone with this name
        with contextlib.suppress(FileNotFoundError):  # one that was killed right here has left it
            os.unlink(new)
        fd = os.open(new, _FLAGS | os.O_EXCL, 0o600)
        try:
            _try_lock(fd)  # before anybody sees it, so that the lock goes on without a gap
            _write_all(fd, head + lines)
            made = os.fstat(fd)
            if (made.st_uid, made.st_gid) != (status.st_uid, status.st_gid):
                os.fchown(fd, status.st_uid, status.st_gid)
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
            os.fsync(fd)
            os.replace(new, self._path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise
        replaced, self._fd = self._fd, fd
        os.close(replaced)
        _sync_directory(directory)

    def close(self) -> None:
        """Let others write."""
        os.close(self._fd)


@contextlib.contextmanager
def locked(path: str, *, sleep: Callable[[float], object] = time.sleep) -> Iterator[LockedFile]:
    """Make *path* if it is not there (mode 0600, its directory 0700), and lock it against other writers of ours.

    A link is followed, and stays one. The lock is one on the file itself (flock(2)): whoever waited for it looks
    whether the file has been replaced meanwhile, and then locks the new one. ssh itself takes no lock.

    Args:
        path: The known_hosts file.
        sleep: Waits some seconds; may raise to give up.

    Raises:
        OSError: It can not be opened for writing, is no regular file, or stays locked for `PATIENCE`.
        NotAvailable: There is no flock(2).
    """
    if sys.platform == "win32":
        raise NotAvailable("Writing known_hosts needs a POSIX system. Use ssh-keyscan, and compare the fingerprints.")
    until = time.monotonic() + PATIENCE
    while True:
        real = os.path.realpath(path)
        with contextlib.closing(LockedFile(real, fd := _open(real))) as file:
            _lock(fd, real, until, sleep)
            if _is_still(real, fd):
                yield file
                return


def _open(path: str) -> int:
    try:
        fd = os.open(path, _FLAGS, 0o600)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # somebody else was quicker
            os.mkdir(os.path.dirname(path), 0o700)
        fd = os.open(path, _FLAGS, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, path: str, until: float, sleep: Callable[[float], object]) -> None:
    while not _try_lock(fd):
        if time.monotonic() > until:
            raise TimeoutError(errno.ETIMEDOUT, f"another process has kept it locked for {PATIENCE:g} s", path)
        sleep(_PAUSE)


def _try_lock(fd: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _is_still(path: str, fd: int) -> bool:
    """Whether *path* is the file that *fd* is."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _read_all(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    return read_at_most(fd, MOST_BYTES)


def _write_all(fd: int, data: bytes) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(data)


def _sync_directory(directory: str) -> None:
    with contextlib.suppress(OSError):  # some file systems know no such thing, and the name is there already
        fd = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
