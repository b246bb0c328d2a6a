"""The children that do the work apart, as /proc shows them, and forks of a test."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def children_apart(parent: int | None = None) -> list[int]:
    """Return the process ids of those that the process *parent*, by default this one, has started."""
    parent = os.getpid() if parent is None else parent
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            status, command = (path / "status").read_text(), (path / "cmdline").read_bytes()
        except OSError:
            continue
        if f"PPid:\t{parent}\n" in status and b"isolation/start.py" in command:
            found.append(int(path.name))
    return found


def status_of(pid: int) -> dict[str, list[str]]:
    """Return what /proc/PID/status says, a list of words for each of its lines."""
    lines = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: words.split() for name, words in lines}


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody has reaped is not gone."""
    return not Path(f"/proc/{pid}").exists()


def in_child(work: Callable[[], object]) -> None:
    """Fork, have the child do *work* within 30 s, and fail unless it succeeds."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)  # a lock that another thread held at the fork is never released in the child
        code = 1
        try:
            work()
            gc.collect()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
