"""The lock of a staging pool: one run at a time, also between hosts that share the pool.

flock(2) on ``.peerstage-runs/run.lock``. The kernel releases it with the process, so a lock is never stale. The file's
content says who holds it; without a lock it means nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from dataclasses import dataclass

from peerstage.errors import RunLocked, TargetError
from peerstage.fleet.pool.runs_directory import LOCK_NAME, RunsDirectory
from peerstage.forks import release_after_fork
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.target.file_descriptors import LOCK_FILE, close_quietly, closing

if sys.platform != "win32":
    import fcntl

_MAX_BYTES = 4096
#: Attempts to get a lock, and seconds between them: `is_locked` of another process holds it for an instant.
_TRIES = 5
_PAUSE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class LockHolder:
    """Who holds the lock of a pool. Values that it has not written yet are empty.

    Attributes:
        run: The run's id, or what else is being done, such as "prune".
        pid: Its process id.
        host: The host that it runs on.
        started: When it took the lock, in seconds since the epoch.
    """

    run: str = ""
    pid: int = 0
    host: str = ""
    started: float = 0.0

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"{escape(self.run)} (process {self.pid} on {escape(self.host)}, since {since})"


class RunLock:
    """The lock of a pool, held in a ``with`` block. A forked child does not keep it.

    Args:
        runs: The pool's runs directory.
        run: The run's id, or what else is being done, such as "prune".

    Raises:
        RunLocked: If another process, or another lock of this one, holds it. Raised on entering.
        TargetError: If the lock file cannot be opened, or the file system has no locks. Raised on entering.
    """

    def __init__(self, runs: RunsDirectory, run: str) -> None:
        self._runs = runs
        self._run = run
        self._fd = -1

    def __enter__(self) -> RunLock:
        with self._runs.errors("The lock cannot be used"):
            self._fd = os.open(LOCK_NAME, LOCK_FILE | os.O_CREAT, 0o600, dir_fd=self._runs.fd)
        try:
            if not lock_within(self._fd, self._runs):
                raise self._locked_error()
            release_after_fork(self)
            self._write_holder()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
        self._close()

    def release_in_child(self) -> None:
        """Close the copy of the descriptor in a forked child; the parent keeps the lock."""
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        close_quietly(fd)

    def _write_holder(self) -> None:
        """Write who holds the lock into its file. If that fails, as on a full disk, the lock is held all the same."""
        values = {"run": self._run, "pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(values).encode() + b"\n", 0)

    def _locked_error(self) -> RunLocked:
        holder = _read_holder(self._fd)
        if holder.pid:
            message = f"The staging pool is in use: {holder}. Wait until that has ended, then run again."
        else:
            message = "The staging pool is in use by another run. Wait until that has ended, then run again."
        return RunLocked(message, path=self._runs.staging)


def find_holder(runs: RunsDirectory) -> LockHolder | None:
    """Return who holds the lock of the pool; None if it is free.

    Raises:
        TargetError: If that cannot be found out.
    """
    with runs.errors("The lock cannot be used"):
        try:
            fd = os.open(LOCK_NAME, LOCK_FILE, dir_fd=runs.fd)
        except FileNotFoundError:
            return None
        with closing(fd):
            return _read_holder(fd) if is_locked(fd, runs) else None


def lock_within(fd: int, runs: RunsDirectory, tries: int = _TRIES) -> bool:
    """Lock *fd*, which is released when it is closed; return False if another descriptor holds the lock.

    Args:
        fd: A descriptor of a file in *runs*, open for writing.
        runs: The runs directory.
        tries: How often to try.

    Raises:
        TargetError: If the file system has no locks.
    """
    for number in range(tries):
        if number:
            time.sleep(_PAUSE)
        if _try_flock(fd, fcntl.LOCK_EX, runs):
            return True
    return False


def is_locked(fd: int, runs: RunsDirectory) -> bool:
    """Return whether another descriptor than *fd* holds the lock of that file; *fd* holds none itself.

    Raises:
        TargetError: If the file system has no locks.
    """
    if not _try_flock(fd, fcntl.LOCK_SH, runs):
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _try_flock(fd: int, operation: int, runs: RunsDirectory) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise TargetError(
            f"The file system of the staging pool has no locks ({exc.strerror}). Mount it with locks (for NFS: a "
            "running lock service, or version 4), or choose another pool.",
            path=runs.staging,
            errno=exc.errno,
            reason=Reason.LOCAL_FAILURE,
        ) from exc
    return True


def _read_holder(fd: int) -> LockHolder:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raw = json.loads(os.pread(fd, _MAX_BYTES, 0))
        started = float(raw["started"])
        time.localtime(started)  # raises if it is out of range
        return LockHolder(run=str(raw["run"]), pid=int(raw["pid"]), host=str(raw["host"]), started=started)
    return LockHolder()
