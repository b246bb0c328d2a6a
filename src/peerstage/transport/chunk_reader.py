"""Reading a stream of chunks piece by piece, without copying their content."""

from __future__ import annotations

from collections.abc import Callable

from peerstage.target.base import Buffer


class ChunkReader:
    """Splits the chunks that *receive* returns.

    Args:
        receive: Returns the next chunk; empty at EOF.

    Attributes:
        received: Bytes received so far.
    """

    def __init__(self, receive: Callable[[], Buffer]) -> None:
        self._receive = receive
        self._chunk: Buffer = b""
        self._position = 0
        self.received = 0

    @property
    def has_more(self) -> bool:
        """Whether received bytes have not been read yet."""
        return self._position < len(self._chunk)

    def _fill(self) -> bool:
        """Receive the next chunk if nothing is left to read; return False at EOF."""
        if self._position == len(self._chunk):
            self._chunk, self._position = self._receive(), 0
            self.received += len(self._chunk)
        return self._position < len(self._chunk)

    def _read_some(self, max_bytes: int) -> Buffer:
        """Return up to *max_bytes* bytes that have been received."""
        piece = self._chunk[self._position : self._position + max_bytes]
        self._position += len(piece)
        return piece
