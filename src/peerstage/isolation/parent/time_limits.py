"""Time limits for one job of a child, enforced by the parent."""

from __future__ import annotations

import time
from collections.abc import Callable

from peerstage.errors import LimitExceeded
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.watchdog import Watchdog

#: Seconds that a child has, beyond its own deadline, to report it, and beyond the stall timeout to send a frame.
GRACE = 4.0
#: Seconds that a child has to start, import its modules and send its first frame, if the stall timeout is shorter.
_START_TIMEOUT = 60.0


class ChildTimeLimits:
    """The deadline of one job, and the time within which its child must send a frame.

    A working child sends a heartbeat even while its peer is silent. The stall timeout counts only while the parent
    waits for the child, not while it writes to disk.

    Args:
        limits: The limits of the child.
        watchdog: Tells whether the run was cancelled, and for how long the bandwidth limit has kept it waiting.
        count_received: Returns the number of bytes received.
        deadline: A deadline in seconds that does not depend on the bytes received; by default that of `Limits`.
        grace: Seconds beyond the deadline, and beyond the stall timeout.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        limits: Limits,
        watchdog: Watchdog,
        count_received: Callable[[], int],
        deadline: float | None = None,
        *,
        grace: float = GRACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._watchdog = watchdog
        self._count_received = count_received
        self._clock = clock
        self._started = clock()
        self._grace = grace
        self._deadline = limits.deadline_for(0) if deadline is None else deadline
        self.expect_frame(is_starting=True)

    def expect_frame(self, *, is_starting: bool) -> None:
        """Restart the stall timeout, and raise as `remaining` does.

        Args:
            is_starting: Whether the child has not sent anything yet.
        """
        stall_timeout = self._limits.stall_timeout
        self._stall_timeout = max(stall_timeout, _START_TIMEOUT) if is_starting else stall_timeout
        self._stalled_at = self._clock() + self._stall_timeout
        self._in_grace = False
        self.remaining()

    def remaining(self) -> float:
        """Return the maximum number of seconds to wait.

        Raises:
            LimitExceeded: If the child has sent nothing in time, or has not ended by the deadline and the grace.
            Cancelled: If the run was cancelled.
        """
        self._watchdog.raise_if_final()
        return min(self._until_deadline(), self._until_stalled())

    def _until_deadline(self) -> float:
        if (remaining := self._seconds_to_deadline()) > 0:
            return remaining
        received = self._count_received()
        throttled = self._watchdog.max_throttled(received)
        self._deadline = max(self._deadline, self._limits.deadline_for(received) + throttled)
        if (remaining := self._seconds_to_deadline()) > 0:
            return remaining
        raise LimitExceeded(
            f"The operation did not complete within {self._deadline:g} s (Limits.deadline, min_rate); the child "
            "process did not report why and was killed. Check whether it was stopped, and whether this machine is "
            "overloaded.",
            reason=Reason.CHILD_SILENT,
            limit="deadline",
        )

    def _seconds_to_deadline(self) -> float:
        return self._started + self._deadline + self._grace - self._clock()

    def _until_stalled(self) -> float:
        remaining = self._stalled_at - self._clock()
        if remaining > 0:
            return remaining
        if not self._in_grace:  # if the whole machine was suspended, the child needs a moment to resume, too
            self._in_grace = True
            self._stalled_at = self._clock() + self._grace
            return self._grace
        raise LimitExceeded(
            f"The child process sent nothing for {self._stall_timeout:g} s (Limits.stall_timeout) and was killed. "
            "Check whether it was stopped, and whether this machine is overloaded.",
            reason=Reason.CHILD_SILENT,
            limit="stall_timeout",
        )
