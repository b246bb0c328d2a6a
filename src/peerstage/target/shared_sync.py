"""Group commit: runs of this process that end together share one syncfs(2) of their file system.

The kernel reports a failed write-back once for each open file description (errseq_t), to its first syncfs after the
failure, and not to a description that was opened after somebody had seen it. So all runs on a file system share one
descriptor, which is opened before the first of them writes; and a syncfs that fails, fails for every run that had begun
by then, whenever that run commits.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

from peerstage.forks import OwnerProcess, call_in_forked_child
from peerstage.target import durability
from peerstage.target.file_descriptors import close_quietly, open_directory

#: Seconds between two checks whether a run that waits for another one's syncfs has been cancelled.
_CHECK_INTERVAL = 0.25


class SharedSync:
    """One run's part in the syncs of its file system. Create it before the run writes data.

    Args:
        dir_fd: Descriptor of a directory on the file system.

    Raises:
        OSError: If the directory cannot be opened once more.
    """

    def __init__(self, dir_fd: int) -> None:
        self._owner = OwnerProcess()
        with _lock:
            self._file_system = _join(dir_fd)
            self._failures_before = self._file_system.failures

    @property
    def has_company(self) -> bool:
        """Whether other runs on the file system have begun and not ended, which may share a syncfs with this one."""
        return self._file_system.runs > 1

    def sync(self, check: Callable[[], object] = lambda: None) -> None:
        """Wait until everything that was written before this call is on the disk.

        A syncfs that began before this call may have missed data: this run waits for the next one, which serves all
        runs that wait by then. One of them calls it, and cannot be interrupted until it returns.

        Args:
            check: Called regularly while the run waits for another run's syncfs; an exception that it raises ends the
                wait.

        Raises:
            OSError: If a write has failed on this file system since this run began, its own or another run's.
            StageError: In a fork of the process that created this.
        """
        self._owner.require_current()
        file_system = self._file_system
        number = file_system.next_number
        while file_system.ended < number:
            check()
            file_system.sync_or_wait()
        error = file_system.error
        if error is not None and file_system.failures > self._failures_before:
            raise OSError(error.errno, error.strerror)

    def close(self) -> None:
        """Leave; the last run closes the descriptor. To be called once; without effect in a forked child."""
        if self._owner.is_current():
            with _lock:
                _leave(self._file_system)


class _FileSystem:
    """A file system that runs of this process write to.

    Attributes:
        device: Its number, st_dev of stat(2).
        fd: The descriptor that all runs share.
        runs: Number of runs that have begun and not ended.
        ended: Number of the last syncfs that has returned; the first is 1.
        failures: How many of them failed.
        error: Why the last one of these failed.
    """

    def __init__(self, device: int, fd: int) -> None:
        self.device = device
        self.fd = fd
        self.runs = 0
        self.ended = 0
        self.failures = 0
        self.error: OSError | None = None
        self._begun = 0
        self._changed = threading.Condition()

    @property
    def next_number(self) -> int:
        """The number of the next syncfs to begin."""
        with self._changed:
            return self._begun + 1

    def sync_or_wait(self) -> None:
        """Call syncfs; or if another run does so now, wait until it has ended, `_CHECK_INTERVAL` seconds at most."""
        with self._changed:
            if self._begun > self.ended:
                self._changed.wait(_CHECK_INTERVAL)
                return
            self._begun += 1
        # If the call is interrupted, the kernel may have reported an error that is lost: it counts as one.
        error: OSError | None = OSError(errno.EINTR, "The sync of the file system was interrupted")
        try:
            durability.syncfs(self.fd)
            error = None
        except OSError as exc:
            error = exc
        finally:
            with self._changed:
                if error is not None:
                    self.error = error
                    self.failures += 1
                self.ended = self._begun
                self._changed.notify_all()


_lock = threading.Lock()
_file_systems: dict[int, _FileSystem] = {}


def _join(dir_fd: int) -> _FileSystem:
    device = os.fstat(dir_fd).st_dev
    file_system = _file_systems.get(device)
    if file_system is None:
        file_system = _file_systems[device] = _FileSystem(device, open_directory(".", dir_fd=dir_fd))
    file_system.runs += 1
    return file_system


def _leave(file_system: _FileSystem) -> None:
    file_system.runs -= 1
    if not file_system.runs:
        del _file_systems[file_system.device]
        close_quietly(file_system.fd)


def _forget_all() -> None:
    """In a forked child, close the parent's descriptors; another thread of the parent may have held the lock."""
    global _lock
    _lock = threading.Lock()
    for file_system in _file_systems.values():
        close_quietly(file_system.fd)
    _file_systems.clear()


call_in_forked_child(_forget_all)
