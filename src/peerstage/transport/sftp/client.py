"""A bounded SFTP client: it pipelines requests in batches, and accepts their replies in any order."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

from peerstage.errors import LimitExceeded, ProtocolError, RemoteError, RemoteNotFound
from peerstage.reasons import Reason
from peerstage.records import KIB, REPLY_BYTES
from peerstage.ssh.data_types import pack_string
from peerstage.ssh.stream import Stream
from peerstage.target.base import Buffer
from peerstage.transport.refusals import with_advice
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.packet_reader import Packet, PacketReader
from peerstage.watchdog import Watchdog

#: The length of a READ on a server that reports no limit: all servers should accept it
#: (draft-ietf-secsh-filexfer-02, section 3).
_DEFAULT_READ_LENGTH = 32 * KIB
#: The most handles to keep open: without ``limits@openssh.com``, with it but without a limit, and in any case.
_DEFAULT_OPEN_HANDLES = 16
_UNLIMITED_OPEN_HANDLES = 64
_MAX_OPEN_HANDLES = 512
#: Handles that the server allows and the client leaves free.
_SPARE_HANDLES = 8

#: Flush when this many requests are queued, or when fewer than _BUSY are in flight.
_BATCH = 32
_BUSY = 128


class Reply(NamedTuple):
    """A reply, and the context that was given with its request.

    Attributes:
        context: See `SFTPClient.queue_request`.
        type: The packet type, one of ``wire.FXP_*``.
        body: See `Packet`.
    """

    context: Any
    type: int
    body: list[Buffer] | bytes

    def joined_body(self) -> bytes:
        """Return the body in one piece."""
        return self.body if isinstance(self.body, bytes) else b"".join(self.body)

    def expect_handle(self, path: bytes) -> bytes:
        """Return the handle in the reply to a request about *path*; raise `RemoteError` for an error status."""
        if self.type == wire.FXP_HANDLE:
            return wire.parse_handle(self.joined_body())
        raise status_error(self.expect_status(), path)

    def expect_attributes(self, path: bytes) -> wire.Attributes:
        """Return the attributes in the reply to a request about *path*; raise `RemoteError` for an error status."""
        if self.type == wire.FXP_ATTRS:
            return wire.parse_attributes(self.joined_body())
        raise status_error(self.expect_status(), path)

    def expect_status(self) -> wire.Status:
        """Return the status, an error or not; raise `ProtocolError` if the reply is of another type."""
        if self.type == wire.FXP_STATUS:
            return wire.parse_status(self.joined_body())
        raise ProtocolError(f"The peer replied with an SFTP packet of the wrong type, {self.type}.")


class _Request(NamedTuple):
    """An outstanding request: its context, and `Watchdog.seconds_waited` when it was queued."""

    context: Any
    queued_at: float


class SFTPClient:
    """The client side of one SFTP channel, version 3.

    Queue requests with `queue_request`; receive their replies, in any order, with `read_reply`. A protocol violation is
    final: only `close` is useful after it.

    Attributes:
        limits: Bounds on what the server may send, those of the watchdog.
        bandwidth: The watchdog's bandwidth limit, if there is one.
        reader: Reads the packets of the channel.
        max_read_length: How many bytes one READ may request.
        max_open_handles: How many handles may be open at once.
    """

    def __init__(self, stream: Stream, watchdog: Watchdog) -> None:
        self.limits = limits = watchdog.limits
        self.bandwidth = watchdog.bandwidth
        self._stream = stream
        self._watchdog = watchdog
        self.reader = PacketReader(stream.receive, max_packet_bytes=limits.packet_bytes)
        self._request_id = secrets.randbits(32)  # unpredictable, so that a server cannot answer in advance
        self._outstanding: dict[int, _Request] = {}  # oldest first
        self._oldest_since = 0.0  # `Watchdog.seconds_waited` when the oldest outstanding request became the oldest
        self._queue: list[bytes] = []
        self._max_data_length = max(KIB, limits.packet_bytes - KIB)
        self.max_read_length = min(_DEFAULT_READ_LENGTH, self._max_data_length)
        self.max_open_handles = _DEFAULT_OPEN_HANDLES

    def negotiate(self) -> None:
        """Agree on version 3, and query the server's limits.

        Raises:
            NoSFTP: If the server closed the channel without sending a byte.
            ProtocolError: If it does not speak SFTP version 3.
        """
        self._stream.send(wire.pack_init())
        version, extensions = wire.parse_version(self.reader.read_version())
        if version != wire.VERSION:
            raise ProtocolError(f"The peer speaks SFTP version {version}, not 3. Update its SSH server.")
        self._watchdog.count_received(REPLY_BYTES)
        if wire.LIMITS_EXTENSION in extensions:
            reply = self.request_reply(wire.FXP_EXTENDED, pack_string(wire.LIMITS_EXTENSION))
            if reply.type == wire.FXP_EXTENDED_REPLY:
                self._apply_server_limits(wire.parse_limits(reply.joined_body()))
            else:
                reply.expect_status()  # the server may refuse: then the defaults apply

    def _apply_server_limits(self, server: wire.ServerLimits) -> None:
        if server.max_read_length:
            self.max_read_length = max(KIB, min(server.max_read_length, self._max_data_length))
        if server.max_open_handles:
            self.max_open_handles = max(1, min(server.max_open_handles - _SPARE_HANDLES, _MAX_OPEN_HANDLES))
        else:
            self.max_open_handles = _UNLIMITED_OPEN_HANDLES

    # Pipelined requests.

    def queue_request(self, packet_type: int, body: bytes, context: Any = None) -> None:
        """Queue a request; its `Reply` carries *context*."""
        request_id = self._request_id = (self._request_id + 1) & 0xFFFFFFFF
        self._outstanding[request_id] = _Request(context, self._watchdog.seconds_waited)
        self._queue.append(wire.pack_request(packet_type, request_id, body))

    @property
    def outstanding(self) -> int:
        """The number of requests without a reply."""
        return len(self._outstanding)

    def read_reply(self) -> Reply:
        """Return the next reply, to whichever request.

        Queued requests are sent before waiting, unless the server is busy: each send costs both sides.

        Raises:
            ProtocolError: If it answers no outstanding request, or is malformed.
            LimitExceeded: If the oldest request waits longer than `Limits.reply_timeout` while others are answered.
            ConnectionLost: If the channel or the connection ended.
        """
        queue = self._queue
        if queue and not self.reader.has_more and (len(queue) >= _BATCH or len(self._outstanding) - len(queue) < _BUSY):
            batch = b"".join(queue)
            queue.clear()
            self._stream.send(batch)
        packet = self.reader.read_packet()
        oldest = next(iter(self._outstanding), None)
        request = self._outstanding.pop(packet.request_id, None)
        if request is None:
            raise ProtocolError(f"The peer replied to request {packet.request_id}, which is not outstanding.")
        self._watchdog.count_received(_credited_bytes(packet), is_content=packet.type == wire.FXP_DATA)
        if packet.request_id == oldest:
            self._oldest_since = self._watchdog.seconds_waited
        elif self._outstanding:
            self._check_oldest()
        return Reply(request.context, packet.type, packet.body)

    def _check_oldest(self) -> None:
        """Raise `LimitExceeded` if the oldest request waits too long while others are answered.

        The time counts from when the request became the oldest: on a slow line, everything requested before it has to
        arrive first.
        """
        oldest = next(iter(self._outstanding.values()))
        if self._watchdog.seconds_waited - max(oldest.queued_at, self._oldest_since) > self.limits.reply_timeout:
            raise LimitExceeded(
                f"The peer left a request unanswered for {self.limits.reply_timeout:g} s (Limits.reply_timeout).",
                transient=True,
                reason=Reason.REPLY_TIMEOUT,
                limit="reply_timeout",
            )

    def close(self) -> None:
        """Close the channel. Closing again is allowed."""
        self._stream.close()

    # Single requests, while none is outstanding.

    def request_reply(self, packet_type: int, body: bytes) -> Reply:
        """Send one request and return its reply."""
        self.queue_request(packet_type, body)
        return self.read_reply()

    def request_handle(self, packet_type: int, body: bytes, path: bytes) -> bytes:
        """Send an OPEN or OPENDIR of *path*, and return the handle."""
        return self.request_reply(packet_type, body).expect_handle(path)

    def stat(self, path: bytes) -> wire.Attributes:
        """Return the attributes of *path*, symlinks followed."""
        return self.request_reply(wire.FXP_STAT, pack_string(path)).expect_attributes(path)

    def expect_ok(self, packet_type: int, body: bytes, path: bytes) -> None:
        """Send a request about *path* that returns no data; raise `RemoteError` if it fails."""
        status = self.request_reply(packet_type, body).expect_status()
        if status.code != wire.FX_OK:
            raise status_error(status, path)


def status_error(status: wire.Status, path: bytes) -> RemoteError:
    """Return the error that an error *status* about *path* stands for, with advice."""
    if status.code == wire.FX_NO_SUCH_FILE:
        return RemoteNotFound("The peer has no such file or directory.", path=path)
    if status.code == wire.FX_PERMISSION_DENIED:
        reason = Reason.PERMISSION_DENIED
        return RemoteError(with_advice("The peer denies permission.", reason), path=path, reason=reason)
    quoted = f": {status.message!r}" if status.message else ""
    return RemoteError(
        f"The peer replied with SFTP status {status.code}{quoted}.", path=path, reason=Reason.REMOTE_FAILURE
    )


def _credited_bytes(packet: Packet) -> int:
    """Return the bytes to credit *packet* with: its data or names; for any other reply, the cost of a round trip."""
    if packet.type not in (wire.FXP_DATA, wire.FXP_NAME):
        return REPLY_BYTES
    return len(packet.body) if isinstance(packet.body, bytes) else sum(map(len, packet.body))
