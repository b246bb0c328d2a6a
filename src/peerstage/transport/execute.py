"""Commands on a peer: run one on a channel of its own, and log its output."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from peerstage.errors import Cancelled, ConnectionLost, LimitExceeded
from peerstage.printable import escape
from peerstage.records import KIB
from peerstage.target.base import Buffer
from peerstage.watchdog import Watchdog

if TYPE_CHECKING:
    from peerstage.ssh.session import Session

log = logging.getLogger("peerstage.transport")

_STILL_RUNNING = "The command may still be running there."
#: Maximum number of bytes of one line that are logged.
MAX_LINE = KIB
#: Bytes at the end of the output that an error quotes.
_TAIL_BYTES = 300
#: Bytes that are searched for a line end at a time.
_CHUNK = 4 * KIB


class CommandOutput:
    """Logs the output of one command line by line, up to a limit, without buffering it whole.

    Args:
        peer: Name of the peer, logged in front of every line.
        max_bytes: Bytes that are logged in all; the rest is counted and dropped.

    Attributes:
        logged: Bytes that were logged.
        dropped: Bytes that were not logged, without line ends.
    """

    def __init__(self, peer: str, max_bytes: int) -> None:
        self.logged = 0
        self.dropped = 0
        self._peer = peer
        self._max_bytes = max_bytes
        self._line = bytearray()
        self._tail = b""

    def write(self, data: Buffer) -> None:
        """Add *data*, which may begin and end anywhere in a line."""
        self._tail = (self._tail + bytes(data[-_TAIL_BYTES:]))[-_TAIL_BYTES:]
        position = 0
        while position < len(data):
            if self.logged >= self._max_bytes:
                self.dropped += len(data) - position
                return
            chunk = bytes(data[position : position + _CHUNK])
            end = chunk.find(b"\n")
            self._extend_line(chunk if end < 0 else chunk[:end])
            if end >= 0:
                self._log_line()
            position += len(chunk) if end < 0 else end + 1

    def close(self) -> None:
        """Log the last line, and the number of dropped bytes."""
        if self._line:
            self._log_line()
        if self.dropped:
            log.info("%s: ... and %d bytes more, which are not logged.", escape(self._peer), self.dropped)

    @property
    def tail(self) -> str:
        """The last 300 bytes of the output, unescaped, for an error message."""
        return self._tail.decode("utf-8", "backslashreplace").strip()

    def _extend_line(self, part: bytes) -> None:
        free = MAX_LINE - len(self._line)
        self._line += part[:free]
        self.dropped += max(0, len(part) - free)

    def _log_line(self) -> None:
        line = bytes(self._line[: self._max_bytes - self.logged])
        self.dropped += len(self._line) - len(line)
        self._line.clear()
        self.logged += max(1, len(line))  # an empty line counts, so that their number is bounded too
        log.info("%s: %s", escape(self._peer), escape(line.decode("utf-8", "backslashreplace").rstrip()))


def execute_on_session(
    session: Session, command: bytes, on_output: Callable[[Buffer], object], watchdog: Watchdog
) -> int | None:
    """Run *command* on a channel of *session*. See `Transport.execute`."""
    session.require_same_process()
    with watchdog.command_deadline(watchdog.limits.command_deadline):
        stream = session.open_command(command, merge_stderr=True)
        try:
            stream.send_eof()
            while chunk := stream.receive():
                on_output(chunk)
            return stream.wait()
        except (ConnectionLost, LimitExceeded, Cancelled) as exc:
            if not exc.message.endswith(_STILL_RUNNING):
                exc.message = f"{exc.message} {_STILL_RUNNING}"
            raise
        finally:
            stream.close()
