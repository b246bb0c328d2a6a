"""SHA-256 of a file whose bytes arrive in any order, without a second pass over those that arrive in order.

The digest covers a prefix of the file on the disk. Bytes that continue the prefix are hashed in memory as they arrive.
Bytes that arrived ahead of it, over an earlier connection, or in an earlier run are read back with pread(2), usually
from the page cache, once there is no gap before them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from hashlib import sha256

from peerstage.records import MIB
from peerstage.target.base import Buffer

#: Bytes of one pread(2).
_CHUNK = MIB


class PrefixDigest:
    """The SHA-256 of the first bytes of a file on the disk.

    It never covers other bytes than those on the disk, whatever is written and in whatever order, as long as `compare`
    is called before each write: a compromised child process could otherwise have one content hashed and leave another.

    Attributes:
        position: Number of bytes that it covers.
    """

    __slots__ = ("_sha256", "position")

    def __init__(self) -> None:
        self._sha256 = sha256()
        self.position = 0

    def digest(self) -> bytes:
        """Return the SHA-256 of the first `position` bytes."""
        return self._sha256.digest()

    def compare(self, fd: int, offset: int, buffers: Sequence[Buffer], length: int) -> None:
        """Start over at the first byte if *buffers* will replace bytes that are covered by different ones.

        Args:
            fd: The file, open for reading.
            offset: Where the buffers will be written.
            length: Bytes in all buffers; no more are read from the disk.

        Raises:
            OSError: If the disk failed.
        """
        covered = min(length, self.position - offset)
        if covered > 0 and os.pread(fd, covered, offset) != b"".join(buffers)[:covered]:
            self._sha256 = sha256()
            self.position = 0

    def add(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Hash what *buffers*, written at *offset*, add to the prefix; nothing if there is a gap before them."""
        covered = self.position - offset
        if covered < 0:
            return
        for buffer in buffers:
            length = len(buffer)
            if covered < length:
                self._sha256.update(memoryview(buffer)[covered:] if covered else buffer)
                self.position += length - covered
                covered = 0
            else:
                covered -= length

    def read_back(self, fd: int, end: int, check: Callable[[], object] = lambda: None) -> None:
        """Hash the bytes on the disk up to *end*; fewer if the file is shorter.

        Args:
            fd: The file, open for reading.
            end: The position to reach. If it is covered already, nothing happens.
            check: Called before each read; an exception that it raises ends the run.

        Raises:
            OSError: If the disk failed.
        """
        while self.position < end:
            check()
            data = os.pread(fd, min(_CHUNK, end - self.position), self.position)
            if not data:
                return
            self._sha256.update(data)
            self.position += len(data)
