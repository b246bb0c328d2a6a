"""SFTP version 3 (draft-ietf-secsh-filexfer-02), pure: values to bytes, and bytes to values or `ProtocolError`.

Nothing here waits, and nothing is believed: every length and count is compared with the bytes that are there.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from peerstage.errors import ProtocolError
from peerstage.landing.base import Buffer

VERSION = 3

# Packet types (3).
INIT, VERSION_REPLY, OPEN, CLOSE, READ, LSTAT, FSTAT = 1, 2, 3, 4, 5, 7, 8
OPENDIR, READDIR, REMOVE, STAT = 11, 12, 13, 17
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
EXTENDED, EXTENDED_REPLY = 200, 201

# Open flags (6.3).
FXF_READ, FXF_WRITE, FXF_CREAT, FXF_TRUNC, FXF_EXCL = 0x01, 0x02, 0x08, 0x10, 0x20

# Status codes (7).
FX_OK, FX_EOF, FX_NO_SUCH_FILE, FX_PERMISSION_DENIED, FX_FAILURE, FX_BAD_MESSAGE = range(6)

#: OpenSSH's extension that tells the sizes a server takes (PROTOCOL, 4.8).
LIMITS = b"limits@openssh.com"

_MOST_HANDLE_BYTES = 256  # (6.2)
_MOST_MESSAGE_BYTES = 120  # kept of a status, and there may be one for each of very many files
_ATTR_SIZE, _ATTR_UIDGID, _ATTR_PERMISSIONS, _ATTR_ACMODTIME, _ATTR_EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000

#: What OpenSSH tells of every file, read in one piece.
_ATTR_USUAL = _ATTR_SIZE | _ATTR_UIDGID | _ATTR_PERMISSIONS | _ATTR_ACMODTIME
_usual = struct.Struct(">IQIIIII")

_u32 = struct.Struct(">I")
_u64 = struct.Struct(">Q")
_head = struct.Struct(">IBI")
_read = struct.Struct(">QI")


class Attributes(NamedTuple):
    """File attributes (5), as far as they matter here; None is what the server did not tell."""

    size: int | None = None
    mode: int | None = None
    mtime: int | None = None


class Status(NamedTuple):
    """A status reply (7)."""

    code: int
    message: str


class ServerLimits(NamedTuple):
    """The answer to ``limits@openssh.com``; 0 is "no limit known"."""

    packet: int
    read: int
    write: int
    handles: int


# Requests (6).


def init() -> bytes:
    """SSH_FXP_INIT (4)."""
    return struct.pack(">IBI", 5, INIT, VERSION)


def string(value: Buffer) -> bytes:
    """A string: its length, and its bytes (RFC 4251, 5)."""
    return _u32.pack(len(value)) + value


def request(kind: int, number: int, body: bytes) -> bytes:
    """A request with its number."""
    return _head.pack(len(body) + 5, kind, number) + body


def read(handle: bytes, offset: int, length: int) -> bytes:
    """The body of SSH_FXP_READ (6.4)."""
    return string(handle) + _read.pack(offset, length)


def open_file(path: bytes, flags: int) -> bytes:
    """The body of SSH_FXP_OPEN (6.3), with no attributes: the peer's umask decides."""
    return string(path) + struct.pack(">II", flags, 0)


# Replies (7).


def parse_version(body: Buffer) -> tuple[int, dict[bytes, bytes]]:
    """Return the server's version and extensions (4)."""
    reader = _Reader(body)
    version = reader.u32()
    extensions = {}
    while reader.left:
        name = reader.string()
        extensions[name] = reader.string()
    return version, extensions


def parse_status(body: Buffer) -> Status:
    """Return code and message; servers that leave out message and language are understood."""
    reader = _Reader(body)
    code = reader.u32()
    message = reader.string() if reader.left else b""
    if reader.left:
        reader.string()
    reader.end()
    return Status(code, message[:_MOST_MESSAGE_BYTES].decode("utf-8", "backslashreplace"))


def parse_handle(body: Buffer) -> bytes:
    """Return the handle."""
    reader = _Reader(body)
    handle = reader.string()
    reader.end()
    if not handle or len(handle) > _MOST_HANDLE_BYTES:
        raise ProtocolError(f"The peer gave a handle of {len(handle)} bytes.")
    return handle


def parse_attributes(body: Buffer) -> Attributes:
    """Return the attributes of an SSH_FXP_ATTRS reply."""
    reader = _Reader(body)
    attributes = reader.attributes()
    reader.end()
    return attributes


def parse_names(body: Buffer, *, most: int) -> list[tuple[bytes, Attributes]]:
    """Return the entries of an SSH_FXP_NAME reply, at most *most*; one without entries is refused: it never ends."""
    reader = _Reader(body)
    count = reader.u32()
    if not 0 < count <= most:
        raise ProtocolError(f"The peer lists {count} entries at once, where 1 to {most} are expected.")
    entries = []
    for _ in range(count):  # bounded: each takes at least 12 of the bytes that are there
        name = reader.string()
        reader.skip_string()
        entries.append((name, reader.attributes()))
    reader.end()
    return entries


def parse_limits(body: Buffer) -> ServerLimits:
    """Return the answer to ``limits@openssh.com``."""
    reader = _Reader(body)
    limits = ServerLimits(reader.u64(), reader.u64(), reader.u64(), reader.u64())
    reader.end()
    return limits


class _Reader:
    """Reads one reply from its start, and never beyond its end."""

    __slots__ = ("_at", "_body", "_size")

    def __init__(self, body: Buffer) -> None:
        self._body = body
        self._at = 0
        self._size = len(body)

    @property
    def left(self) -> int:
        return self._size - self._at

    def u32(self) -> int:
        value: int = _u32.unpack_from(self._body, self._advance(4))[0]
        return value

    def u64(self) -> int:
        value: int = _u64.unpack_from(self._body, self._advance(8))[0]
        return value

    def string(self) -> bytes:
        length = self.u32()
        start = self._advance(length)
        return bytes(self._body[start : start + length])

    def skip_string(self) -> None:
        self._advance(self.u32())

    def attributes(self) -> Attributes:
        flags = self.u32()
        if flags == _ATTR_USUAL:
            _, size, _, _, mode, _, mtime = _usual.unpack_from(self._body, self._advance(_usual.size - 4) - 4)
            return Attributes(size, mode, mtime)
        size = self.u64() if flags & _ATTR_SIZE else None
        if flags & _ATTR_UIDGID:
            self._advance(8)
        mode = self.u32() if flags & _ATTR_PERMISSIONS else None
        mtime = None
        if flags & _ATTR_ACMODTIME:
            self._advance(4)
            mtime = self.u32()
        if flags & _ATTR_EXTENDED:
            for _ in range(self.u32()):  # bounded: `_advance` refuses what is not there
                self.skip_string()
                self.skip_string()
        return Attributes(size, mode, mtime)

    def end(self) -> None:
        if self._at != self._size:
            raise ProtocolError(f"The peer's reply has {self._size - self._at} bytes too many.")

    def _advance(self, length: int) -> int:
        at = self._at
        if length > self._size - at:
            raise ProtocolError("The peer's reply is shorter than what it says it holds.")
        self._at = at + length
        return at
