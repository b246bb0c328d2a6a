"""An SFTP server in memory behind the `Stream` interface, and subclasses that misbehave, a sentence each."""

from __future__ import annotations

import random
import stat
import struct
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from peerstage.errors import ConnectionLost, StageError
from peerstage.records import Entry, Limits, StageReport
from peerstage.ssh.stream import Chunk, Stream
from peerstage.stage_options import StageOptions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget
from peerstage.target.base import Buffer, IncomingFile, Target
from peerstage.target.ranges import Ranges
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.sftp_transport import SFTPTransport
from peerstage.watchdog import Watchdog

MTIME = 1_700_000_000


@dataclass
class Node:
    """A file, as LSTAT, OPEN and FSTAT see it."""

    data: bytes = b""
    mode: int = stat.S_IFREG | 0o644
    mtime: int = MTIME
    leads_to: Node | None = None

    @property
    def size(self) -> int:
        return len(self.data)


def pack_string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def pack_attributes(node: Node) -> bytes:
    return struct.pack(">IQIIIII", 0xF, node.size, 0, 0, node.mode, 0, node.mtime)


def pack_packet(packet_type: int, request_id: int, body: bytes) -> bytes:
    return struct.pack(">IBI", len(body) + 5, packet_type, request_id) + body


@dataclass
class FakeSFTPServer(Stream):
    """Keeps to the protocol. It replies in order, and each `receive` returns one reply.

    Attributes:
        files: The contents of its only directory, ``/c``.
        max_handles: What ``limits@openssh.com`` reports, less the 8 handles that the client leaves free; None for a
            server without that extension.
        max_read_length: Likewise, for one READ.
        requests: How many requests of each type arrived.
        reads: The READs that arrived: handle, offset, length.
        peak_handles: The most handles that were open at once.
    """

    files: dict[bytes, Node] = field(default_factory=dict)
    max_handles: int | None = 100
    max_read_length: int = 4096

    def __post_init__(self) -> None:
        self.handles: dict[bytes, Node | str] = {}
        self.opened = 0
        self.peak_handles = 0
        self.reads: list[tuple[bytes, int, int]] = []
        self.requests: Counter[int] = Counter()
        self.sends = 0
        self.receives = 0
        self.listings = 0
        self._received = bytearray()
        self._replies: deque[bytes] = deque()

    # The stream.

    def send(self, data: bytes) -> None:
        self.sends += 1
        self._received += data
        replies = []
        while len(self._received) >= 4 and len(self._received) >= 4 + (
            length := int.from_bytes(self._received[:4], "big")
        ):
            request = bytes(self._received[4 : 4 + length])
            del self._received[: 4 + length]
            replies += self.answer(request)
        self._replies.extend(self.arrange(replies))

    def receive(self) -> Chunk:
        if not self._replies:
            raise AssertionError("The client waits for a reply although no request is outstanding.")
        return self.next_chunk(self._replies)

    @property
    def stderr(self) -> bytes:
        return b""

    @property
    def is_closed(self) -> bool:
        return False

    def send_eof(self) -> None:
        pass

    def wait(self) -> int | None:
        return 0

    def close(self) -> None:
        self._replies.clear()

    def arrange(self, replies: list[bytes]) -> list[bytes]:
        """Return the replies to one batch of requests in the order in which to send them."""
        return replies

    def next_chunk(self, replies: deque[bytes]) -> bytes:
        """Return what the client receives next."""
        return replies.popleft()

    # The protocol.

    def answer(self, request: bytes) -> list[bytes]:
        request_type = request[0]
        self.requests[request_type] += 1
        if request_type == wire.FXP_INIT:
            limits = pack_string(wire.LIMITS_EXTENSION) + pack_string(b"1")
            extensions = b"" if self.max_handles is None else limits
            return [struct.pack(">IBI", 5 + len(extensions), wire.FXP_VERSION, 3) + extensions]
        (request_id,) = struct.unpack_from(">I", request, 1)
        body = request[5:]
        if request_type == wire.FXP_EXTENDED:
            lengths = (262144, self.max_read_length, self.max_read_length)
            limits = struct.pack(">QQQQ", *lengths, (self.max_handles or 0) + 8)
            return [pack_packet(wire.FXP_EXTENDED_REPLY, request_id, limits)]
        (length,) = struct.unpack_from(">I", body)
        value, rest = body[4 : 4 + length], body[4 + length :]
        handler = {
            wire.FXP_OPENDIR: self.opendir,
            wire.FXP_READDIR: self.readdir,
            wire.FXP_OPEN: self.open,
            wire.FXP_READ: self.read,
            wire.FXP_FSTAT: self.fstat,
            wire.FXP_STAT: self.stat,
            wire.FXP_CLOSE: self.close_handle,
        }[request_type]
        return handler(request_id, value, rest)

    def status(self, request_id: int, code: int, message: bytes = b"no") -> list[bytes]:
        body = struct.pack(">I", code) + pack_string(message) + pack_string(b"")
        return [pack_packet(wire.FXP_STATUS, request_id, body)]

    def opendir(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        if path != b"/c":
            return self.status(request_id, wire.FX_NO_SUCH_FILE)
        self.listings += 1
        self.unlisted = self.listing()
        return self.new_handle(request_id, "directory")

    def listing(self) -> list[tuple[bytes, bytes]]:
        """Return the names with their packed attributes."""
        directory = pack_attributes(Node(mode=stat.S_IFDIR | 0o755))
        return [(b".", directory), (b"..", directory)] + [
            (name, pack_attributes(node)) for name, node in self.files.items()
        ]

    def readdir(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        entries, self.unlisted = self.unlisted[:7], self.unlisted[7:]
        if not entries:
            return self.status(request_id, wire.FX_EOF)
        names = b"".join(pack_string(name) + pack_string(b"long " + name) + attrs for name, attrs in entries)
        return [pack_packet(wire.FXP_NAME, request_id, struct.pack(">I", len(entries)) + names)]

    def new_handle(self, request_id: int, node: Node | str) -> list[bytes]:
        self.opened += 1
        handle = b"handle-%d" % self.opened
        self.handles[handle] = node
        self.peak_handles = max(self.peak_handles, len(self.handles))
        return [pack_packet(wire.FXP_HANDLE, request_id, pack_string(handle))]

    def node_of(self, path: bytes) -> Node | None:
        node = self.files.get(path.removeprefix(b"/c/"))
        return node.leads_to if node is not None and stat.S_ISLNK(node.mode) else node

    def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        node = self.node_of(path)
        return self.status(request_id, wire.FX_NO_SUCH_FILE) if node is None else self.new_handle(request_id, node)

    def stat(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        node = self.node_of(path)
        if node is None:
            return self.status(request_id, wire.FX_NO_SUCH_FILE)
        return [pack_packet(wire.FXP_ATTRS, request_id, pack_attributes(node))]

    def fstat(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        node = self.handles[handle]
        assert isinstance(node, Node)
        return [pack_packet(wire.FXP_ATTRS, request_id, pack_attributes(node))]

    def read(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        node = self.handles[handle]
        assert isinstance(node, Node)
        offset, length = struct.unpack(">QI", rest)
        self.reads.append((handle, offset, length))
        return self.data(request_id, node, offset, length)

    def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
        piece = node.data[offset : offset + length]
        if not piece:
            return self.status(request_id, wire.FX_EOF)
        return [pack_packet(wire.FXP_DATA, request_id, pack_string(piece))]

    def close_handle(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        del self.handles[handle]
        return self.status(request_id, wire.FX_OK)


class ErraticServer(FakeSFTPServer):
    """Keeps to the protocol, but reorders replies, shortens reads, and splits its stream anywhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.random = random.Random(0)
        self.reorders = self.shortens = self.splits = True

    def arrange(self, replies: list[bytes]) -> list[bytes]:
        if self.reorders:
            self.random.shuffle(replies)
        return replies

    def next_chunk(self, replies: deque[bytes]) -> bytes:
        if not self.splits:
            return super().next_chunk(replies)
        stream = b"".join(replies)
        replies.clear()
        at = self.random.randint(1, len(stream))
        if stream[at:]:
            replies.append(stream[at:])
        return stream[:at]

    def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
        return super().data(request_id, node, offset, self.random.randint(1, length) if self.shortens else length)


class ReorderingServer(ErraticServer):
    """Sends any of the replies that it holds next, however old the requests are."""

    def next_chunk(self, replies: deque[bytes]) -> bytes:
        replies.rotate(-self.random.randrange(len(replies)))
        return replies.popleft()


class ClosesChannel(FakeSFTPServer):
    """Closes the channel when it has nothing to send."""

    def receive(self) -> Chunk:
        self.receives += 1
        return self.next_chunk(self._replies) if self._replies else b""

    @property
    def is_closed(self) -> bool:
        return not self._replies


class StopsReplying(FakeSFTPServer):
    """Keeps the channel open and sends nothing more, until the watchdog ends the wait."""

    watchdog: Watchdog

    def receive(self) -> Chunk:
        if self._replies:
            return self.next_chunk(self._replies)
        ended = threading.Event()
        self.watchdog.begin_wait()
        with self.watchdog.on_failure(ended.set):
            assert ended.wait(30), "The watchdog did not end the wait."
        self.watchdog.end_wait()
        self.watchdog.raise_if_failed()
        raise AssertionError("The watchdog ended the wait without a failure.")


class DropsConnectionAfter(FakeSFTPServer):
    """Loses the connection once it has sent *bytes_left* bytes."""

    bytes_left = 0

    def next_chunk(self, replies: deque[bytes]) -> bytes:
        chunk = super().next_chunk(replies)
        if self.bytes_left <= 0:
            raise ConnectionLost("The connection was lost: the peer closed it.")
        if len(chunk) > self.bytes_left:
            replies.appendleft(chunk[self.bytes_left :])
            chunk = chunk[: self.bytes_left]
        self.bytes_left -= len(chunk)
        return chunk


class FakeSession:
    """A session whose subsystem is the given server."""

    fingerprint = "SHA256:none"

    def __init__(self, server: FakeSFTPServer) -> None:
        self.server = server

    def open_subsystem(self, name: str) -> FakeSFTPServer:
        return self.server

    def require_same_process(self) -> None:
        pass

    def close(self) -> None:
        self.server.close()


class RecordingFile(IncomingFile):
    """An incoming file in memory."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.ranges = Ranges()
        self.pieces: list[tuple[int, bytes]] = []
        self.received = 0
        self.finished = False
        self.error: StageError | None = None

    @property
    def is_finished(self) -> bool:
        return self.finished or self.error is not None

    def missing(self) -> Sequence[tuple[int, int]]:
        return [] if self.finished else list(self.ranges.missing(self.entry.size))

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        assert 0 <= offset <= offset + len(data) <= self.entry.size
        self.received += self.ranges.add(offset, offset + len(data))
        self.pieces.append((offset, data))

    def finish(self) -> None:
        self.finished = self.error is None and self.ranges.covers(self.entry.size)

    def fail(self, error: StageError) -> None:
        self.error = self.error or error

    @property
    def data(self) -> bytes:
        content = bytearray(self.entry.size)
        for offset, piece in self.pieces:
            content[offset : offset + len(piece)] = piece
        return bytes(content)


class RecordingTarget(Target):
    """A target in memory, with unlimited space."""

    def __init__(self) -> None:
        self.files: dict[bytes, RecordingFile] = {}
        self.refused: dict[bytes, StageError] = {}

    def admit(self, entries: Sequence[Entry]) -> list[RecordingFile]:
        for entry in entries:
            if entry.name not in self.files or self.files[entry.name].entry != entry:
                self.files[entry.name] = RecordingFile(entry)
        return [self.files[entry.name] for entry in entries if not self.files[entry.name].is_finished]

    def refuse(self, name: bytes, error: StageError) -> None:
        self.refused[name] = error

    @property
    def received(self) -> int:
        return sum(file.received for file in self.files.values())

    @property
    def contents(self) -> dict[bytes, bytes]:
        return {name: file.data for name, file in self.files.items()}


def transport_to(
    server: FakeSFTPServer, limits: Limits | None = None, watchdog: Watchdog | None = None
) -> SFTPTransport:
    return SFTPTransport(cast(Any, FakeSession(server)), watchdog or Watchdog(limits or Limits()))


def stage_from(server: FakeSFTPServer, target: Path, limits: Limits | None = None) -> StageReport:
    return stage(
        transport_to(server, limits),
        b"/c",
        DirectoryTarget(str(target), peer="peer", options=StageOptions(durable=False)),
    )
