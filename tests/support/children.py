"""Isolated child processes as /proc shows them, and forks of a test."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path


def isolated_children(parent: int | None = None) -> list[int]:
    """Return the process ids of the isolated children of the process *parent*, by default this one."""
    parent = os.getpid() if parent is None else parent
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            status, command = (path / "status").read_text(), (path / "cmdline").read_bytes()
        except OSError:
            continue
        if f"PPid:\t{parent}\n" in status and b"isolation/child/bootstrap.py" in command:
            found.append(int(path.name))
    return found


def process_status(pid: int) -> dict[str, list[str]]:
    """Return /proc/PID/status: for each line its words."""
    lines = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: words.split() for name, words in lines}


def is_reaped(pid: int) -> bool:
    """Return whether a process has exited and was reaped; a zombie was not."""
    return not Path(f"/proc/{pid}").exists()


def run_in_fork(work: Callable[[], object]) -> None:
    """Do *work* in a fork of this process within 30 s, and fail unless it succeeds."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)  # a lock that another thread held at the fork is never released in the fork
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


@contextlib.contextmanager
def forked(work: Callable[[], object] = lambda: None) -> Iterator[int]:
    """Fork this process, do *work* in the fork, and yield its process id; it exits at the end of the block."""
    began, begin = os.pipe()
    ended, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(end)
            work()
            os.write(begin, b"x")
            os.read(ended, 1)
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    os.close(begin)
    try:
        assert os.read(began, 1) == b"x", "it failed in the fork; see its output"
        yield pid
    finally:
        for fd in (began, ended, end):
            os.close(fd)
        assert os.waitpid(pid, 0)[1] == 0


def pending_signals(pid: int) -> set[int]:
    """Return the signals that were sent to a process and not handled yet."""
    status = process_status(pid)
    return _signals(int(status["SigPnd"][0], 16) | int(status["ShdPnd"][0], 16))


def caught_signals(pid: int) -> set[int]:
    """Return the signals for which a process has a handler."""
    return _signals(int(process_status(pid)["SigCgt"][0], 16))


def _signals(bits: int) -> set[int]:
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}
