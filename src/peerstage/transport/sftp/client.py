"""A bounded SFTP client: numbered requests out in batches, checked replies in, in whatever order they come."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

from peerstage.errors import LimitExceeded, ProtocolError, RemoteError, RemoteNotFound
from peerstage.landing.base import Buffer
from peerstage.reasons import Reason
from peerstage.records import ANSWER_BYTES, KIB, Limits
from peerstage.session.stream import Stream
from peerstage.session.watchdog import Watchdog
from peerstage.transport.refusals import with_step
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.framing import Packet, PacketReader

#: Bytes to ask for at once of a server that does not say what it takes (draft, 6.4: 32768 always works).
READ_BYTES = 32 * KIB
#: Handles to keep open on a server that does not say how many it has.
HANDLES = 16
#: Handles to keep open at most, however many the server has.
MOST_HANDLES = 512

#: Requests that are worth a packet of their own, and unanswered ones that keep a server busy meanwhile.
_BATCH = 32
_BUSY = 128


_OF_ENTRY = {Reason.NOT_FOUND: Reason.VANISHED, Reason.REMOTE_FAILURE: Reason.ENTRY_UNREADABLE}


class Reply(NamedTuple):
    """A reply, with what was kept for it when its request was made."""

    context: Any
    kind: int
    body: list[Buffer] | bytes


class _Pending(NamedTuple):
    """A request: its context, and the watchdog's `waited` when it was made."""

    context: Any
    waited: float


class SFTPClient:
    """One conversation in SFTP version 3.

    Requests are queued with `request`, sent with `flush`, and answered by `reply` in any order. The first thing that
    breaks the protocol ends the conversation.

    Attributes:
        read_bytes: How much one READ may ask for.
        handles: How many handles may be open at once.
    """

    def __init__(self, stream: Stream, limits: Limits, watchdog: Watchdog) -> None:
        self._stream = stream
        self._limits = limits
        self._watchdog = watchdog
        self._reader = PacketReader(stream.receive, most=limits.packet_bytes)
        self._number = secrets.randbits(32)  # a peer that answers before it was asked has to guess
        self._pending: dict[int, _Pending] = {}  # in the order in which the requests were made
        self._oldest_since = 0.0  # the watchdog's `waited` when the oldest one became that
        self._out: list[bytes] = []
        self._most_read = max(KIB, limits.packet_bytes - KIB)
        self.read_bytes = min(READ_BYTES, self._most_read)
        self.handles = HANDLES

    def start(self) -> None:
        """Agree on version 3 and ask for the server's limits.

        Raises:
            NoSFTP: There is no server.
            ProtocolError: It speaks no SFTP, or an older version.
        """
        self._stream.send(wire.init())
        version, extensions = wire.parse_version(self._reader.next_version())
        if version != wire.VERSION:
            raise ProtocolError(f"The peer speaks SFTP version {version}, not 3. Update its SSH server.")
        self._watchdog.received(ANSWER_BYTES)
        if wire.LIMITS in extensions:
            reply = self.call(wire.EXTENDED, wire.string(wire.LIMITS))
            if reply.kind == wire.EXTENDED_REPLY:
                self._heed(wire.parse_limits(_joined(reply)))
            else:
                status_of(reply)  # it may refuse, and no more

    def _heed(self, server: wire.ServerLimits) -> None:
        if server.read:
            self.read_bytes = max(KIB, min(server.read, self._most_read))
        self.handles = max(1, min(server.handles - 8, MOST_HANDLES)) if server.handles else MOST_HANDLES // 8

    # Requests.

    def request(self, kind: int, body: bytes, context: Any = None) -> None:
        """Queue a request; *context* comes back with its reply."""
        number = self._number = (self._number + 1) & 0xFFFFFFFF
        self._pending[number] = _Pending(context, self._watchdog.waited)
        self._out.append(wire.request(kind, number, body))

    def flush(self) -> None:
        """Send what is queued, all at once."""
        if self._out:
            batch = b"".join(self._out)
            self._out.clear()
            self._stream.send(batch)

    @property
    def outstanding(self) -> int:
        """Requests that have no reply yet."""
        return len(self._pending)

    def reply(self) -> Reply:
        """Return the next reply, whichever request it answers; before it waits it sends what is queued.

        While the server has plenty to do, little is kept back until it makes a batch: each send costs both sides.

        Raises:
            ProtocolError: It answers nothing that was asked, or is malformed.
            LimitExceeded: A request has been unanswered for too long, although it was its turn: see
                `Limits.reply_timeout`.
            ConnectionLost: The conversation ended.
        """
        if not self._reader.has_more and (len(self._out) >= _BATCH or len(self._pending) - len(self._out) < _BUSY):
            self.flush()
        packet = self._reader.next()
        oldest = next(iter(self._pending), None)
        pending = self._pending.pop(packet.number, None)
        if pending is None:
            raise ProtocolError(f"The peer answers request {packet.number}, which is not open.")
        self._watchdog.received(_size_of(packet), content=packet.kind == wire.DATA)
        if packet.number == oldest:
            self._oldest_since = self._watchdog.waited
        elif self._pending:
            self._check_oldest()
        return Reply(pending.context, packet.kind, packet.body)

    def _check_oldest(self) -> None:
        """Raise `LimitExceeded` if the oldest request waits too long while others are answered.

        Its time counts from when it became the oldest. Counted from when it was made, a slow line would be given up:
        whatever was asked for before has to arrive first.
        """
        oldest = next(iter(self._pending.values()))
        if self._watchdog.waited - max(oldest.waited, self._oldest_since) > self._limits.reply_timeout:
            raise LimitExceeded(
                f"The peer left a request unanswered for {self._limits.reply_timeout:g} s (Limits.reply_timeout).",
                transient=True,
                reason=Reason.REPLY_TIMEOUT,
                limit="reply_timeout",
            )

    @property
    def has_more(self) -> bool:
        """Whether a reply, or a part of one, lies ready."""
        return self._reader.has_more

    @property
    def opening(self) -> str:
        """What the server began with, if `start` found that it is not SFTP."""
        return self._reader.opening

    @property
    def received(self) -> int:
        """Bytes received so far, file data and all."""
        return self._reader.received

    def close(self) -> None:
        """End the conversation. Ending again is allowed."""
        self._stream.close()

    # One request at a time.

    def call(self, kind: int, body: bytes) -> Reply:
        """Make one request and return its reply; nothing else may be open."""
        self.request(kind, body)
        return self.reply()

    def handle(self, kind: int, body: bytes, path: bytes) -> bytes:
        """Make a request that is answered by a handle, and return it."""
        return handle_of(self.call(kind, body), path)

    def stat(self, path: bytes) -> wire.Attributes:
        """Return the attributes of *path*, links followed."""
        return attributes_of(self.call(wire.STAT, wire.string(path)), path)

    def done(self, kind: int, body: bytes, path: bytes) -> None:
        """Make a request that is answered by a status, which must be OK."""
        status = status_of(self.call(kind, body))
        if status.code != wire.FX_OK:
            raise refusal(status, path)


# What a reply must be, where anything else is a breach of the protocol.


def handle_of(reply: Reply, path: bytes) -> bytes:
    """Return the handle that *reply* holds; a status is raised as the refusal that it is."""
    if reply.kind == wire.HANDLE:
        return wire.parse_handle(_joined(reply))
    raise refusal(status_of(reply), path)


def attributes_of(reply: Reply, path: bytes) -> wire.Attributes:
    """Return the attributes that *reply* holds; a status is raised as the refusal that it is."""
    if reply.kind == wire.ATTRS:
        return wire.parse_attributes(_joined(reply))
    raise refusal(status_of(reply), path)


def status_of(reply: Reply) -> wire.Status:
    """Return the status that *reply* holds."""
    if reply.kind != wire.STATUS:
        raise ProtocolError(f"The peer answered with a packet of type {reply.kind} where that can not be.")
    return wire.parse_status(_joined(reply))


def refusal(status: wire.Status, path: bytes) -> RemoteError:
    """Return a status other than OK as an error, with advice."""
    if status.code == wire.FX_NO_SUCH_FILE:
        return RemoteNotFound("It is not there on the peer.", path=path)
    if status.code == wire.FX_PERMISSION_DENIED:
        reason = Reason.PERMISSION_DENIED
        return RemoteError(with_step("The peer denies permission.", reason), path=path, reason=reason)
    said = f", saying {status.message!r}" if status.message else ""
    return RemoteError(f"The peer refuses with status {status.code}{said}.", path=path, reason=Reason.REMOTE_FAILURE)


def entry_reason(refused: RemoteError) -> Reason:
    """Return why a listed entry cannot be staged if the server answers with *refused*."""
    return _OF_ENTRY.get(refused.reason, refused.reason)


def _size_of(packet: Packet) -> int:
    """Return for how many bytes *packet* counts: its data or names; any other answer for what it costs both ways."""
    if packet.kind not in (wire.DATA, wire.NAME):
        return ANSWER_BYTES
    return len(packet.body) if isinstance(packet.body, bytes) else sum(map(len, packet.body))


def _joined(reply: Reply) -> bytes:
    return reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)
