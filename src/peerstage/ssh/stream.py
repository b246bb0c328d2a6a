"""A session's channel: as a byte stream on which the watchdog bounds every wait, or as the socket of a transport."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import paramiko

from peerstage.errors import StageError
from peerstage.records import MIB
from peerstage.ssh._paramiko.channels import discard_data, has_received_eof
from peerstage.watchdog import Watchdog

#: More than a channel buffer holds.
_ALL = 1 << 30
#: The largest window of a forwarded channel, in bytes. The connection through it buffers a window of its own, too:
#: together they must not exhaust the memory.
MAX_FORWARDING_WINDOW_SIZE = 8 * MIB
#: Seconds without data after which to read stderr, if both share a small window.
_STDERR_INTERVAL = 0.5
#: Seconds that paramiko may take between closing the channels and marking the connection as inactive.
_CLOSING_SECONDS = 0.1

Chunk: TypeAlias = "bytes | memoryview"


class Stream(ABC):
    """A two-way byte stream to a program on the peer.

    After any failure `send` and `receive` keep raising; `close` always succeeds.
    """

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send all of *data*; drop it if the peer has closed the channel, which `receive` reports.

        Raises:
            ConnectionLost: If the connection ended and `receive` has returned all that had arrived.
            LimitExceeded: If a bound of `Limits` is exceeded.
        """

    @abstractmethod
    def receive(self) -> Chunk:
        """Return the next bytes, as many as have arrived; ``b""`` once the peer has closed its side.

        With a bandwidth limit, it returns as soon as that permits to receive more.

        Raises:
            ConnectionLost: If the connection ends, which differs from the peer closing the channel.
            LimitExceeded: If a bound of `Limits` is exceeded.
        """

    @abstractmethod
    def send_eof(self) -> None:
        """Send SSH_MSG_CHANNEL_EOF. The peer can still send."""

    @abstractmethod
    def wait(self) -> int | None:
        """Wait for the end of the remote program; return its exit status, None if it ended without one.

        Raises:
            ConnectionLost, LimitExceeded: As `receive`.
        """

    @property
    @abstractmethod
    def stderr(self) -> bytes:
        """The remote program's stderr so far, up to a bound."""

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether either side has closed the channel."""

    @abstractmethod
    def close(self) -> None:
        """Close the channel, and discard what has not been received. May be called again."""


class ChannelStream(Stream):
    """A `Stream` over a paramiko channel.

    Args:
        channel: An open channel with bounded buffers.
        watchdog: Bounds every wait for the peer.
        failure_of: Returns the reason for a lost connection, given paramiko's exception or None.
    """

    def __init__(
        self, channel: paramiko.Channel, watchdog: Watchdog, failure_of: Callable[[BaseException | None], StageError]
    ) -> None:
        self._channel = channel
        self._watchdog = watchdog
        self._failure_of = failure_of
        self._stderr = b""

    def send(self, data: bytes) -> None:
        watchdog = self._watchdog
        watchdog.begin_wait()
        try:
            self._channel.sendall(data)
        except Exception as exc:
            if not self._can_receive():
                raise self._failure_of(exc) from exc
        finally:
            watchdog.end_wait()
        if self._channel.closed and not self._can_receive():  # paramiko drops data for a dead connection
            raise self._failure_of(None)

    def receive(self) -> Chunk:
        watchdog = self._watchdog
        watchdog.begin_wait()
        try:
            chunk = self._receive_chunk()
        except Exception as exc:
            raise self._failure_of(exc) from exc
        finally:
            watchdog.end_wait()
        if not chunk and not self._was_closed_by_peer():
            raise self._failure_of(None)
        watchdog.throttle(len(chunk))
        return chunk

    def _receive_chunk(self) -> Chunk:
        """Return the next data, and accept stderr while there is none.

        Both share the channel's window. With a bandwidth limit it may be so small that unread stderr uses it up.
        """
        channel = self._channel
        while self._watchdog.bandwidth is not None:
            channel.settimeout(_STDERR_INTERVAL)
            try:
                return channel.recv(_ALL)
            except TimeoutError:
                self._read_stderr()
            finally:
                channel.settimeout(None)  # it applies to `send`, too
        return channel.recv(_ALL)

    def _read_stderr(self) -> None:
        while self._channel.recv_stderr_ready():
            self._stderr += self._channel.recv_stderr(_ALL)

    def _can_receive(self) -> bool:
        """Return whether `receive` has something to return: data that arrived, or that the peer closed the channel."""
        return self._watchdog.failure is None and (self._channel.recv_ready() or self._was_closed_by_peer())

    def _was_closed_by_peer(self) -> bool:
        """Return whether the peer closed the channel, while the connection is alive."""
        transport = self._channel.get_transport()
        if not has_received_eof(self._channel):  # paramiko closes channels before it marks the connection inactive
            transport.join(_CLOSING_SECONDS)
        return self._watchdog.failure is None and transport.is_active()

    def send_eof(self) -> None:
        with contextlib.suppress(Exception):  # the peer may have closed the channel
            self._channel.shutdown_write()

    def wait(self) -> int | None:
        watchdog = self._watchdog
        watchdog.begin_wait()
        try:
            status = self._channel.recv_exit_status()
        finally:
            watchdog.end_wait()
        if status < 0 and not self._was_closed_by_peer():
            raise self._failure_of(None)
        return status if status >= 0 else None

    @property
    def stderr(self) -> bytes:
        self._watchdog.begin_wait()  # to reopen the window, paramiko may have to wait for a key exchange
        try:
            self._read_stderr()
        finally:
            self._watchdog.end_wait()
        return self._stderr

    @property
    def is_closed(self) -> bool:
        return self._channel.closed

    def close(self) -> None:
        with contextlib.suppress(Exception):  # a channel that fails to close ends with its connection
            self._channel.close()
        discard_data(self._channel)  # the garbage collector may find the channel much later


class ChannelSocket:
    """A direct-tcpip channel (RFC 4254, section 7.2) of a jump host, as the socket of the next connection."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    @property
    def _closed(self) -> bool:
        """Whether the channel is closed. paramiko reads this attribute, which Python's sockets have, too."""
        return self._channel.closed

    def settimeout(self, seconds: float | None) -> None:
        """Set the time limit of `recv_into` and `send`."""
        self._channel.settimeout(seconds)

    def recv_into(self, view: memoryview) -> int:
        """Read into *view*; return the number of bytes, 0 at the end."""
        data = self._channel.recv(len(view))
        view[: len(data)] = data
        return len(data)

    def send(self, data: bytes) -> int:
        """Send as much of *data* as the window allows; return the number of bytes, 0 if the channel is closed."""
        return self._channel.send(data)

    def shutdown(self, how: int) -> None:
        """Close the channel in both directions, whatever *how* says, so that `recv_into` and `send` return."""
        self.close()

    def close(self) -> None:
        """Close the channel. May be called again, and after the connection ended."""
        with contextlib.suppress(Exception):  # a channel that fails to close ends with its connection
            self._channel.close()
