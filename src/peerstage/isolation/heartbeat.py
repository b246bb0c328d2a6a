"""A child's heartbeat, by which the parent tells a peer that takes its time from a child that is stopped or hangs."""

from __future__ import annotations

import contextlib
import threading

from peerstage.isolation.upward import Upward
from peerstage.session.watchdog import Watchdog

#: Seconds between two frames, at most.
_INTERVAL = 1.0
#: Frames in the time that the parent waits for one, at least.
_FRAMES = 4


class Heartbeat:
    """Sends a frame every now and then, from a thread of its own, while a job is done and the watchdog is content.

    Args:
        upward: The pipe to the parent.
        watchdog: Enforces the time limits of the run. Once it has ended it, the heartbeat stops.
    """

    def __init__(self, upward: Upward, watchdog: Watchdog) -> None:
        self._upward = upward
        self._watchdog = watchdog
        self._interval = min(_INTERVAL, watchdog.limits.stall_timeout / _FRAMES)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peerstage-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, or the watchdog has ended the run
            while not self._stopped.wait(self._interval):
                self._watchdog.check_final()
                self._upward.beat()
