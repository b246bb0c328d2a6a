"""Memory that a child and its parent share, so that the bytes of large files need not be copied through the pipe.

The child puts them there and sends a frame that says where; the parent writes them to the disk from there, and says how
far it has come. Where there is no room, no such memory, or no Linux, the bytes go in the frame itself.

To the parent these bytes are as foreign as any: where they lie is checked, what they are is never looked at, and that
the child may change them meanwhile is no more than that it may send others. The memory is sealed, so that it can not be
shrunk under the parent's feet.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import sys
from collections.abc import Sequence

from peerstage.errors import ProtocolError
from peerstage.landing.base import Buffer
from peerstage.reasons import Reason
from peerstage.records import MIB

if sys.platform != "win32":
    import fcntl

#: Bytes of files that may lie there; behind them stands how far the parent has come.
SIZE = 4 * MIB
_DONE = struct.Struct("Q")


class Ring:
    """The parent's side.

    Args:
        fd: The memory; it is closed with this.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, SIZE + _DONE.size)

    @classmethod
    def make(cls) -> Ring | None:
        """Return new memory; None where there is none to share."""
        if not hasattr(os, "memfd_create"):
            return None
        try:
            with contextlib.ExitStack() as on_failure:
                fd = os.memfd_create("peerstage", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                on_failure.callback(os.close, fd)
                os.ftruncate(fd, SIZE + _DONE.size)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                ring = cls(fd)
                on_failure.pop_all()
                return ring
        except OSError:
            return None

    def piece(self, position: int, length: int) -> memoryview:
        """Return the bytes that lie there.

        Raises:
            ProtocolError: They would not lie within.
        """
        if position + length > SIZE:
            raise ProtocolError(
                "The child process says that bytes lie where there is no memory.", reason=Reason.CHILD_VIOLATION
            )
        with memoryview(self._memory) as whole:
            return whole[position : position + length]

    def release(self, mark: int) -> None:
        """Let the child use again what lies before its *mark*. What it makes of that is its own matter."""
        _DONE.pack_into(self._memory, SIZE, mark)

    def close(self) -> None:
        """Let go of the memory; of a piece that an error holds on to with that error."""
        with contextlib.suppress(BufferError):
            self._memory.close()
        os.close(self.fd)


class RingWriter:
    """The child's side.

    Args:
        fd: The memory that came from the parent; it is closed.

    Raises:
        OSError: If it cannot be mapped.
    """

    def __init__(self, fd: int) -> None:
        try:
            self._memory = mmap.mmap(fd, SIZE + _DONE.size)
        finally:
            os.close(fd)
        self._mark = 0

    def place(self, buffers: Sequence[Buffer], length: int) -> tuple[int, int] | None:
        """Put bytes there; return their position, and the mark that is behind them. None if there is no room now."""
        start = self._mark
        if start % SIZE + length > SIZE:
            start += SIZE - start % SIZE
        if start + length - _DONE.unpack_from(self._memory, SIZE)[0] > SIZE:
            return None
        position = at = start % SIZE
        for buffer in buffers:
            self._memory[at : at + len(buffer)] = buffer
            at += len(buffer)
        self._mark = start + length
        return position, self._mark
