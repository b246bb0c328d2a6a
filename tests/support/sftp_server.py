"""An SFTP server in memory behind the `Stream` interface, and its relatives that misbehave: a sentence each."""

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
from peerstage.landing.base import Buffer, Landing, Ranges, Slot
from peerstage.records import Entry, Limits, StageReport
from peerstage.session.stream import Chunk, Stream
from peerstage.session.watchdog import Watchdog
from peerstage.staging import stage
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.transport import SFTPTransport

MTIME = 1_700_000_000


@dataclass
class Node:
    """A file, as `lstat`, `open` and `fstat` see it."""

    data: bytes = b""
    mode: int = stat.S_IFREG | 0o644
    mtime: int = MTIME
    leads_to: Node | None = None

    @property
    def size(self) -> int:
        return len(self.data)


def string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def attributes(node: Node) -> bytes:
    return struct.pack(">IQIIIII", 0xF, node.size, 0, 0, node.mode, 0, node.mtime)


def packet(kind: int, number: int, body: bytes) -> bytes:
    return struct.pack(">IBI", len(body) + 5, kind, number) + body


@dataclass
class Server(Stream):
    """Behaves. Replies in order, a chunk as long as there is something to say.

    Attributes:
        files: What the one directory ``/c`` holds.
        most_handles: What ``limits@openssh.com`` tells, less the 8 to spare; None for a server without it.
        read_bytes: Likewise, for one READ.
        kinds: How often each type of request came.
    """

    files: dict[bytes, Node] = field(default_factory=dict)
    most_handles: int | None = 100
    read_bytes: int = 4096

    def __post_init__(self) -> None:
        self.handles: dict[bytes, Node | str] = {}
        self.opened = 0
        self.peak = 0
        self.in_flight = 0
        self.peak_in_flight = 0
        self.asked: list[tuple[bytes, int, int]] = []
        self.kinds: Counter[int] = Counter()
        self.sends = 0
        self.receives = 0
        self.listings = 0
        self._in = bytearray()
        self._out: deque[bytes] = deque()

    # The stream.

    def send(self, data: bytes) -> None:
        self.sends += 1
        self._in += data
        replies = []
        while len(self._in) >= 4 and len(self._in) >= 4 + (length := int.from_bytes(self._in[:4], "big")):
            body = bytes(self._in[4 : 4 + length])
            del self._in[: 4 + length]
            replies += self.answer(body)
        self._out.extend(self.arrange(replies))

    def receive(self) -> Chunk:
        if not self._out:
            raise AssertionError("The client waits for a reply, and no request is open.")
        return self.cut(self._out)

    @property
    def stderr(self) -> bytes:
        return b""

    @property
    def is_closed(self) -> bool:
        return False

    def end(self) -> None:
        pass

    def wait(self) -> int | None:
        return 0

    def close(self) -> None:
        self._out.clear()

    def arrange(self, replies: list[bytes]) -> list[bytes]:
        """In which order what was asked in one batch is answered."""
        return replies

    def cut(self, out: deque[bytes]) -> bytes:
        """What the client receives next."""
        return out.popleft()

    # The protocol.

    def answer(self, request: bytes) -> list[bytes]:
        kind = request[0]
        self.kinds[kind] += 1
        if kind == wire.INIT:
            extensions = b"" if self.most_handles is None else string(wire.LIMITS) + string(b"1")
            return [struct.pack(">IBI", 5 + len(extensions), wire.VERSION_REPLY, 3) + extensions]
        (number,) = struct.unpack_from(">I", request, 1)
        body = request[5:]
        if kind == wire.EXTENDED:
            told = struct.pack(">QQQQ", 262144, self.read_bytes, self.read_bytes, (self.most_handles or 0) + 8)
            return [packet(wire.EXTENDED_REPLY, number, told)]
        (length,) = struct.unpack_from(">I", body)
        value, rest = body[4 : 4 + length], body[4 + length :]
        handler = {
            wire.OPENDIR: self.opendir,
            wire.READDIR: self.readdir,
            wire.OPEN: self.open,
            wire.READ: self.read,
            wire.FSTAT: self.fstat,
            wire.STAT: self.stat,
            wire.CLOSE: self.close_handle,
        }[kind]
        return handler(number, value, rest)

    def status(self, number: int, code: int, text: bytes = b"no") -> list[bytes]:
        return [packet(wire.STATUS, number, struct.pack(">I", code) + string(text) + string(b""))]

    def opendir(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
        if path != b"/c":
            return self.status(number, wire.FX_NO_SUCH_FILE)
        self.listings += 1
        self.unlisted = self.listing()
        return self.new_handle(number, "directory")

    def listing(self) -> list[tuple[bytes, bytes]]:
        """Names with their attributes, as they go over the wire."""
        dots = [(b".", attributes(Node(mode=stat.S_IFDIR | 0o755))), (b"..", attributes(Node(mode=stat.S_IFDIR)))]
        return dots + [(name, attributes(node)) for name, node in self.files.items()]

    def readdir(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        some, self.unlisted = self.unlisted[:7], self.unlisted[7:]
        if not some:
            return self.status(number, wire.FX_EOF)
        body = struct.pack(">I", len(some))
        return [packet(wire.NAME, number, body + b"".join(string(n) + string(b"long " + n) + a for n, a in some))]

    def new_handle(self, number: int, node: Node | str) -> list[bytes]:
        self.opened += 1
        handle = b"handle-%d" % self.opened
        self.handles[handle] = node
        self.peak = max(self.peak, len(self.handles))
        return [packet(wire.HANDLE, number, string(handle))]

    def node_of(self, path: bytes) -> Node | None:
        node = self.files.get(path.removeprefix(b"/c/"))
        return node.leads_to if node is not None and stat.S_ISLNK(node.mode) else node

    def open(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
        node = self.node_of(path)
        return self.status(number, wire.FX_NO_SUCH_FILE) if node is None else self.new_handle(number, node)

    def stat(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
        node = self.node_of(path)
        if node is None:
            return self.status(number, wire.FX_NO_SUCH_FILE)
        return [packet(wire.ATTRS, number, attributes(node))]

    def fstat(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        node = self.handles[handle]
        assert isinstance(node, Node)
        return [packet(wire.ATTRS, number, attributes(node))]

    def read(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        node = self.handles[handle]
        assert isinstance(node, Node)
        offset, length = struct.unpack(">QI", rest)
        self.asked.append((handle, offset, length))
        return self.data(number, node, offset, length)

    def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
        piece = node.data[offset : offset + length]
        if not piece:
            return self.status(number, wire.FX_EOF)
        return [packet(wire.DATA, number, string(piece))]

    def close_handle(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        del self.handles[handle]
        return self.status(number, wire.FX_OK)


class Erratic(Server):
    """Within the rules: replies in any order, reads as short as it likes, cuts its stream anywhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chance = random.Random(0)
        self.reorders = self.shortens = self.cuts = True

    def arrange(self, replies: list[bytes]) -> list[bytes]:
        if self.reorders:
            self.chance.shuffle(replies)
        return replies

    def cut(self, out: deque[bytes]) -> bytes:
        if not self.cuts:
            return super().cut(out)
        held = b"".join(out)
        out.clear()
        at = self.chance.randint(1, len(held))
        if held[at:]:
            out.append(held[at:])
        return held[:at]

    def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
        return super().data(number, node, offset, self.chance.randint(1, length) if self.shortens else length)


class AnyOrder(Erratic):
    """Answers whatever it holds in any order, however long ago it was asked."""

    def cut(self, out: deque[bytes]) -> bytes:
        out.rotate(-self.chance.randrange(len(out)))
        return out.popleft()


class HangsUp(Server):
    """Closes its side when it has nothing to say."""

    def receive(self) -> Chunk:
        self.receives += 1
        return self.cut(self._out) if self._out else b""


class FallsSilent(Server):
    """Keeps the channel open and says nothing more, until somebody ends it."""

    watchdog: Watchdog

    def receive(self) -> Chunk:
        if self._out:
            return self.cut(self._out)
        ended = threading.Event()
        self.watchdog.begin_wait()
        with self.watchdog.ending(ended.set):
            assert ended.wait(30), "Nobody ended the wait."
        self.watchdog.end_wait()
        self.watchdog.check()
        raise AssertionError("The wait was ended for no reason.")


class DiesAfter(Server):
    """The connection is lost once so many bytes have been received."""

    left = 0

    def cut(self, out: deque[bytes]) -> bytes:
        chunk = super().cut(out)
        if self.left <= 0:
            raise ConnectionLost("The connection was lost: the peer closed it.")
        if len(chunk) > self.left:
            out.appendleft(chunk[self.left :])
            chunk = chunk[: self.left]
        self.left -= len(chunk)
        return chunk


class FakeSession:
    """Opens the one stream that it was given."""

    fingerprint = "SHA256:none"

    def __init__(self, stream: Server) -> None:
        self.stream = stream

    def open_subsystem(self, name: str) -> Server:
        return self.stream

    def require_same_process(self) -> None:
        pass

    def close(self) -> None:
        self.stream.close()


class RecordingSlot(Slot):
    """A file in memory."""

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
        whole = bytearray(self.entry.size)
        for offset, piece in self.pieces:
            whole[offset : offset + len(piece)] = piece
        return bytes(whole)


class RecordingLanding(Landing):
    """Has room for everything, and keeps it in memory."""

    def __init__(self) -> None:
        self.slots: dict[bytes, RecordingSlot] = {}
        self.refused: dict[bytes, StageError] = {}

    def expect(self, files: int, size: int) -> None:
        pass

    def open(self, entry: Entry) -> RecordingSlot:
        begun = self.slots.get(entry.name)
        if begun is None or begun.entry != entry:
            begun = self.slots[entry.name] = RecordingSlot(entry)
        return begun

    def refuse(self, name: bytes, error: StageError) -> None:
        self.refused[name] = error

    @property
    def received(self) -> int:
        return sum(slot.received for slot in self.slots.values())


def transport_to(server: Server, limits: Limits | None = None, watchdog: Watchdog | None = None) -> SFTPTransport:
    limits = limits or Limits()
    return SFTPTransport(cast(Any, FakeSession(server)), limits, watchdog or Watchdog(limits))


def stage_from(server: Server, target: Path, limits: Limits | None = None) -> StageReport:
    return stage(transport_to(server, limits), b"/c", str(target), peer="peer", durable=False)
