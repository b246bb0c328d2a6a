"""``.peerstage-runs``: the directory in a staging pool for locks, claims, journals and records.

The pool may belong to a backup user whom root does not trust. So the directory must belong to this process's user or to
root, and no other user may write to it, so that none can plant a file in it. The backup user could still rename another
directory of root to this one: one that is neither empty nor has our files is refused. It is opened once, and files are
named relative to its descriptor, so that replacing it during a run changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import stat
from contextlib import AbstractContextManager

from peerstage.bounded_files import read_at_most
from peerstage.errors import TargetError
from peerstage.fleet.pool.run_id import is_run_id
from peerstage.reasons import Reason
from peerstage.system_errors import target_error, target_errors
from peerstage.target.durability import sync_directory
from peerstage.target.file_descriptors import (
    CREATE_NEW,
    NO_FOLLOW,
    READ_WITHOUT_WAITING,
    close_quietly,
    closing,
    open_directory,
)
from peerstage.target.private_directory import require_posix

NAME = ".peerstage-runs"
#: The first file in the directory.
LOCK_NAME = "run.lock"
#: The suffixes of the record of a run, and of its journal.
RECORD, JOURNAL = ".json", ".jsonl"
#: How the names of files begin that are being written.
_NEW = "new-"


class RunsDirectory:
    """The directory ``.peerstage-runs`` of a staging pool, open. Use as a context manager, or call `close`.

    Args:
        staging: Absolute path of the staging pool, which must exist; symlinks on the way to it are followed.
        create: Whether to create the directory, with mode 0700, if the pool has none.

    Attributes:
        staging: As the argument.
        path: The path of the directory, for messages.
        fd: Its descriptor.

    Raises:
        TargetError: If the pool does not exist or cannot be read, or if other users can write to the directory, or
            it is a symlink. With the reason target-missing, also if the pool has no such directory.
        NotAvailable: If this is not a POSIX system.
    """

    def __init__(self, staging: str, *, create: bool = True) -> None:
        require_posix()
        self.staging = staging
        self.path = os.path.join(staging, NAME)
        try:
            pool = open_directory(staging, follow=True)
        except OSError as exc:
            advice = {
                errno.ENOENT: f"Create it with `mkdir -p {shlex.quote(staging)}`, or mount it.",
                errno.ENOTDIR: "Name another directory, or move the file out of the way.",
                errno.EACCES: "Be the user who runs the pool's runs.",
            }.get(exc.errno or 0, "")
            raise target_error("The staging pool cannot be used", exc, staging, advice) from exc
        with closing(pool):
            self.fd = self._open(pool, create=create)

    @classmethod
    def find(cls, staging: str) -> RunsDirectory | None:
        """Return the directory of the pool *staging*; None if the pool has none, because nothing has run there.

        Raises:
            TargetError: As for the class.
        """
        try:
            return cls(staging, create=False)
        except TargetError as exc:
            if exc.reason is Reason.TARGET_MISSING and exc.path != staging:
                return None
            raise

    def __enter__(self) -> RunsDirectory:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        close_quietly(self.fd)

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of the file *name*.

        Raises:
            OSError: If it cannot be read, is not a regular file, or is larger than *max_bytes*.
        """
        with closing(os.open(name, READ_WITHOUT_WAITING | NO_FOLLOW, dir_fd=self.fd)) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            data = read_at_most(fd, max_bytes + 1)
        if len(data) > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write the file *name*, mode 0600, durably: at every instant it is the old file or the complete new one.

        Raises:
            OSError: If it cannot be written, and is unchanged; or if only the last sync of the directory failed.
        """
        try:
            self._replace(name, data)
        except FileNotFoundError:  # a run that began just now has removed the new file as unfinished; it does so once
            self._replace(name, data)
        sync_directory(self.fd)

    def _replace(self, name: str, data: bytes) -> None:
        new = _NEW + secrets.token_hex(8)
        try:
            with open(os.open(new, CREATE_NEW, 0o600, dir_fd=self.fd), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(new)
            raise

    def remove(self, name: str) -> None:
        """Remove the file *name*, if there is one.

        Raises:
            OSError: If it cannot be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def remove_unfinished(self) -> None:
        """Remove the files that killed processes left while they wrote them. The caller holds the pool's lock.

        A process without the lock may be writing one, such as the record of a run whose last hook failed: it does so
        again.

        Raises:
            OSError: If the directory cannot be read.
        """
        for name in os.listdir(self.fd):
            if name.startswith(_NEW):
                with contextlib.suppress(OSError):
                    self.remove(name)

    def errors(self, failed: str) -> AbstractContextManager[None]:
        """Return a context manager that raises every `OSError` of its block as `TargetError`.

        Args:
            failed: What failed, as the beginning of a sentence.
        """
        return target_errors(failed, self.path)

    def _open(self, pool: int, *, create: bool) -> int:
        if create:
            with self.errors("It cannot be created"), contextlib.suppress(FileExistsError):
                os.mkdir(NAME, 0o700, dir_fd=pool)
        try:
            fd = open_directory(NAME, dir_fd=pool)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENOTDIR):
                raise self._interfered("It is not a directory") from exc
            advice = "Be the user who runs the pool's runs." if exc.errno == errno.EACCES else ""
            raise target_error("It cannot be opened", exc, self.path, advice) from exc
        try:
            with self.errors("It cannot be read"):
                found = os.fstat(fd)
                is_ours = _is_ours(fd)
            if found.st_uid not in (0, os.geteuid()):
                raise self._interfered(f"It belongs to another user ({found.st_uid})")
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise self._interfered("Other users can write to it")
            if not is_ours:
                raise self._interfered("It holds files, but none of runs")
        except BaseException:
            close_quietly(fd)
            raise
        return fd

    def _interfered(self, what: str) -> TargetError:
        moved = shlex.quote(f"{self.path}.foreign")
        return TargetError(
            f"{what}, so its records and locks are not trusted. Look at what it holds, then move it away: "
            f"`mv {shlex.quote(self.path)} {moved}`.",
            path=self.path,
            reason=Reason.TARGET_INTERFERED,
        )


def _is_ours(fd: int) -> bool:
    """Return whether the directory has a file of ours, or is empty."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(LOCK_NAME, dir_fd=fd, follow_symlinks=False)
        return True
    names = [os.path.splitext(name) for name in os.listdir(fd)]
    return not names or any(suffix in (RECORD, JOURNAL) and is_run_id(stem) for stem, suffix in names)
