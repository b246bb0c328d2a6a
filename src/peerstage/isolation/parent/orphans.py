"""Find and kill orphan processes of a child: by a marker in the environment that they have inherited.

A foreign command runs in its own session, so that the child can kill it with its descendants. If the child itself is
killed, the parent looks for the marker. Linux only: other systems have no /proc.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

#: The environment variable; only the child and its descendants know its value, a random marker.
MARKER_VARIABLE = "PEERSTAGE_CHILD"

#: Milliseconds to wait for a killed process to exit.
_EXIT_TIMEOUT = 200
#: Bytes of an environment that are searched.
_MAX_ENVIRONMENT = 1 << 20
#: Scans of the process table, in case processes start others in between.
_MAX_SCANS = 5


def kill_marked_processes(marker: str, except_pid: int = 0) -> None:
    """Kill every process whose environment contains *marker*, except process *except_pid*."""
    entry = f"{MARKER_VARIABLE}={marker}".encode()
    if not hasattr(os, "pidfd_open"):
        return
    for _ in range(_MAX_SCANS):
        if not sum(_kill_if_marked(pid, entry) for pid in _process_ids() if pid != except_pid):
            return


def _process_ids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _kill_if_marked(pid: int, entry: bytes) -> bool:
    """Kill process *pid* if its environment has *entry*; a pidfd guards against reuse of the process id."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if entry not in file.read(_MAX_ENVIRONMENT).split(b"\0"):
                return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(_EXIT_TIMEOUT)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
    return True
