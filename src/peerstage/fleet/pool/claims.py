"""What a run and its workers tell each other through the pool: workers may be threads, processes, or on other hosts.

All of it lies in the pool's runs directory:

``current``
    The id of the run that is under way. Renamed to ``ended`` when the run ends or is stopped, which needs no space.
``jobs/PEER``
    The id of the run that wants the peer staged; then, on a second line, the worker that does so. The worker sets its
    modification time every few seconds (a heartbeat). Removed when the run has a result, or gives the worker up.
``peers/PEER``
    Locked (flock(2)) by a worker as long as it stages the peer.

A worker must hold the peer's lock, and find all else as it expects it, before it publishes files and before it writes
the stage indicator; the pool's lock, too, must still be held by the run.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.forks import OwnerProcess
from peerstage.target.file_descriptors import CREATE_NEW, NO_FOLLOW, READ_WITHOUT_WAITING, closing, open_directory

CURRENT = "current"
ENDED = "ended"
JOBS = "jobs"
PEERS = "peers"
MAX_BYTES = 4096


class RunClaims:
    """The run's side: announces a run, and sees which of its jobs are being worked on.

    Use as a context manager: entering announces the run, leaving ends it, so that late workers publish nothing.
    The caller holds the pool's lock. All methods are thread-safe.

    Args:
        runs: The pool's runs directory.
        run: The run's id.
        clock: Returns monotonic seconds.

    Raises:
        TargetError: If the run cannot be announced. Raised on entering.
    """

    def __init__(self, runs: RunsDirectory, run: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._runs = runs
        self._run = run
        self._clock = clock
        self._owner = OwnerProcess()
        #: For each peer the last heartbeat that was seen, and when it was new.
        self._seen: dict[str, tuple[object, float]] = {}

    def __enter__(self) -> RunClaims:
        with self._runs.errors("The run cannot be announced"):
            for name in (JOBS, PEERS):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=self._runs.fd)
            self._runs.remove_unfinished()
            self._runs.write(CURRENT, self._run.encode() + b"\n")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._owner.is_current():
            return
        self.stop()
        with contextlib.suppress(OSError), closing(open_directory(JOBS, dir_fd=self._runs.fd)) as fd:
            for name in os.listdir(fd):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=fd)

    def stop(self) -> None:
        """Have every worker of the run stop before it publishes anything, at the latest in a few seconds.

        Without effect if the run has ended. Errors of the disk are ignored.
        """
        with contextlib.suppress(OSError):
            if self._runs.read(CURRENT, MAX_BYTES).decode().strip() == self._run:
                os.rename(CURRENT, ENDED, src_dir_fd=self._runs.fd, dst_dir_fd=self._runs.fd)

    def assign(self, peer: str) -> None:
        """Allow one worker to stage *peer*. Call it before each attempt.

        Raises:
            TargetError: If the disk is full or failed.
        """
        with self._runs.errors(f"The job {peer} cannot be created"):
            self._runs.remove(f"{JOBS}/{peer}")
            with closing(os.open(f"{JOBS}/{peer}", CREATE_NEW, 0o600, dir_fd=self._runs.fd)) as fd:
                os.write(fd, self._run.encode() + b"\n")
        self._seen.pop(peer, None)

    def release(self, peer: str) -> None:
        """Withdraw the job of *peer*: it has a result, or its worker is given up and must not publish anything."""
        with contextlib.suppress(OSError):
            self._runs.remove(f"{JOBS}/{peer}")
        self._seen.pop(peer, None)

    def seconds_since_heartbeat(self, peer: str) -> float | None:
        """Return for how many seconds the worker of *peer* has given no sign of life; None if no worker has begun.

        Only changes are looked at, so the worker's clock and that of the file server do not matter. The first call
        after a worker has begun returns 0.
        """
        try:
            with closing(os.open(f"{JOBS}/{peer}", READ_WITHOUT_WAITING | NO_FOLLOW, dir_fd=self._runs.fd)) as fd:
                worker = os.read(fd, MAX_BYTES).partition(b"\n")[2]
                beat = (worker, os.fstat(fd).st_mtime_ns)
        except OSError:
            worker, beat = b"", (b"", 0)
        if not worker and peer not in self._seen:
            return None
        now = self._clock()
        if peer not in self._seen or (worker and self._seen[peer][0] != beat):
            self._seen[peer] = (beat, now)
        return now - self._seen[peer][1]
