"""Waiting for something to happen, in place of a fixed time in which it has probably happened."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Return as soon as *holds* does; fail if it does not within *seconds*."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"It did not come to that within {seconds:g} s."
        time.sleep(0.005)
