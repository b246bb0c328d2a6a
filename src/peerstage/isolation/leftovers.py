"""Finding what a child has left in sessions of its own: by a mark in the environment that it has passed on.

A foreign command runs in a session of its own, so that it can be killed with its children by the child that runs it.
Where that child is killed itself, root looks for the mark. Linux only: elsewhere there is no /proc.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal

#: The variable; its value is told to nobody but the child.
MARK = "PEERSTAGE_CHILD"

#: Milliseconds that a killed process gets to be gone.
_DYING = 200
#: How often the processes are looked through, should they start others meanwhile.
_ROUNDS = 5


def new_mark() -> str:
    """Return a mark that no other process has."""
    return secrets.token_hex(16)


def kill_marked(mark: str, but: int = 0) -> None:
    """Kill every process whose environment holds *mark*, but for process *but*."""
    wanted = f"{MARK}={mark}".encode()
    if not hasattr(os, "pidfd_open"):
        return
    for _ in range(_ROUNDS):
        if not sum(_kill(number, wanted) for number in _numbers() if number != but):
            return


def _numbers() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _kill(pid: int, wanted: bytes) -> bool:
    """Kill process *pid* if it has the mark; the descriptor holds on to the very process that was looked at."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if wanted not in file.read(1 << 20).split(b"\0"):
                return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(_DYING)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
    return True
