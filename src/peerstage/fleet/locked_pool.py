"""`LockedPool`: the staging pool of a run, which holds its lock."""

from __future__ import annotations

import contextlib
import os

from peerstage.fleet.run_lock import RunLock
from peerstage.fleet.runs_directory import RunsDirectory


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
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.unlock()
        self.runs.close()

    def unlock(self) -> None:
        """Release the lock. May be called again."""
        self._held.close()

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
        self.__exit__()
        self.runs, self._held = runs, held

    def _lock(self) -> tuple[RunsDirectory, contextlib.ExitStack]:
        runs = RunsDirectory(self._staging)
        held = contextlib.ExitStack()
        try:
            held.enter_context(RunLock(runs, self._run))
        except BaseException:
            runs.close()
            raise
        return runs, held
