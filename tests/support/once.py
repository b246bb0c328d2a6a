"""What several processes of one run need, and one of them makes."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path


def make_once(path: Path, make: Callable[[], object]) -> None:
    """Call *make* unless some process has done so for the same *path*; whoever comes meanwhile waits.

    Args:
        path: Exists once that is done; *make* need not create it.
        make: What is done once.
    """
    with open(path.with_name(f"{path.name}.lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make()
            path.touch()
