"""Child-to-parent frames: encoder, and strict parser for untrusted input.

A frame is a header of 17 bytes and a body::

    kind (1)   file number (4)   offset (8)   length of the body (4)   body

File number and offset are 0 in frames that do not concern an open file. The parser yields a frame or raises
`ProtocolError`. It passes file data on as it arrives, and buffers no more than one small body.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from peerstage.errors import ProtocolError, StageError
from peerstage.isolation.protocol.entry_codec import MAX_SIZE, decode_entries, encode_entries
from peerstage.isolation.protocol.error_codec import decode_error, encode_error
from peerstage.isolation.protocol.values import (
    bytes_to_text,
    child_violation,
    decode_json,
    encode_json,
    parse_bytes,
    parse_int,
    parse_items,
    parse_name,
    parse_text,
)
from peerstage.records import KIB, MIB, Entry

HEADER = struct.Struct(">BIQI")

#: Bytes in the body of one DATA frame; the child splits larger writes.
MAX_DATA = 4 * MIB
#: Bytes in any other body: a reply, or an error with its path.
MAX_BODY = 384 * KIB
#: ADMIT frames whose answers the child has not read.
MAX_UNANSWERED = 2
#: Characters of a log line.
MAX_LOG_LINE = 4096


#: The kind of a frame, its first byte.
Kind = IntEnum(
    "Kind", "ADMIT ASK_MISSING DATA FINISH FAIL REFUSE IMPORT LOG REPLY OUTPUT ALIVE FALLBACK APPEARED VANISHED"
)


class Admit(NamedTuple):
    """Files under consecutive numbers, which later frames refer to; see `Target.admit`.

    Attributes:
        first_number: The number of the first of *entries*.
        entries: From 1 to `MAX_ENTRIES` files.
        is_new_listing: Whether the files that were numbered before belong to an earlier listing: of a lost connection,
            or if *has_changed* is set of this one.
        wants_answer: Whether the parent answers which of the files are declined, and of which it wants only ranges.
            Otherwise the child fetches all of them, and the parent drops the data of those that it declines.
        has_changed: Whether these are files of the earlier listing that changed; see `Target.recheck`.
    """

    first_number: int
    entries: tuple[Entry, ...]
    is_new_listing: bool = False
    wants_answer: bool = False
    has_changed: bool = False


class Appeared(NamedTuple):
    """Files that only a later listing has; none if it was only compared. See `Target.recheck`."""

    entries: tuple[Entry, ...]


class Vanished(NamedTuple):
    """Files that a later listing does not have any more; see `Target.recheck`."""

    entries: tuple[Entry, ...]


class AskMissing(NamedTuple):
    """Asks which ranges of a file are missing; see `IncomingFile.missing`."""

    file_number: int


class Data(NamedTuple):
    """Bytes of a file. *data* is valid only until the parser is fed again."""

    file_number: int
    offset: int
    data: memoryview


class Finish(NamedTuple):
    """Ends a file; see `IncomingFile.finish`."""

    file_number: int


class Fail(NamedTuple):
    """Abandons a file; see `IncomingFile.fail`."""

    file_number: int
    error: StageError


class Refuse(NamedTuple):
    """Reports an entry that was not read; see `Target.refuse`."""

    name: bytes
    error: StageError


class ImportFile(NamedTuple):
    """Reports a file that a command has left in the workspace; see `CommandTarget.import_file`."""

    name: bytes


class Log(NamedTuple):
    """A line for the parent's logger of the same name."""

    level: int
    logger: str
    message: str


class Output(NamedTuple):
    """Output of a command that runs on the peer."""

    data: bytes


class Alive(NamedTuple):
    """The heartbeat of a child whose job is in progress: its peer may be slow to answer."""


class Fallback(NamedTuple):
    """Reports that the peer has no SFTP, so that SCP is used from now on."""


class Reply(NamedTuple):
    """Ends a job: its result or error, and what is known about the connection."""

    fields: dict[str, Any]


Frame: TypeAlias = (
    "Admit | Appeared | Vanished | AskMissing | Data | Finish | Fail | Refuse | ImportFile | Log | Output | Alive | "
    "Fallback | Reply"
)


def encode_frame(frame: Frame) -> bytes:
    """Return *frame* as bytes."""
    match frame:
        case Admit(number, entries, is_new_listing, wants_answer, has_changed):
            flags = bytes([is_new_listing | wants_answer << 1 | has_changed << 2])
            return _pack(Kind.ADMIT, number, body=flags + encode_entries(entries))
        case Appeared(entries):
            return _pack(Kind.APPEARED, body=encode_entries(entries))
        case Vanished(entries):
            return _pack(Kind.VANISHED, body=encode_entries(entries))
        case AskMissing(number):
            return _pack(Kind.ASK_MISSING, number)
        case Data(number, offset, data):
            return _pack(Kind.DATA, number, offset, bytes(data))
        case Finish(number):
            return _pack(Kind.FINISH, number)
        case Fail(number, error):
            return _pack(Kind.FAIL, number, body=encode_json(encode_error(error)))
        case Refuse(name, error):
            return _pack(Kind.REFUSE, body=encode_json([bytes_to_text(name), encode_error(error)]))
        case ImportFile(name):
            return _pack(Kind.IMPORT, body=name)
        case Log():
            return _pack(Kind.LOG, body=encode_json(frame))
        case Output(data):
            return _pack(Kind.OUTPUT, body=data)
        case Alive():
            return _pack(Kind.ALIVE)
        case Fallback():
            return _pack(Kind.FALLBACK)
        case Reply(fields):
            return _pack(Kind.REPLY, body=encode_json(fields))


def pack_data_header(file_number: int, offset: int, length: int) -> bytes:
    """Return the header of a DATA frame whose body of *length* bytes follows."""
    return HEADER.pack(Kind.DATA, file_number, offset, length)


def _pack(kind: Kind, file_number: int = 0, offset: int = 0, body: bytes = b"") -> bytes:
    return HEADER.pack(kind, file_number, offset, len(body)) + body


class FrameParser:
    """Splits the byte stream of a child into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: tuple[int, int, int] | None = None  # of the current DATA frame: file number, offset, bytes missing

    @property
    def is_between_frames(self) -> bool:
        """Whether every byte fed so far belongs to a frame that was yielded."""
        return not self._buffer and self._data is None

    def feed(self, data: memoryview) -> Iterator[Frame]:
        """Yield the frames that *data* completes; a DATA frame may be yielded in several parts.

        Raises:
            ProtocolError: If a frame is invalid.
        """
        at = 0
        while at < len(data):
            if self._data is not None:
                number, offset, missing = self._data
                part = data[at : at + missing]
                at += len(part)
                self._data = (number, offset + len(part), missing - len(part)) if len(part) < missing else None
                yield Data(number, offset, part)
                continue
            at += self._fill_buffer(data, at, HEADER.size)
            if len(self._buffer) < HEADER.size:
                return
            kind, number, offset, length = HEADER.unpack_from(self._buffer)
            if kind == Kind.DATA:
                self._data = (number, *_check_range(offset, length))
                self._buffer.clear()
                continue
            if length > MAX_BODY:
                raise child_violation(f"The child process sent a frame of {length} bytes.")
            at += self._fill_buffer(data, at, HEADER.size + length)
            if len(self._buffer) < HEADER.size + length:
                return
            body = bytes(self._buffer[HEADER.size :])
            self._buffer.clear()
            yield _decode(kind, number, offset, body)

    def _fill_buffer(self, data: memoryview, at: int, size: int) -> int:
        """Append bytes from *at* on until the buffer holds *size*; return how many were appended."""
        part = data[at : at + max(0, size - len(self._buffer))]
        self._buffer += part
        return len(part)


def _decode(kind: int, number: int, offset: int, body: bytes) -> Frame:
    if not offset and kind == Kind.ADMIT and body and body[0] < 8:
        return Admit(number, decode_entries(body, 1), bool(body[0] & 1), bool(body[0] & 2), bool(body[0] & 4))
    if not offset and kind == Kind.ASK_MISSING and not body:
        return AskMissing(number)
    if not offset and kind == Kind.FINISH and not body:
        return Finish(number)
    if not offset and kind == Kind.FAIL:
        return Fail(number, decode_error(decode_json(body)))
    if not offset and not number:
        return _decode_without_file(kind, body)
    raise _invalid_frame(kind)


def _decode_without_file(kind: int, body: bytes) -> Frame:
    if kind == Kind.REFUSE:
        name, error = parse_items(decode_json(body), 2, exactly=True)
        return Refuse(parse_name(parse_bytes(name, "name", MAX_BODY)), decode_error(error))
    if kind == Kind.APPEARED:
        return Appeared(decode_entries(body, 0) if body else ())
    if kind == Kind.VANISHED:
        return Vanished(decode_entries(body, 0))
    if kind == Kind.IMPORT:
        return ImportFile(parse_name(body))
    if kind == Kind.LOG:
        level, logger, message = parse_items(decode_json(body), 3, exactly=True)
        message = parse_text(message, "log line", MAX_LOG_LINE)
        return Log(parse_int(level, "level", 0, 50), parse_text(logger, "logger", MAX_LOG_LINE), message)
    if kind == Kind.OUTPUT and body:
        return Output(body)
    if kind == Kind.ALIVE and not body:
        return Alive()
    if kind == Kind.FALLBACK and not body:
        return Fallback()
    if kind == Kind.REPLY and isinstance(fields := decode_json(body), dict):
        return Reply(fields)
    raise _invalid_frame(kind)


def _check_range(offset: int, length: int) -> tuple[int, int]:
    if not 0 < length <= MAX_DATA or offset > MAX_SIZE:
        raise child_violation(f"The child process sent {length} bytes for offset {offset}.")
    return offset, length


def _invalid_frame(kind: int) -> ProtocolError:
    return child_violation(f"The child process sent an invalid frame of kind {kind}.")
