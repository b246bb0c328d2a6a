"""Split the output of an ``scp -f`` into messages, file data and file statuses, without copying file data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from peerstage.errors import ConnectionLost, ProtocolError
from peerstage.printable import escape
from peerstage.target.base import Buffer
from peerstage.transport.chunk_reader import ChunkReader


class MessageReader(ChunkReader):
    """Read the chunks that *receive* returns.

    Args:
        receive: Returns the next chunk; empty at the end of the stream.
        max_bytes: The length of the longest message to accept.
    """

    def __init__(self, receive: Callable[[], Buffer], *, max_bytes: int) -> None:
        super().__init__(receive)
        self._max_bytes = max_bytes

    def read_message(self) -> bytes | None:
        """Return the next message without its newline; None at the end of the stream.

        Raises:
            ProtocolError: If the message is too long, or the stream ends within it.
        """
        message = b""
        while True:
            if not self._fill():
                if message:
                    raise ProtocolError(f"The peer's scp ended within a message: {escape(message[:120])!r}.")
                return None
            part = bytes(self._chunk[self._position : self._position + self._max_bytes - len(message) + 1])
            end = part.find(b"\n")
            if end >= 0:
                self._position += end + 1
                return message + part[:end]
            message += part
            self._position += len(part)
            if len(message) > self._max_bytes:
                raise ProtocolError(
                    f"The peer sent an SCP message of over {self._max_bytes} bytes: {escape(message[:120])!r}."
                )

    def read_data(self, size: int) -> Iterator[Buffer]:
        """Yield the next *size* bytes in pieces.

        Raises:
            ConnectionLost: If the stream ends before.
        """
        while size:
            if not self._fill():
                raise ConnectionLost(f"The peer's scp ended {size} bytes before the end of a file.")
            piece = self._read_some(size)
            size -= len(piece)
            yield piece

    def read_status(self) -> bytes | None:
        """Return the NUL that stands for success, or else the message in its place; None at the end of the stream."""
        if not self._fill():
            return None
        if self._chunk[self._position] == 0:
            self._position += 1
            return b"\0"
        return self.read_message()
