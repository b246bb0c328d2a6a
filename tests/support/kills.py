"""Kill a forked process between any two of its system calls that change the disk."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any

#: System calls by which the library changes the disk.
STEPS = (
    *("mkdir", "open", "write", "pwrite", "close", "fchmod", "fchown", "utime", "fsync", "ftruncate"),
    *("rename", "symlink", "unlink", "rmdir"),
)


def run_killed_before(step: int, work: Callable[[], object]) -> bool:
    """Call *work* in a fork that is killed before its system call with that number; return False if it was faster.

    Raises:
        AssertionError: If *work* failed.
    """
    pid = os.fork()
    if pid == 0:
        try:
            count = 0

            def counted(original: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any, **options: Any) -> Any:
                    nonlocal count
                    if count == step:
                        os.kill(os.getpid(), signal.SIGKILL)
                    count += 1
                    return original(*arguments, **options)

                return call

            for name in STEPS:
                setattr(os, name, counted(getattr(os, name)))
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "it failed in the fork; see its output"
    return os.WIFSIGNALED(status)


def each_instant(work: Callable[[], object]) -> Iterator[int]:
    """Yield after each run of *work* that was killed one system call later than the one before; last the whole run."""
    step = 0
    while run_killed_before(step, work):
        yield step
        step += 1
    yield step
