"""`LockedPool`: the staging pool of a run, which holds its lock."""

from __future__ import annotations

import contextlib
import os

from peerstage.errors import TargetError
from peerstage.fleet.pool.run_lock import RunLock
from peerstage.fleet.pool.runs_directory import RunsDirectory


class LockedPool:
    """A pool that this run has locked. Use as a context manager.

    Args:
        staging: Absolute path of the pool, which must exist.
        run: The id of the run.

    Attributes:
        runs: Its runs directory, open until the end of the block.

    Raises:
        RunLocked: If another run, or another command, holds the lock. Raised on entering.
        TargetError: If the pool cannot be used. Raised on entering.
    """

    def __init__(self, staging: str, run: str) -> None:
        self._staging = staging
        self._run = run

    def __enter__(self) -> LockedPool:
        self.runs, self._held = self._lock()
        self._left: os.stat_result | None = None
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Release the lock, and keep nothing of the pool open: a hook may use or unmount it. May be called again."""
        if self._left is None:
            self._left = os.fstat(self.runs.fd)
            self._held.close()

    def find_again(self) -> RunsDirectory | None:
        """Return the runs directory that was left, open, but without the lock; None if the path leads elsewhere."""
        with contextlib.suppress(TargetError):
            found = RunsDirectory.find(self._staging)
            if found is not None and self._left is not None and os.path.samestat(os.fstat(found.fd), self._left):
                return found
            if found is not None:
                found.close()
        return None

    def follow_mount(self) -> None:
        """Open and lock the pool again if its path leads to another one by now: a hook may have mounted it.

        Raises:
            RunLocked: If another run holds the lock of that pool.
            TargetError: If that pool cannot be used.
        """
        with RunsDirectory(self._staging) as found:
            if os.path.samestat(os.fstat(found.fd), os.fstat(self.runs.fd)):
                return
        runs, held = self._lock()
        self.leave()
        self.runs, self._held, self._left = runs, held, None

    def _lock(self) -> tuple[RunsDirectory, contextlib.ExitStack]:
        with contextlib.ExitStack() as held:
            runs = held.enter_context(RunsDirectory(self._staging))
            held.enter_context(RunLock(runs, self._run))
            return runs, held.pop_all()
