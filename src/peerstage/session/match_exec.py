"""``Match exec`` of ssh_config(5): a command of the user's shell whose exit status decides."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

from peerstage.session.watchdog import Watchdog
from peerstage.system_errors import has_exited, start_process

_SLICE = 0.01


def succeeds(command: str, seconds: float, watchdog: Watchdog | None) -> bool:
    """Run *command* by the user's shell, as ssh does, and return whether its exit status is 0.

    It runs in a process group of its own, without input, output and terminal. Nothing of that group is left when this
    returns or raises.

    Args:
        command: A command line, its tokens expanded.
        seconds: How long it may take; ssh itself would wait for ever.
        watchdog: Ends it earlier.

    Raises:
        TimeoutError: If it takes longer than *seconds*.
        OSError: If the shell cannot be run.
        LimitExceeded, Cancelled: If the watchdog ends it.
    """
    shell = os.environ.get("SHELL") or "/bin/sh"
    nothing = subprocess.DEVNULL
    until = time.monotonic() + seconds
    process = start_process([shell, "-c", f"exec {command}"], stdin=nothing, stdout=nothing, stderr=nothing)
    try:
        while not has_exited(process):
            if watchdog is not None:
                watchdog.check()
            if time.monotonic() > until:
                raise TimeoutError
            time.sleep(_SLICE)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode == 0
