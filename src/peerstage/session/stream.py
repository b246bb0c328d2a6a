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

Chunk: TypeAlias = "bytes | memoryview"


class Stream(ABC):
    """A two-way stream of bytes to a program on the peer.

    After any failure `send` and `receive` keep raising; `close` always succeeds.
    """

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send all of *data*.

        Raises:
            ConnectionLost: The channel is closed.
            LimitExceeded: A bound of `Limits` has passed.
        """

    @abstractmethod
    def receive(self) -> Chunk:
        """Return the next bytes, however many have come; ``b""`` once the peer has closed its side.

        Raises:
            ConnectionLost: The connection ended (which is not the same as the peer closing the channel).
            LimitExceeded: A bound of `Limits` has passed.
        """

    @property
    @abstractmethod
    def exit_status(self) -> int | None:
        """The status that the remote program ended with, None while it is not known."""

    @property
    @abstractmethod
    def stderr(self) -> bytes:
        """What the remote program has said on stderr, as far as it was kept."""

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
            raise self._failure(exc) from exc
        finally:
            watchdog.end_wait()
        if self._channel.closed:  # paramiko drops what is sent on a connection that has just died
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
        if not chunk and (watchdog.failure is not None or not self._channel.get_transport().is_active()):
            raise self._failure(None)
        return chunk

    @property
    def exit_status(self) -> int | None:
        return self._channel.recv_exit_status() if self._channel.exit_status_ready() else None

    @property
    def stderr(self) -> bytes:
        while self._channel.recv_stderr_ready():
            self._stderr += self._channel.recv_stderr(_MOST)
        return self._stderr

    def close(self) -> None:
        with contextlib.suppress(Exception):  # a channel that can not be closed in good order goes with its connection
            self._channel.close()
