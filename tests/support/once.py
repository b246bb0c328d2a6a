"""Work that the processes of one run need done once."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path


def make_once(path: Path, make: Callable[[], object]) -> None:
    """Call *make* unless a process has already done so for *path*; other processes wait until it is done.

    Args:
        path: Exists once *make* has succeeded; *make* need not create it.
        make: Called at most once.
    """
    with open(path.with_name(f"{path.name}.lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make()
            path.touch()
