"""The receive buffer of a channel: a queue of chunks, bounded by the channel's window.

paramiko's own buffer has no bound, and takes time quadratic in what it holds.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from peerstage.ssh._paramiko.exceptions import PeerViolation

#: The memory that a chunk takes in addition to its bytes, and what the chunks may take above the window: otherwise a
#: window full of one-byte packets would take gigabytes.
_CHUNK_OVERHEAD = 256
_MAX_OVERHEAD = 8 * 1024 * 1024
#: Wake the reader at this many bytes, even if more is about to arrive; and join chunks below the second bound.
_WAKE_BYTES = 64 * 1024
_SMALL_CHUNK = 16 * 1024
#: Join a chunk of stderr with the next one up to this size.
_SMALL_STDERR_CHUNK = 1024
_POLL_SECONDS = 0.5


class ChannelBuffer:
    """Replaces `paramiko.buffered_pipe.BufferedPipe`: keeps chunks as they arrive, without copying.

    Args:
        max_bytes: The channel's window. Bytes and overhead together are bounded by this plus `_MAX_OVERHEAD`.
        violation: What the server sent if it exceeds that, for the message "the server sent ...".
        defer_wakeups: Whether small chunks wake no reader, which saves thread switches; the caller calls `wake_reader`.
    """

    def __init__(self, max_bytes: int, violation: str, *, defer_wakeups: bool = False) -> None:
        self._max_cost = max_bytes + _MAX_OVERHEAD
        self._violation = violation
        self._defer_wakeups = defer_wakeups
        self._chunks: deque[memoryview] = deque()
        self._cost = 0
        self._is_closed = False
        self._changed = threading.Condition(threading.Lock())

    def feed(self, data: Any) -> None:
        """Append a chunk; raise `PeerViolation` if the buffer is full."""
        with self._changed:
            cost = len(data) + _CHUNK_OVERHEAD
            if self._cost + cost > self._max_cost:
                raise PeerViolation(f"the server sent {self._violation}")
            self._chunks.append(memoryview(data))
            self._cost += cost
            if not self._defer_wakeups or self._cost > _WAKE_BYTES:
                self._changed.notify()

    def wake_reader(self) -> None:
        """Wake the thread in `read`, if there is data for it."""
        if self._chunks:
            with self._changed:
                self._changed.notify()

    def read(self, nbytes: int, timeout: float | None = None) -> memoryview | bytes:
        """Return the next chunk, at most *nbytes*; ``b""`` once the buffer is closed and empty.

        Raises:
            TimeoutError: If nothing arrives for *timeout* seconds.
        """
        with self._changed:
            while not self._chunks:
                if self._is_closed:
                    return b""
                # Not forever: a signal that arrives just before an unbounded wait would not be handled until its end.
                if not self._changed.wait(_POLL_SECONDS if timeout is None else timeout) and timeout is not None:
                    raise TimeoutError
            chunk = self._chunks.popleft()
            self._cost -= len(chunk) + _CHUNK_OVERHEAD
            if len(chunk) > nbytes:
                self._chunks.appendleft(chunk[nbytes:])
                self._cost += len(chunk) - nbytes + _CHUNK_OVERHEAD
                chunk = chunk[:nbytes]
            elif len(chunk) < _SMALL_CHUNK and self._chunks:
                return self._join(chunk, nbytes)
            return chunk

    def _join(self, chunk: memoryview, nbytes: int) -> bytes:
        """Return *chunk* joined with the small chunks after it: in a directory listing, replies are small and many."""
        pieces, size = [chunk], len(chunk)
        while self._chunks and size + len(self._chunks[0]) <= min(nbytes, _WAKE_BYTES):
            chunk = self._chunks.popleft()
            pieces.append(chunk)
            size += len(chunk)
        self._cost -= size - len(pieces[0]) + _CHUNK_OVERHEAD * (len(pieces) - 1)
        return b"".join(pieces)

    def read_ready(self) -> bool:
        """Return whether `read` would return data without waiting."""
        return bool(self._chunks)

    def set_event(self, event: Any) -> None:
        """Do nothing: only `Channel.fileno` needs the event, and we do not call it."""

    def set_max_bytes(self, max_bytes: int) -> None:
        """Change the bound."""
        self._max_cost = max_bytes + _MAX_OVERHEAD

    def empty(self) -> bytes:
        """Remove and return all data."""
        with self._changed:
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._cost = 0
            return data

    def close(self) -> None:
        """Let `read` return ``b""`` after the data."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        return self._cost - _CHUNK_OVERHEAD * len(self._chunks)


class StderrBuffer(ChannelBuffer):
    """The buffer of a channel's stderr, with a bound over the life of the channel, whether it is read or not.

    Small chunks are joined, because each takes memory in addition to its bytes.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, f"more than {max_bytes} bytes on stderr (Limits.stderr_bytes)")
        self._bytes_left = max_bytes

    def feed(self, data: Any) -> None:
        """Append a chunk; raise `PeerViolation` if the server has sent too much over the life of the channel."""
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise PeerViolation(f"the server sent {self._violation}")
        with self._changed:
            joins = bool(self._chunks) and len(self._chunks[-1]) < _SMALL_STDERR_CHUNK
            pieces = [self._chunks.pop(), data] if joins else [data]
            self._chunks.append(memoryview(b"".join(pieces)))
            self._cost += len(data) + (0 if joins else _CHUNK_OVERHEAD)
            self._changed.notify()
