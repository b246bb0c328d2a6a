"""The frames that come up from a child: how they are made, and a parser that believes none of them.

A frame is a header of 17 bytes and a body::

    kind (1)   slot (4)   offset or size (8)   length of the body (4)   body

The bodies of errors, logs and results are JSON; a name and the bytes of a file are what they are. The parser takes
whatever comes as a stranger's: it hands out a record or raises `ProtocolError`, and holds no more than one small body.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from peerstage.errors import ProtocolError, StageError
from peerstage.isolation.messages import decode_json, encode_json, error_from, error_to, integer
from peerstage.reasons import Reason
from peerstage.records import KIB, MIB, Entry

HEADER = struct.Struct(">BIQI")
_OPEN = struct.Struct(">iq")
_SHARED = struct.Struct(">QQQ")
_UNKNOWN = -1

#: A child splits what is longer.
MOST_DATA = 4 * MIB
#: The longest body that is no file data: a result, or an error with its path.
MOST_BODY = 384 * KIB

_MOST_SIZE = 2**63 - 1
_MOST_MTIME = 2**40


class Kind(IntEnum):
    """What a frame says."""

    EXPECT = 1
    OPEN = 2
    DATA = 3
    FINISH = 4
    FAIL = 5
    REFUSE = 6
    ADOPT = 7
    LOG = 8
    RESULT = 9
    SAID = 10
    SHARED = 11
    ALIVE = 12


class Expect(NamedTuple):
    """So many files and bytes will come."""

    files: int
    size: int


class Open(NamedTuple):
    """A file begins; *slot* is its number from here on."""

    slot: int
    entry: Entry


class Data(NamedTuple):
    """A part of a file. *piece* is only valid until the parser is fed again."""

    slot: int
    offset: int
    piece: memoryview


class Shared(NamedTuple):
    """A part of a file that lies in the memory that is shared; *mark* is what to release once it is taken."""

    slot: int
    offset: int
    position: int
    length: int
    mark: int


class Finish(NamedTuple):
    """The peer has nothing more to give for this file."""

    slot: int


class Fail(NamedTuple):
    """This file is given up."""

    slot: int
    error: StageError


class Refuse(NamedTuple):
    """An entry that was not read."""

    name: bytes
    error: StageError


class Adopt(NamedTuple):
    """A file lies in the workspace."""

    name: bytes


class Log(NamedTuple):
    """Something for the log."""

    level: int
    room: str
    message: str


class Said(NamedTuple):
    """A piece of what a command on the peer says."""

    piece: bytes


class Alive(NamedTuple):
    """The child works, though it has nothing to say: a peer may take its time."""


class Result(NamedTuple):
    """The end of a job: its value and what is known of the connection, or an error."""

    fields: dict[str, Any]


Record: TypeAlias = "Expect | Open | Data | Shared | Finish | Fail | Refuse | Adopt | Log | Said | Alive | Result"


# Making them.


def data_header(slot: int, offset: int, length: int) -> bytes:
    """Return the header of a DATA frame; its body follows."""
    return HEADER.pack(Kind.DATA, slot, offset, length)


def encode(record: Record) -> bytes:
    """Return *record* as a frame."""
    if isinstance(record, Expect):
        return _frame(Kind.EXPECT, record.files, record.size)
    if isinstance(record, Open):
        entry = record.entry
        known = (_UNKNOWN if value is None else value for value in (entry.mode, entry.mtime))
        return _frame(Kind.OPEN, record.slot, entry.size, _OPEN.pack(*known) + entry.name)
    if isinstance(record, Data):
        return _frame(Kind.DATA, record.slot, record.offset, bytes(record.piece))
    if isinstance(record, Shared):
        body = _SHARED.pack(record.position, record.length, record.mark)
        return _frame(Kind.SHARED, record.slot, record.offset, body)
    if isinstance(record, Finish):
        return _frame(Kind.FINISH, record.slot)
    if isinstance(record, Fail):
        return _frame(Kind.FAIL, record.slot, body=encode_json(error_to(record.error)))
    if isinstance(record, Refuse):
        return _frame(Kind.REFUSE, len(record.name), body=record.name + encode_json(error_to(record.error)))
    if isinstance(record, Adopt):
        return _frame(Kind.ADOPT, body=record.name)
    if isinstance(record, Log):
        return _frame(Kind.LOG, record.level, body=encode_json([record.room, record.message]))
    if isinstance(record, Said):
        return _frame(Kind.SAID, body=record.piece)
    if isinstance(record, Alive):
        return _frame(Kind.ALIVE)
    return _frame(Kind.RESULT, body=encode_json(record.fields))


def _frame(kind: Kind, slot: int = 0, number: int = 0, body: bytes = b"") -> bytes:
    return HEADER.pack(kind, slot, number, len(body)) + body


# Reading them.


class FrameParser:
    """Turns what comes out of the pipe into records, in whatever pieces it comes.

    The bytes of a file are handed on as they come, so that a long frame costs no memory.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._data: tuple[int, int, int] | None = None  # slot, offset and bytes left of the DATA frame that is coming

    @property
    def is_between_frames(self) -> bool:
        """Whether everything that was fed has been handed out."""
        return not self._held and self._data is None

    def feed(self, data: memoryview) -> Iterator[Record]:
        """Yield the records that *data* completes.

        Raises:
            ProtocolError: It is none that a child sends.
        """
        at = 0
        while at < len(data):
            if self._data is not None:
                slot, offset, left = self._data
                piece = data[at : at + left]
                at += len(piece)
                self._data = (slot, offset + len(piece), left - len(piece)) if len(piece) < left else None
                yield Data(slot, offset, piece)
                continue
            at += self._hold(data, at, HEADER.size)
            if len(self._held) < HEADER.size:
                return
            kind, slot, number, length = HEADER.unpack_from(self._held)
            if kind == Kind.DATA:
                if not 0 < length <= MOST_DATA or number > _MOST_SIZE:
                    raise _broken(f"a part of {length} bytes at {number}")
                self._data = (slot, number, length)
                self._held.clear()
                continue
            if length > MOST_BODY:
                raise _broken(f"a frame of {length} bytes")
            at += self._hold(data, at, HEADER.size + length)
            if len(self._held) < HEADER.size + length:
                return
            body = bytes(self._held[HEADER.size :])
            self._held.clear()
            yield _decode(kind, slot, number, body)

    def _hold(self, data: memoryview, at: int, size: int) -> int:
        """Take bytes from *at* on until so many are held; return how many were taken."""
        piece = data[at : at + max(0, size - len(self._held))]
        self._held += piece
        return len(piece)


def _decode(kind: int, slot: int, number: int, body: bytes) -> Record:
    if kind == Kind.EXPECT and not body and number <= _MOST_SIZE:
        return Expect(slot, number)
    if kind == Kind.OPEN and len(body) > _OPEN.size:
        return Open(slot, _entry(number, body))
    if kind == Kind.SHARED and len(body) == _SHARED.size:
        return _shared(slot, number, body)
    if kind == Kind.FINISH and not body and not number:
        return Finish(slot)
    if kind == Kind.FAIL:
        return Fail(slot, error_from(decode_json(body)))
    if kind == Kind.REFUSE and slot <= len(body):
        return Refuse(_name(body[:slot]), error_from(decode_json(body[slot:])))
    if kind == Kind.ADOPT:
        return Adopt(_name(body))
    if kind == Kind.LOG:
        return _log(slot, decode_json(body))
    if kind == Kind.SAID and body and not slot and not number:
        return Said(body)
    if kind == Kind.ALIVE and not body and not slot and not number:
        return Alive()
    if kind == Kind.RESULT:
        fields = decode_json(body)
        if isinstance(fields, dict):
            return Result(fields)
    raise _broken(f"a frame of kind {kind}")


def _entry(size: int, body: bytes) -> Entry:
    mode, mtime = _OPEN.unpack_from(body)
    name = _name(body[_OPEN.size :])
    if size > _MOST_SIZE or not _UNKNOWN <= mode <= 0o7777 or not _UNKNOWN <= mtime <= _MOST_MTIME:
        raise _broken("a file that no file system holds")
    if name.startswith(b"."):
        raise ProtocolError(
            "The child process names a file that nobody asked for.", path=name, reason=Reason.CHILD_VIOLATION
        )
    return Entry(name, size, None if mode == _UNKNOWN else mode, None if mtime == _UNKNOWN else mtime)


def _shared(slot: int, offset: int, body: bytes) -> Shared:
    position, length, mark = _SHARED.unpack(body)
    if not 0 < length <= MOST_DATA or offset > _MOST_SIZE:
        raise _broken(f"a part of {length} bytes at {offset}")
    return Shared(slot, offset, position, length, mark)


def _name(name: bytes) -> bytes:
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise ProtocolError(
            "The child process gives a name that no file in a directory can have.",
            path=name,
            reason=Reason.CHILD_VIOLATION,
        )
    return name


def _log(level: int, raw: Any) -> Log:
    if not isinstance(raw, list) or len(raw) != 2 or not all(isinstance(text, str) for text in raw):
        raise _broken("a log line that is none")
    room, message = raw
    return Log(integer(level, "level", 0, 50), room, message)


def _broken(what: str) -> ProtocolError:
    return ProtocolError(
        f"The child process sent {what}; it is not listened to any more.", reason=Reason.CHILD_VIOLATION
    )
