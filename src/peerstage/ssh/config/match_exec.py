"""``Match exec`` of ssh_config(5): a shell command whose exit status decides whether the block applies."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from peerstage.processes import has_exited, signal_group, start_process
from peerstage.watchdog import Watchdog

_POLL_INTERVAL = 0.01


def command_succeeds(command: str, timeout: float, watchdog: Watchdog | None) -> bool:
    """Run *command* with the user's shell, as ssh does, and return whether its exit status is 0.

    The shell gets a process group of its own, no terminal, and /dev/null for its input and output. The whole group is
    killed before this returns or raises.

    Args:
        command: A command line, its tokens expanded.
        timeout: Seconds it may take; ssh itself has no limit.
        watchdog: Interrupts it earlier.

    Raises:
        TimeoutError: If it takes longer than *timeout*.
        OSError: If the shell cannot be run.
        LimitExceeded, Cancelled: If the watchdog interrupts it.
    """
    shell = os.environ.get("SHELL") or "/bin/sh"
    null = subprocess.DEVNULL
    deadline = time.monotonic() + timeout
    process = start_process([shell, "-c", f"exec {command}"], stdin=null, stdout=null, stderr=null)
    try:
        while not has_exited(process):
            if watchdog is not None:
                watchdog.raise_if_failed()
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(_POLL_INTERVAL)
    finally:
        signal_group(process, signal.SIGKILL)
        process.wait()
    return process.returncode == 0
