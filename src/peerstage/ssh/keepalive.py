"""Detect a dead connection (ServerAliveInterval and ServerAliveCountMax in ssh_config(5))."""

from __future__ import annotations

import time
from collections.abc import Callable

import paramiko


class Keepalive:
    """Sends a request after each interval of silence, and ends the connection if too many stay unanswered.

    Anything that the peer sends counts as an answer. All methods run in paramiko's thread, between two reads.

    Args:
        interval: Seconds of silence before each request.
        max_unanswered: Requests that may stay unanswered, one interval each.
        send_request: Sends a request that demands a reply (RFC 4254, section 4), except during a key exchange, when the
            peer owes an answer anyway.
        clock: The monotonic clock.
    """

    def __init__(
        self,
        interval: float,
        max_unanswered: int,
        send_request: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = interval
        self._max_unanswered = max_unanswered
        self._send_request = send_request
        self._clock = clock
        self._received_at = clock()
        self._unanswered = 0

    def on_received(self) -> None:
        """Reset: the peer sent something."""
        self._received_at = self._clock()
        self._unanswered = 0

    def on_idle(self) -> None:
        """Send the next request, if it is due; raise `paramiko.SSHException` if all of them stayed unanswered."""
        if self._clock() - self._received_at < self._interval * (self._unanswered + 1):
            return
        if self._unanswered >= self._max_unanswered:
            seconds = self._interval * (self._max_unanswered + 1)
            raise paramiko.SSHException(f"the peer sent nothing for {seconds:g} s (ServerAliveInterval)")
        self._unanswered += 1
        self._send_request()
