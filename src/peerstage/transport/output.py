"""What a command on a peer says: logged line by line as it comes, with bounds, and never kept whole."""

from __future__ import annotations

import logging

from peerstage.errors import escape
from peerstage.landing.base import Buffer
from peerstage.records import KIB

log = logging.getLogger("peerstage.transport")

#: Bytes of one line that are logged, and of the last words that an error quotes.
LONGEST_LINE = KIB
_LAST_WORDS = 300
#: Bytes that are looked at at once.
_PIECE = 4 * KIB


class CommandOutput:
    """Takes what a command says.

    Args:
        peer: Named in front of every line.
        most: Bytes that are logged in all; what is over is read, counted and dropped.

    Attributes:
        logged: Bytes that were logged.
        dropped: Bytes that were not, line ends aside.
    """

    def __init__(self, peer: str, most: int) -> None:
        self.logged = 0
        self.dropped = 0
        self._peer = peer
        self._most = most
        self._line = bytearray()
        self._tail = b""

    def take(self, data: Buffer) -> None:
        """Take the next bytes, however they are cut."""
        self._tail = (self._tail + bytes(data[-_LAST_WORDS:]))[-_LAST_WORDS:]
        at = 0
        while at < len(data):
            if self.logged >= self._most:
                self.dropped += len(data) - at
                return
            piece = bytes(data[at : at + _PIECE])
            end = piece.find(b"\n")
            self._extend(piece if end < 0 else piece[:end])
            if end >= 0:
                self._log()
            at += len(piece) if end < 0 else end + 1

    def end(self) -> None:
        """Log what is left, and how much was dropped."""
        if self._line:
            self._log()
        if self.dropped:
            log.info("%s: ... and %d bytes more, which are not logged.", escape(self._peer), self.dropped)

    @property
    def last_words(self) -> str:
        """The end of all that was said, fit for a sentence; it may hold anything but is not long."""
        return self._tail.decode("utf-8", "backslashreplace").strip()

    def _extend(self, part: bytes) -> None:
        room = LONGEST_LINE - len(self._line)
        self._line += part[:room]
        self.dropped += max(0, len(part) - room)

    def _log(self) -> None:
        line = bytes(self._line[: self._most - self.logged])
        self.dropped += len(self._line) - len(line)
        self._line.clear()
        self.logged += max(1, len(line))  # an empty line costs too, or there would be no end of them
        log.info("%s: %s", escape(self._peer), escape(line.decode("utf-8", "backslashreplace").rstrip()))
