"""A ring buffer in memory shared by child and parent, so that the data of large files is not copied through the pipe.

The child writes file data into the ring and sends a `SharedData` frame with its position. The parent writes the data to
disk from there, and then releases it. Two counters order this: the child counts the bytes that it has written (and
skipped at the end of the ring); the parent stores, behind the data, the counter up to which it has released them.
Without shared memory (not Linux), or while the ring is full, data is sent in `Data` frames.

The parent trusts neither position nor data. It checks the position, and never interprets the data; a child that changes
the data later could have sent other data in the first place. Seals keep the child from truncating the memory, which
would kill the parent with SIGBUS.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import sys
from collections.abc import Sequence

from peerstage.isolation.protocol.values import child_violation
from peerstage.records import MIB
from peerstage.target.base import Buffer

if sys.platform != "win32":
    import fcntl

#: Bytes of file data that the ring holds; the parent's counter follows them.
SIZE = 4 * MIB
_COUNTER = struct.Struct("Q")


class SharedRing:
    """The parent's side.

    Args:
        fd: The memory; closed by `close`.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, SIZE + _COUNTER.size)

    @classmethod
    def create(cls) -> SharedRing | None:
        """Return a new ring; None where the system cannot provide one."""
        if not hasattr(os, "memfd_create"):
            return None
        try:
            with contextlib.ExitStack() as on_failure:
                fd = os.memfd_create("peerstage", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                on_failure.callback(os.close, fd)
                os.ftruncate(fd, SIZE + _COUNTER.size)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                ring = cls(fd)
                on_failure.pop_all()
                return ring
        except OSError:
            return None

    def view(self, position: int, length: int) -> memoryview:
        """Return *length* bytes at *position*.

        Raises:
            ProtocolError: If they are not inside the ring.
        """
        if position + length > SIZE:
            raise child_violation("The child process sent a position outside the shared memory.")
        with memoryview(self._memory) as memory:
            return memory[position : position + length]

    def release(self, counter: int) -> None:
        """Let the child overwrite everything up to *counter*. A wrong counter harms only the child's own data."""
        _COUNTER.pack_into(self._memory, SIZE, counter)

    def close(self) -> None:
        """Close the memory; a view that the traceback of an error refers to keeps the mapping alive."""
        with contextlib.suppress(BufferError):
            self._memory.close()
        os.close(self.fd)


class SharedRingWriter:
    """The child's side.

    Args:
        fd: The memory, received from the parent; closed here.

    Raises:
        OSError: If the memory cannot be mapped.
    """

    def __init__(self, fd: int) -> None:
        try:
            self._memory = mmap.mmap(fd, SIZE + _COUNTER.size)
        finally:
            os.close(fd)
        self._counter = 0

    def write(self, buffers: Sequence[Buffer], length: int) -> tuple[int, int] | None:
        """Write *buffers* of *length* bytes; return their position and the counter behind them, or None if full."""
        start = self._counter
        if start % SIZE + length > SIZE:
            start += SIZE - start % SIZE
        if start + length - _COUNTER.unpack_from(self._memory, SIZE)[0] > SIZE:
            return None
        position = at = start % SIZE
        for buffer in buffers:
            self._memory[at : at + len(buffer)] = buffer
            at += len(buffer)
        self._counter = start + length
        return position, self._counter
