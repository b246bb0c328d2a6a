"""The time limits of one operation of a child, as the parent enforces them."""

from __future__ import annotations

import time
from collections.abc import Callable

from peerstage.errors import LimitExceeded
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.session.watchdog import Watchdog

#: Seconds beyond its own deadline that a child gets to say that it has passed, and beyond the stall bound to be heard
#: of; it is ended within one more.
GRACE = 4.0
#: Seconds that a child gets to start, import what it needs, and say its first word, however short the stall bound is.
_STARTING = 60.0


class Clock:
    """How long one operation may still take, and its child be silent, seen from outside.

    While a job is done a child that works is heard of all the time, even if its peer has nothing to say. Only the time
    in which the child is listened to counts, not what is spent on the local disk.

    Args:
        limits: The child's own.
        watchdog: Whether the run was cancelled.
        received: Returns how many bytes have come.
        allowed: Seconds, where they do not follow from that.
        grace: Seconds beyond these, and beyond the stall bound.
        now: The time, in seconds.
    """

    def __init__(
        self,
        limits: Limits,
        watchdog: Watchdog,
        received: Callable[[], int],
        allowed: float | None = None,
        *,
        grace: float = GRACE,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._watchdog = watchdog
        self._received = received
        self._now = now
        self._started = now()
        self._grace = grace
        self._allowed = limits.seconds_for(0) if allowed is None else allowed
        self._expect_word(starting=True)

    def listen(self, *, starting: bool) -> None:
        """Say that the child is listened to from now on; raise as `left`.

        Args:
            starting: Whether it has not said anything yet.
        """
        self._expect_word(starting=starting)
        self.left()

    def left(self) -> float:
        """Return for how many seconds to wait.

        Raises:
            LimitExceeded: If the child is silent, or does not even say that its own deadline has passed.
            Cancelled: If the run was cancelled.
        """
        self._watchdog.check_final()
        return min(self._until_deadline(), self._until_silent())

    def _until_deadline(self) -> float:
        left = self._started + self._allowed + self._grace - self._now()
        if left > 0:
            return left
        self._allowed = max(self._allowed, self._limits.seconds_for(self._received()))
        left = self._started + self._allowed + self._grace - self._now()
        if left > 0:
            return left
        raise LimitExceeded(
            f"Not done within {self._allowed:g} s (Limits.deadline, min_rate), and the child process does not say why; "
            "it was ended. Is it stopped, or the machine overloaded?",
            reason=Reason.CHILD_SILENT,
            limit="deadline",
        )

    def _expect_word(self, *, starting: bool) -> None:
        stall = self._limits.stall_timeout
        self._stall = max(stall, _STARTING) if starting else stall
        self._word_by = self._now() + self._stall
        self._is_late = False

    def _until_silent(self) -> float:
        left = self._word_by - self._now()
        if left > 0:
            return left
        if not self._is_late:  # if the whole machine was suspended, the child needs a moment, too
            self._is_late = True
            self._word_by = self._now() + self._grace
            return self._grace
        raise LimitExceeded(
            f"The child process said nothing for {self._stall:g} s (Limits.stall_timeout), and was ended. Check "
            "whether it was stopped, and whether this machine is overloaded.",
            reason=Reason.CHILD_SILENT,
            limit="stall_timeout",
        )
