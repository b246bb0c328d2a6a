"""Waiting for something to happen, in place of a fixed time in which it has probably happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Return as soon as *holds* does; fail if it does not within *seconds*."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"It did not come to that within {seconds:g} s."
        time.sleep(0.005)


def is_gone(pid: int, patience: float = 10.0) -> bool:
    """Whether a process ends within *patience* seconds; one that nobody has waited for yet counts as ended."""
    until = time.monotonic() + patience
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)
