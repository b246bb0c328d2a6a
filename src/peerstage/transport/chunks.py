"""Reading a stream of chunks piece by piece, without copying what is in them."""

from __future__ import annotations

from collections.abc import Callable

from peerstage.landing.base import Buffer


class ChunkReader:
    """Hands out the chunks that *receive* returns in pieces as small as they are asked for.

    Args:
        receive: Returns the next chunk; empty at the end of the stream.

    Attributes:
        received: Bytes received so far.
    """

    def __init__(self, receive: Callable[[], Buffer]) -> None:
        self._receive = receive
        self._chunk: Buffer = b""
        self._at = 0
        self.received = 0

    @property
    def has_more(self) -> bool:
        """Whether bytes that were received wait to be read."""
        return self._at < len(self._chunk)

    def _fill(self) -> bool:
        """See to it that there is something to read, if need be by the next chunk; False at the end of the stream."""
        if self._at == len(self._chunk):
            self._chunk, self._at = self._receive(), 0
            self.received += len(self._chunk)
        return self._at < len(self._chunk)

    def _some(self, most: int) -> Buffer:
        """Return what lies ready, at most so many bytes of it."""
        piece = self._chunk[self._at : self._at + most]
        self._at += len(piece)
        return piece
