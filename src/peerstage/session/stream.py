"""One channel of a session as a transport uses it: bytes out, chunks in, every wait watched."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import paramiko

    from peerstage.errors import StageError
    from peerstage.session.watchdog import Watchdog

_MOST = 1 << 30
#: Seconds that paramiko takes at most from the end of the channels to the end of the connection.
_DYING = 0.1

Chunk: TypeAlias = "bytes | memoryview"


class Stream(ABC):
    """A two-way stream of bytes to a program on the peer.

    After any failure `send` and `receive` keep raising; `close` always succeeds.
    """

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send all of *data*; it is dropped if the peer has closed the channel, which `receive` tells.

        Raises:
            ConnectionLost: The connection ended.
            LimitExceeded: A bound of `Limits` has passed.
        """

    @abstractmethod
    def receive(self) -> Chunk:
        """Return the next bytes, however many have come; ``b""`` once the peer has closed its side.

        Raises:
            ConnectionLost: The connection ended (which is not the same as the peer closing the channel).
            LimitExceeded: A bound of `Limits` has passed.
        """

    @abstractmethod
    def end(self) -> None:
        """Say that nothing more will be sent. The peer can still send."""

    @abstractmethod
    def wait(self) -> int | None:
        """Wait for the end of the remote program, and return its exit status; None if it ended without one.

        Raises:
            ConnectionLost, LimitExceeded: As `receive`.
        """

    @property
    @abstractmethod
    def stderr(self) -> bytes:
        """What the remote program has said on stderr, as far as it was kept."""

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether the channel is closed, by whomever."""

    @abstractmethod
    def close(self) -> None:
        """Close the channel. Closing again is allowed."""


class ChannelStream(Stream):
    """A `Stream` over a paramiko channel.

    Args:
        channel: Open, with our buffers.
        watchdog: Told whenever the peer is waited for.
        failure: Says why the connection is gone; called with what paramiko raised, or None.
    """

    def __init__(
        self,
        channel: paramiko.Channel,
        watchdog: Watchdog,
        failure: Callable[[BaseException | None], StageError],
    ) -> None:
        self._channel = channel
        self._watchdog = watchdog
        self._failure = failure
        self._stderr = b""

    def send(self, data: bytes) -> None:
        watchdog = self._watchdog
        watchdog.begin_wait()
        try:
            self._channel.sendall(data)
        except Exception as exc:
            if not self._ended_by_peer():
                raise self._failure(exc) from exc
        finally:
            watchdog.end_wait()
        if self._channel.closed and not self._ended_by_peer():  # paramiko drops what is sent on a dead connection
            raise self._failure(None)

    def receive(self) -> Chunk:
        watchdog = self._watchdog
        watchdog.begin_wait()
        try:
            chunk: Chunk = self._channel.recv(_MOST)
        except Exception as exc:
            raise self._failure(exc) from exc
        finally:
            watchdog.end_wait()
        if not chunk and not self._ended_by_peer():
            raise self._failure(None)
        return chunk

    def _ended_by_peer(self) -> bool:
        """Whether the channel was ended by the peer, its connection being as good as before."""
        transport = self._channel.get_transport()
        if not self._channel.eof_received:  # paramiko closes channels a moment before it calls a connection dead
            transport.join(_DYING)
        return self._watchdog.failure is None and transport.is_active()

    def end(self) -> None:
        with contextlib.suppress(Exception):  # a channel that the peer has closed needs to be told nothing
            self._channel.shutdown_write()

    def wait(self) -> int | None:
        watchdog = self._watchdog
        watchdog.begin_wait()
        try:
            status = self._channel.recv_exit_status()
        finally:
            watchdog.end_wait()
        if status < 0 and not self._ended_by_peer():
            raise self._failure(None)
        return status if status >= 0 else None

    @property
    def stderr(self) -> bytes:
        self._watchdog.begin_wait()  # to tell the peer that there is room again, new keys may have to come first
        try:
            while self._channel.recv_stderr_ready():
                self._stderr += self._channel.recv_stderr(_MOST)
        finally:
            self._watchdog.end_wait()
        return self._stderr

    @property
    def is_closed(self) -> bool:
        return self._channel.closed

    def close(self) -> None:
        with contextlib.suppress(Exception):  # a channel that can not be closed in good order goes with its connection
            self._channel.close()
