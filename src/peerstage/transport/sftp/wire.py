"""The wire format of SFTP version 3 (draft-ietf-secsh-filexfer-02): pack requests, parse replies.

The functions are pure. They check every length and count against the bytes that arrived, and raise `ProtocolError` for
a malformed reply.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from peerstage.errors import ProtocolError
from peerstage.ssh.data_types import DataReader, MalformedData, pack_string
from peerstage.target.base import Buffer

VERSION = 3

# Packet types (section 3).
FXP_INIT, FXP_VERSION, FXP_OPEN, FXP_CLOSE, FXP_READ, FXP_LSTAT, FXP_FSTAT = 1, 2, 3, 4, 5, 7, 8
FXP_OPENDIR, FXP_READDIR, FXP_REMOVE, FXP_STAT = 11, 12, 13, 17
FXP_STATUS, FXP_HANDLE, FXP_DATA, FXP_NAME, FXP_ATTRS = 101, 102, 103, 104, 105
FXP_EXTENDED, FXP_EXTENDED_REPLY = 200, 201

# Open flags (section 6.3).
FXF_READ, FXF_WRITE, FXF_CREAT, FXF_TRUNC, FXF_EXCL = 0x01, 0x02, 0x08, 0x10, 0x20

# Status codes (section 7).
FX_OK, FX_EOF, FX_NO_SUCH_FILE, FX_PERMISSION_DENIED, FX_FAILURE = range(5)

#: OpenSSH's extension by which a server reports its limits (OpenSSH's PROTOCOL file, section 4.8).
LIMITS_EXTENSION = b"limits@openssh.com"

_MAX_HANDLE_BYTES = 256  # (section 7)
_MAX_STATUS_MESSAGE_BYTES = 120  # bounds memory: a listing may bring one status for each of many thousand files
_ATTR_SIZE, _ATTR_UIDGID, _ATTR_PERMISSIONS, _ATTR_ACMODTIME, _ATTR_EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000

#: The attributes that OpenSSH sends for every file, unpacked in one step.
_ATTR_USUAL = _ATTR_SIZE | _ATTR_UIDGID | _ATTR_PERMISSIONS | _ATTR_ACMODTIME
_usual = struct.Struct(">QIIIII")
_times = struct.Struct(">II")

_request_head = struct.Struct(">IBI")
_offset_and_length = struct.Struct(">QI")


class Attributes(NamedTuple):
    """The file attributes (section 5) that staging needs; None for those that the server left out."""

    size: int | None = None
    mode: int | None = None
    mtime: int | None = None


class Status(NamedTuple):
    """The contents of SSH_FXP_STATUS (section 7)."""

    code: int
    message: str


class ServerLimits(NamedTuple):
    """The reply to ``limits@openssh.com``; 0 means that the server names no limit."""

    max_packet_length: int
    max_read_length: int
    max_write_length: int
    max_open_handles: int


# Requests (section 6).


def pack_init() -> bytes:
    """Return SSH_FXP_INIT (section 4)."""
    return struct.pack(">IBI", 5, FXP_INIT, VERSION)


def pack_request(packet_type: int, request_id: int, body: bytes) -> bytes:
    """Return a request of *packet_type* as a whole packet."""
    return _request_head.pack(len(body) + 5, packet_type, request_id) + body


def pack_read(handle: bytes, offset: int, length: int) -> bytes:
    """Return the body of SSH_FXP_READ (section 6.4)."""
    return pack_string(handle) + _offset_and_length.pack(offset, length)


def pack_open(path: bytes, flags: int) -> bytes:
    """Return the body of SSH_FXP_OPEN (section 6.3), without attributes: the server's umask sets the mode."""
    return pack_string(path) + struct.pack(">II", flags, 0)


# Replies (section 7). The parsers take the body of a reply.

_Value = TypeVar("_Value")


def _parser(read: Callable[[DataReader], _Value]) -> Callable[[Buffer], _Value]:
    """Make a parser of *read*: it reads the whole body, and raises `ProtocolError` if that is malformed."""

    @functools.wraps(read)
    def parse(body: Buffer) -> _Value:
        reader = DataReader(body)
        try:
            value = read(reader)
            if reader.position != len(body):  # saves a call for each of thousands of replies
                reader.expect_end()
        except MalformedData as exc:
            raise ProtocolError(f"The peer's reply is malformed: {exc}.") from None
        return value

    return parse


@_parser
def parse_version(reader: DataReader) -> tuple[int, dict[bytes, bytes]]:
    """Return the server's version and its extensions (section 4)."""
    version = reader.read_uint32()
    extensions = {}
    while reader.remaining:
        name = reader.read_string()
        extensions[name] = reader.read_string()
    return version, extensions


@_parser
def parse_status(reader: DataReader) -> Status:
    """Return the status; some servers omit the message and the language tag."""
    code = reader.read_uint32()
    message = reader.read_string() if reader.remaining else b""
    if reader.remaining:
        reader.skip_string()
    return Status(code, message[:_MAX_STATUS_MESSAGE_BYTES].decode("utf-8", "backslashreplace"))


@_parser
def parse_handle(reader: DataReader) -> bytes:
    """Return the handle; an empty one, or one above 256 bytes, is invalid."""
    handle = reader.read_string()
    if not handle or len(handle) > _MAX_HANDLE_BYTES:
        raise ProtocolError(f"The peer sent a handle of {len(handle)} bytes; 1 to {_MAX_HANDLE_BYTES} are allowed.")
    return handle


def parse_names(body: Buffer, *, max_names: int) -> list[tuple[bytes, Attributes]]:
    """Return the 1 to *max_names* entries of an SSH_FXP_NAME reply. A listing of empty replies would never end."""
    return _parser(functools.partial(_read_names, max_names))(body)


def _read_names(max_names: int, reader: DataReader) -> list[tuple[bytes, Attributes]]:
    count = reader.read_uint32()
    if not count:
        raise ProtocolError("The peer listed no entry in a reply, and did not end the listing.")
    if count > max_names:
        raise ProtocolError(
            f"The peer listed {count} entries in one reply, more than {max_names} (Limits.entries, and the names . "
            "and ..)."
        )
    entries = []
    for _ in range(count):  # bounded by the size of the body: every entry takes at least 12 bytes
        name = reader.read_string()
        reader.skip_string()
        entries.append((name, _read_attributes(reader)))
    return entries


@_parser
def parse_limits(reader: DataReader) -> ServerLimits:
    """Return the reply to ``limits@openssh.com``."""
    return ServerLimits(reader.read_uint64(), reader.read_uint64(), reader.read_uint64(), reader.read_uint64())


def _read_attributes(reader: DataReader) -> Attributes:
    """Return the attributes of an SSH_FXP_ATTRS reply, or of a name."""
    flags = reader.read_uint32()
    if flags == _ATTR_USUAL:
        size, _, _, mode, _, mtime = reader.unpack(_usual)
        return Attributes(size, mode, mtime)
    size = reader.read_uint64() if flags & _ATTR_SIZE else None
    if flags & _ATTR_UIDGID:
        reader.skip(8)
    mode = reader.read_uint32() if flags & _ATTR_PERMISSIONS else None
    mtime = reader.unpack(_times)[1] if flags & _ATTR_ACMODTIME else None
    if flags & _ATTR_EXTENDED:
        for _ in range(reader.read_uint32()):  # bounded by the size of the body: the reader raises at its end
            reader.skip_string()
            reader.skip_string()
    return Attributes(size, mode, mtime)


parse_attributes = _parser(_read_attributes)
