"""From chunks of a stream to lines, file data and statuses, without copying file data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from peerstage.errors import ConnectionLost, ProtocolError
from peerstage.landing.base import Buffer
from peerstage.transport.chunks import ChunkReader


class RecordReader(ChunkReader):
    """Cuts the chunks that *receive* returns.

    Args:
        receive: Returns the next chunk; empty at the end of the stream.
        longest: The longest line that is taken, in bytes.
    """

    def __init__(self, receive: Callable[[], Buffer], *, longest: int) -> None:
        super().__init__(receive)
        self._longest = longest

    def line(self) -> bytes | None:
        """Return the next line without its newline; None if the stream ends before it begins.

        Raises:
            ProtocolError: It is too long, or has no end.
        """
        line = b""
        while True:
            if not self._fill():
                if line:
                    raise ProtocolError(f"The peer ends within a record: {line[:120]!r}.")
                return None
            part = bytes(self._chunk[self._at : self._at + self._longest - len(line) + 1])
            end = part.find(b"\n")
            if end >= 0:
                self._at += end + 1
                return line + part[:end]
            line += part
            self._at += len(part)
            if len(line) > self._longest:
                raise ProtocolError(f"The peer sends a line of over {self._longest} bytes: {line[:120]!r} ...")

    def data(self, size: int) -> Iterator[Buffer]:
        """Yield the next *size* bytes, piece by piece.

        Raises:
            ConnectionLost: The stream ends before.
        """
        while size:
            if not self._fill():
                raise ConnectionLost(f"The peer's scp ended with {size} bytes of a file to come.")
            piece = self._some(size)
            size -= len(piece)
            yield piece

    def status(self) -> bytes | None:
        """Return a NUL if the other side says that all is well, else the line it says instead; None at the end."""
        if not self._fill():
            return None
        if self._chunk[self._at] == 0:
            self._at += 1
            return b"\0"
        return self.line()
