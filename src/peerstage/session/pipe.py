"""The buffer of a channel: chunks as they come, and no more of them than the window allows.

paramiko's own costs time that grows with the square of what it holds, and refuses nothing.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from typing import Any

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

#: What a chunk costs in memory beside its bytes, and how much of that is tolerated: a window's worth of packets of one
#: byte each would otherwise take gigabytes.
_CHUNK_COST = 256
_CHUNK_COSTS_ALLOWED = 8 * 1024 * 1024
#: Bytes for which the reader is woken although more is about to come, and below which chunks are read several at once.
_WORTH_WAKING = 64 * 1024
_SMALL = 16 * 1024
_SLICE = 0.5
#: Characters of what a server says when it disconnects.
_MAX_DESCRIPTION = 200
_OTHER_PROTOCOLS = re.compile(r"HTTP/|\d{3}[ -]")
#: Bytes below which a chunk of stderr is joined with the next one.
_JOINED = 1024


class Violation(paramiko.SSHException):
    """The server broke a rule or a bound; raised in paramiko's thread, which then ends the connection."""


class PasswordExpired(paramiko.SSHException):
    """The server asks for a new password (RFC 4252, 8)."""


class NoCommonAlgorithm(IncompatiblePeer):
    """Server and client have no algorithm of one kind in common (RFC 4253, 7.1).

    Args:
        kind: "kex", "host key", "cipher" or "mac"; "" for another.
        text: What paramiko says about it.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class HungUp(Violation):
    """The server closed the connection before it identified itself (RFC 4253, 4.2).

    Args:
        said: What it said before.

    Attributes:
        is_another_protocol: Whether that is how HTTP, or SMTP, FTP and their kin begin.
    """

    def __init__(self, said: str) -> None:
        super().__init__(f"the server hangs up, saying {said[:_MAX_DESCRIPTION]!r}" if said else "it hangs up")
        self.is_another_protocol = _OTHER_PROTOCOLS.match(said) is not None


class Disconnected(paramiko.SSHException):
    """The server sent SSH_MSG_DISCONNECT (RFC 4253, 11.1).

    Args:
        reason: Its reason code.
        text: Its description; what is not printable is escaped, and only the beginning is kept.
    """

    def __init__(self, reason: int, text: str) -> None:
        why = f"saying {text[:_MAX_DESCRIPTION]!r}" if text else f"with reason {reason}"
        super().__init__(f"the server disconnected, {why}")


class ChunkPipe:
    """Stands in for `paramiko.buffered_pipe.BufferedPipe`: keeps chunks as they come, and no more than *most* bytes.

    Args:
        most: Bytes that may be held.
        complaint: What the server did, if there are more.
        patient: Whether somebody calls `wake`; then the reader is not woken for each small chunk, which costs a change
            of threads.
    """

    def __init__(self, most: int, complaint: str, *, patient: bool = False) -> None:
        self._most = most + _CHUNK_COSTS_ALLOWED
        self._complaint = complaint
        self._patient = patient
        self._chunks: deque[memoryview] = deque()
        self._cost = 0
        self._closed = False
        self._ready = threading.Condition(threading.Lock())

    def feed(self, data: Any) -> None:
        """Take a chunk; one too many ends the connection."""
        with self._ready:
            cost = len(data) + _CHUNK_COST
            if self._cost + cost > self._most:
                raise Violation(f"the server sent {self._complaint}")
            self._chunks.append(memoryview(data))
            self._cost += cost
            if not self._patient or self._cost > _WORTH_WAKING:
                self._ready.notify()

    def wake(self) -> None:
        """Let the reader have what has come."""
        if self._chunks:
            with self._ready:
                self._ready.notify()

    def read(self, nbytes: int, timeout: float | None = None) -> memoryview | bytes:
        """Return the next chunk, at most *nbytes*, or ``b""`` when the pipe is closed and empty."""
        with self._ready:
            while not self._chunks:
                if self._closed:
                    return b""
                # Not for ever at once: a signal may come in the instant before that, and would have to wait as long.
                if not self._ready.wait(_SLICE if timeout is None else timeout) and timeout is not None:
                    raise TimeoutError
            chunk = self._chunks.popleft()
            self._cost -= len(chunk) + _CHUNK_COST
            if len(chunk) > nbytes:
                self._chunks.appendleft(chunk[nbytes:])
                self._cost += len(chunk) - nbytes + _CHUNK_COST
                chunk = chunk[:nbytes]
            elif len(chunk) < _SMALL and self._chunks:
                return self._gather(chunk, nbytes)
            return chunk

    def _gather(self, chunk: memoryview, nbytes: int) -> bytes:
        """Return *chunk* and the small ones behind it as one: they hold a reply each, and there are many."""
        pieces, size = [chunk], len(chunk)
        while self._chunks and size + len(self._chunks[0]) <= min(nbytes, _WORTH_WAKING):
            chunk = self._chunks.popleft()
            pieces.append(chunk)
            size += len(chunk)
        self._cost -= size - len(pieces[0]) + _CHUNK_COST * (len(pieces) - 1)
        return b"".join(pieces)

    def read_ready(self) -> bool:
        """Whether `read` would return data at once."""
        return bool(self._chunks)

    def set_event(self, event: Any) -> None:
        """Channels that are read by `read` alone need no event."""

    def limit(self, most: int) -> None:
        """Hold no more than *most* bytes from now on."""
        self._most = most + _CHUNK_COSTS_ALLOWED

    def empty(self) -> bytes:
        """Return all that is held."""
        with self._ready:
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._cost = 0
            return data

    def close(self) -> None:
        """Let `read` return ``b""`` once everything has been read."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def __len__(self) -> int:
        return self._cost - _CHUNK_COST * len(self._chunks)


class StderrPipe(ChunkPipe):
    """The buffer of a channel's stderr: *most* bytes over the life of the channel, read or not.

    Small chunks are joined: a packet of one byte each would cost far more memory than it holds.
    """

    def __init__(self, most: int) -> None:
        super().__init__(most, f"more than {most} bytes on stderr")
        self._left = most

    def feed(self, data: Any) -> None:
        """Take a chunk; the byte that is one too many ends the connection."""
        self._left -= len(data)
        if self._left < 0:
            raise Violation(f"the server sent {self._complaint}")
        with self._ready:
            joined = bool(self._chunks) and len(self._chunks[-1]) < _JOINED
            pieces = [self._chunks.pop(), data] if joined else [data]
            self._chunks.append(memoryview(b"".join(pieces)))
            self._cost += len(data) + (0 if joined else _CHUNK_COST)
            self._ready.notify()
