"""What has arrived of one file, over several connections: a resumed file must not become a mixture of two versions.

SFTP version 3 tells times in whole seconds, so that a file that was replaced between two connections may look as it did
before: same name, size, mode and time. So a few blocks of what arrived are kept in memory, fetched again over the next
connection and compared. On any difference everything from earlier connections is dropped.

This detects a file that was replaced by one that differs in any of these blocks: the end of the first piece that
arrived, of what arrived last, and of the pieces at 1, 2, 4, 8 ... MiB. It cannot detect one that has the same size,
mode and whole second of modification, and differs elsewhere alone, as a database file with a few changed pages may.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peerstage.landing.base import Buffer, Ranges
from peerstage.records import KIB, MIB

#: Bytes of one block, short since 4,096 files may be on their way: many places tell more than a long one.
BLOCK = 2 * KIB
#: Blocks of one file: the first one, and the latest others.
_MAX_BLOCKS = 8


class Arrived:
    """The ranges of one file that have arrived, and blocks of them to compare with.

    Args:
        size: Bytes of the whole file.

    Attributes:
        received: Bytes that have arrived and count.
    """

    __slots__ = ("_blocks", "_fresh", "_last", "_next", "_ranges", "_size", "received")

    def __init__(self, size: int) -> None:
        self.received = 0
        self._size = size
        self._ranges = Ranges()
        self._fresh: Ranges | None = None  # what came over this connection, if there was an earlier one
        self._blocks: list[tuple[int, bytes]] = []
        self._last: tuple[int, bytes] | None = None
        self._next = 0

    @property
    def pieces(self) -> int:
        """Disjoint ranges that are kept track of; each takes memory."""
        return len(self._ranges) + (0 if self._fresh is None else len(self._fresh))

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived, and what came over earlier connections is confirmed."""
        return self._ranges.covers(self._size) and not any(self._unconfirmed())

    def resume(self) -> None:
        """Begin another connection: what is kept of earlier ones has to be confirmed."""
        if self._last is not None:
            self._blocks = [*self._blocks, self._last]
            self._blocks = self._blocks[:1] + self._blocks[1:][1 - _MAX_BLOCKS :]
            self._last = None
        self._fresh = Ranges() if len(self._ranges) else None

    def missing(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges to fetch: those that have not arrived, and blocks to compare with."""
        fresh = self._fresh
        if fresh is None:
            yield from self._ranges.missing(self._size)
            return
        wanted = Ranges()
        for start, end in self._ranges.missing(self._size):
            wanted.add(start, end)
        for start, end in self._unconfirmed():
            wanted.add(start, end)
        yield from wanted

    def add(self, offset: int, buffers: Sequence[Buffer], length: int) -> None:
        """Take note of the *length* bytes of *buffers*, which came from *offset* on."""
        if self._fresh is not None:
            if any(_differs(offset, buffers, length, *block) for block in self._blocks):
                self._forget_earlier()
            else:
                self._fresh.add(offset, offset + length)
        self.received += self._ranges.add(offset, offset + length)
        if length and not self.is_complete:
            self._keep_block(offset + length, buffers)

    def _unconfirmed(self) -> Iterator[tuple[int, int]]:
        """Yield the blocks of earlier connections that have not been compared yet."""
        fresh = self._fresh
        if fresh is not None:
            for start, block in self._blocks:
                if not fresh.holds(start, start + len(block)):
                    yield start, start + len(block)

    def _forget_earlier(self) -> None:
        """Drop all that came over earlier connections: it is of another version of the file."""
        self._ranges, self._fresh = self._fresh or Ranges(), None
        self.received = sum(end - start for start, end in self._ranges)
        self._blocks, self._last, self._next = [], None, 0

    def _keep_block(self, end: int, buffers: Sequence[Buffer]) -> None:
        block = _tail(buffers)
        self._last = (end - len(block), block)
        if self.received >= self._next:
            self._blocks = (self._blocks[:1] + self._blocks[1:][2 - _MAX_BLOCKS :]) + [self._last]
            self._next = max(MIB, 2 * self.received)


def _tail(buffers: Sequence[Buffer]) -> bytes:
    """Return a copy of the last `BLOCK` bytes of *buffers*, or of all of them."""
    parts: list[Buffer] = []
    left = BLOCK
    for buffer in reversed(buffers):
        if not left:
            break
        part = memoryview(buffer)[-left:]
        parts.append(part)
        left -= len(part)
    return b"".join(reversed(parts))


def _differs(offset: int, buffers: Sequence[Buffer], length: int, start: int, block: bytes) -> bool:
    """Whether *buffers*, which came from *offset* on, have other bytes than *block* where they overlap."""
    if not (start < offset + length and offset < start + len(block)):
        return False
    for buffer in buffers:
        low, high = max(offset, start), min(offset + len(buffer), start + len(block))
        if low < high and memoryview(buffer)[low - offset : high - offset] != block[low - start : high - start]:
            return True
        offset += len(buffer)
    return False
