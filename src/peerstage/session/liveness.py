"""Dead peers are noticed: after a silence they are asked for a sign of life, by a request that wants a reply."""

from __future__ import annotations

import time
from collections.abc import Callable

import paramiko


class Liveness:
    """Whether the peer lives: whatever comes is a sign of life, and after a silence it is asked for one.

    Works in paramiko's thread, between two reads.

    Args:
        interval: Seconds of silence before each question.
        count: Questions that may stay unanswered, an interval each.
        ask: Sends a request that wants a reply (RFC 4254, 4), unless keys are being exchanged: then one is due anyway.
    """

    def __init__(
        self, interval: float, count: int, ask: Callable[[], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval = interval
        self._count = count
        self._ask = ask
        self._clock = clock
        self._heard_at = clock()
        self._asked = 0

    def heard(self) -> None:
        """Take note of a sign of life."""
        self._heard_at = self._clock()
        self._asked = 0

    def silent(self) -> None:
        """Ask, if it is time to.

        Raises:
            paramiko.SSHException: The peer has left its questions unanswered; raised in paramiko's thread, whose
                connection ends by that.
        """
        if self._clock() - self._heard_at < self._interval * (self._asked + 1):
            return
        if self._asked >= self._count:
            raise paramiko.SSHException(
                f"the peer has shown no sign of life for {self._interval * (self._count + 1):g} s (ServerAliveInterval)"
            )
        self._asked += 1
        self._ask()
