"""Wait for a condition instead of sleeping for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Return as soon as *condition* returns true; fail if it does not within *seconds*."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"The condition did not become true within {seconds:g} s."
        time.sleep(0.005)


def exits_within(pid: int, patience: float = 10.0) -> bool:
    """Return whether a process exits within *patience* seconds; a zombie counts as exited."""
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
