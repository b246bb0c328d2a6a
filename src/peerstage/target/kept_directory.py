"""The directory of kept files, which several runs may share.

It is named by the user, so nothing is removed but what has one of our names.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import secrets
import shlex
import time
from collections.abc import Iterator
from typing import NamedTuple

from peerstage.errors import StageError, TargetError
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.system_errors import is_machine_wide, target_reason_of
from peerstage.target.file_descriptors import CREATE_NEW, close_quietly, closing, open_directory

#: Seconds after which a kept file is removed: a fortnight covers holidays, and few backups are still wanted after it.
MAX_AGE = 14 * 24 * 3600
#: Seconds after which a kept file gives way to the stages of other peers: its own peer's next runs have not used it.
UNUSED_AGE = 3 * 24 * 3600
#: Seconds by which the clock may have been set back; a file from a later time is removed.
_MAX_CLOCK_STEP = 24 * 3600
#: Entries of the directory that one run looks at.
_MAX_ENTRIES = 20_000
#: A hidden name, which no remote peer's file can have; the hashes are of peer and directory, and of the file's name.
_NAME = re.compile(r"\.partial-[0-9a-f]{32}-[0-9a-f]{32}\Z")


def prefix_for(source: str) -> str:
    """Return how the names of kept files begin that are of one *source*, a hash of peer and directory."""
    return f".partial-{source[:32]}-"


class _Found(NamedTuple):
    """A kept file, sorted by the order in which files are removed if there is too little space."""

    is_own: bool
    mtime: float
    name: str
    allocated: int


class KeptDirectory:
    """The directory, open. Creating this object checks it, and creates it if only it is missing.

    Args:
        path: The directory: on the target's file system, outside the target, with mode 0700, and belonging to this
            process.
        target_fd: Descriptor of the target.
        private_fd: Descriptor of the private directory.
        log: The log.

    Attributes:
        fd: Its descriptor.
        new_group: The group that a new file in the private directory gets.

    Raises:
        TargetError: If the directory cannot be used.
    """

    def __init__(self, path: str, *, target_fd: int, private_fd: int, log: PeerLog) -> None:
        self._path = path
        self._private_fd = private_fd
        self._log = log
        with self._as_target_error():
            self.fd = _open_private(path, target_fd)
            try:
                self.new_group = self._move_probe()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the descriptor."""
        close_quietly(self.fd)

    def names_of(self, source: str) -> set[str]:
        """Remove every file that is too old, and return the names of the others that are of *source*.

        Raises:
            TargetError: If the directory cannot be read.
        """
        now = time.time()
        names = set()
        with self._as_target_error():
            for found in list(self._list(source)):
                if not now - MAX_AGE <= found.mtime <= now + _MAX_CLOCK_STEP:
                    self._log.info("Removing the kept file %s: it is too old.", found.name)
                    self.unlink(found.name)
                elif found.is_own:
                    names.add(found.name)
        return names

    def make_space(self, needed: int, source: str) -> int:
        """Remove kept files, the oldest first, and those of *source* last; return the bytes that they took.

        Of other sources only files older than `UNUSED_AGE` are removed: a peer may announce files that it does not
        have, and would otherwise remove what the next runs of others continue.

        Args:
            needed: The bytes to free. If all these files together take fewer, none is removed.
            source: A hash of peer and directory.
        """
        freed = 0
        unused_since = time.time() - UNUSED_AGE
        with contextlib.suppress(OSError):
            found = sorted(file for file in self._list(source) if file.is_own or file.mtime < unused_since)
            if sum(file.allocated for file in found) < needed:
                return 0
            for file in found:
                if freed >= needed:
                    break
                self._log.warning("Removing the kept file %s: the stage needs its space.", file.name)
                self.unlink(file.name)
                freed += file.allocated
        return freed

    def allocated_bytes(self) -> int:
        """Return how many bytes the kept files of all sources take; 0 if the directory cannot be read."""
        with contextlib.suppress(OSError):
            return sum(file.allocated for file in self._list(""))
        return 0

    def unlink(self, name: str) -> None:
        """Remove the file *name*, unless another run does so or takes it over; errors do not matter."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self.fd)

    def _list(self, source: str) -> Iterator[_Found]:
        prefix = prefix_for(source)
        with os.scandir(self.fd) as entries:
            for entry in itertools.islice(entries, _MAX_ENTRIES):
                if _NAME.match(entry.name) and not entry.is_dir(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        is_own = entry.name.startswith(prefix)
                        yield _Found(is_own, found.st_mtime, entry.name, found.st_blocks * 512)

    def _move_probe(self) -> int:
        """Move a new file from the private directory to this one, and remove it; return the group that it got.

        Raises:
            TargetError: If files cannot be moved here, which device numbers do not tell of bind mounts.
        """
        probe = "probe"
        with closing(os.open(probe, CREATE_NEW, 0o600, dir_fd=self._private_fd)) as fd:
            group = os.fstat(fd).st_gid
        moved = f".partial-{secrets.token_hex(16)}-{secrets.token_hex(16)}"
        try:
            os.rename(probe, moved, src_dir_fd=self._private_fd, dst_dir_fd=self.fd)
        except OSError as exc:
            os.unlink(probe, dir_fd=self._private_fd)
            if exc.errno != errno.EXDEV:
                raise
            raise _unusable(
                "It is not on the target's file system. Give a directory there, for example next to the target.",
                self._path,
            ) from exc
        self.unlink(moved)
        return group

    @contextlib.contextmanager
    def _as_target_error(self) -> Iterator[None]:
        try:
            yield
        except StageError:
            raise
        except OSError as exc:
            raise TargetError(
                f"StageOptions(partial_dir=...) cannot be used: {exc.strerror}.",
                path=self._path,
                errno=exc.errno,
                reason=target_reason_of(exc) if is_machine_wide(exc) else Reason.PARTIAL_DIR_UNUSABLE,
            ) from exc


def _open_private(path: str, target_fd: int) -> int:
    """Return a descriptor of the directory *path*, created if only it is missing.

    Raises:
        TargetError: If it is the target or in it, others can reach it, or it is not this process's.
        OSError: If it cannot be created or opened.
    """
    try:
        try:
            fd = open_directory(path)
        except FileNotFoundError:
            with closing(open_directory(os.path.dirname(path.rstrip("/")), follow=True)) as parent_fd:
                _require_outside(parent_fd, target_fd, path)
            with contextlib.suppress(FileExistsError):  # created by another run
                os.mkdir(path, 0o700)
            fd = open_directory(path)
    except OSError as exc:
        if exc.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise _unusable("It is a symlink, or not a directory. Give a directory.", path) from exc
    try:
        _require_outside(fd, target_fd, path)
        _require_private(fd, path)
    except BaseException:
        close_quietly(fd)
        raise
    return fd


def _require_outside(fd: int, target_fd: int, path: str) -> None:
    """Raise `TargetError` if the directory *fd* is the target or below it, where its files would seem to be staged."""
    target, found, above = os.fstat(target_fd), os.fstat(fd), ".."
    while not os.path.samestat(found, target):
        parent = os.stat(above, dir_fd=fd)
        if os.path.samestat(parent, found):  # the root
            return
        found, above = parent, f"{above}/.."
    raise _unusable("It is the target, or in it. Give a directory next to the target.", path)


def _require_private(fd: int, path: str) -> None:
    """Raise `TargetError` if others can reach the directory *fd*, or it is not this process's."""
    found = os.fstat(fd)
    message = ""
    if found.st_uid != os.geteuid():
        message = f"It belongs to the user {found.st_uid}, and this process runs as {os.geteuid()}. Give another one."
    elif found.st_mode & 0o777 != 0o700:
        message = f"Its mode is {found.st_mode & 0o777:04o}, and must be 0700. Run `chmod 700 {shlex.quote(path)}`."
    if message:
        raise _unusable(message, path)


def _unusable(message: str, path: str) -> TargetError:
    return TargetError(
        f"StageOptions(partial_dir=...) cannot be used. {message}", path=path, reason=Reason.PARTIAL_DIR_UNUSABLE
    )
