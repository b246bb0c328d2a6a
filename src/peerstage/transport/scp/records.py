"""The records of the SCP protocol, read strictly: pure functions from bytes to values.

There is no standard; this is what rcp and OpenSSH's ``scp -f`` send, and no more of it than was asked for. Every record
is one line::

    C0644 1234 name        a file, followed by so many bytes and a status
    T1700000000 0 1700000000 0     times (seconds, microseconds; modification, access) of the file in the next record
    \\x01scp: name: why      a warning: that file is not sent
    \\x02why                 the end

and ``\\x00`` alone is the status of a file that was sent whole.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple, TypeAlias

from peerstage.errors import ProtocolError, escape
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.transport.names import check_name_length

NO_SUCH_FILE = "No such file or directory"
#: How scp refuses what is no regular file, and how ProFTPD's mod_sftp does.
NOT_REGULAR = ("not a regular file", "Operation not permitted")
#: How the texts of scp end: with words of its own, or those of strerror(3).
_REASONS = {
    NO_SUCH_FILE: Reason.NOT_FOUND,
    **dict.fromkeys(NOT_REGULAR, Reason.NOT_A_FILE),
    "Permission denied": Reason.PERMISSION_DENIED,
    "No space left on device": Reason.REMOTE_NO_SPACE,
    "Disk quota exceeded": Reason.REMOTE_NO_SPACE,
    "Not a directory": Reason.NOT_A_DIRECTORY,
}
_OF_ENTRY = {Reason.NOT_FOUND: Reason.VANISHED, Reason.REMOTE_FAILURE: Reason.ENTRY_UNREADABLE}
_OF_WRITING = {Reason.PERMISSION_DENIED: Reason.WRITE_DENIED}

#: What a line holds beside a name.
_LINE_OVERHEAD = 64
_MOST_SIZE = (1 << 63) - 1
_FILE = re.compile(rb"C([0-7]{4}) (0|[1-9][0-9]{0,18}) ([^\0]+)", re.DOTALL)
_TIMES = re.compile(rb"T(0|[1-9][0-9]{0,11}) [0-9]{1,6} (0|[1-9][0-9]{0,11}) [0-9]{1,6}")
_DIRECTORY = re.compile(rb"D[0-7]{4} |E$")


class File(NamedTuple):
    """A file is to come: its name, its size in bytes, its permission bits (octal)."""

    name: bytes
    size: int
    mode: int


class Times(NamedTuple):
    """The modification time of the next file, in whole seconds since the epoch."""

    mtime: int


class Warn(NamedTuple):
    """One file is not sent, or not whole."""

    text: str


class Fatal(NamedTuple):
    """Nothing more is sent."""

    text: str


Record: TypeAlias = "File | Times | Warn | Fatal"


def parse_record(line: bytes, limits: Limits) -> Record:
    """Return the record that *line* is, without its newline.

    Raises:
        ProtocolError: It is none, or one that was not asked for (a directory).
        LimitExceeded: The name is too long.
    """
    kind = line[:1]
    if kind == b"C":
        return _file(line, limits)
    if kind == b"T":
        return _times(line)
    if kind in (b"\x01", b"\x02"):
        text = os.fsdecode(line[1:]).strip()
        return Warn(text) if kind == b"\x01" else Fatal(text)
    if _DIRECTORY.match(line):
        raise ProtocolError("The peer sends a directory, which was not asked for. It is not to be trusted.")
    raise _not_scp(line)


def _file(line: bytes, limits: Limits) -> File:
    match = _FILE.fullmatch(line)
    size = int(match[2]) if match else 0
    if match is None or size > _MOST_SIZE:
        raise _not_scp(line)
    name = match[3]
    if b"/" in name or name.startswith(b"."):
        raise ProtocolError(
            "The peer sends a file that was not asked for. It is not to be trusted.", path=name[: limits.name_bytes]
        )
    check_name_length(name, limits)
    return File(name, size, int(match[1], 8))


def _times(line: bytes) -> Times:
    match = _TIMES.fullmatch(line)
    if match is None:
        raise _not_scp(line)
    return Times(int(match[1]))


def _not_scp(line: bytes) -> ProtocolError:
    return ProtocolError(
        f"The peer sends {escape(line[:120])!r}, which is not SCP. "
        "A login script that prints text does this: silence it for sessions that are not interactive.",
        reason=Reason.TEXT_BEFORE_PROTOCOL,
    )


def longest_line(limits: Limits) -> int:
    """Return how long a line may be, in bytes: one record, or one warning about a path."""
    return max(limits.name_bytes, limits.path_bytes) + limits.name_bytes + _LINE_OVERHEAD


def blamed(text: str) -> bytes | None:
    """Return the name of the entry that a warning is about, ``scp: DIRECTORY/NAME: why``; None if it names none."""
    path, colon, _ = text.removeprefix("scp: ").rpartition(": ")
    return os.fsencode(path.rpartition("/")[2]) or None if colon else None


def reason_of(text: str, *, writing: bool = False) -> Reason:
    """Return the reason that a peer's *text* stands for; *writing* if it was asked to write."""
    text = text.rstrip(".")
    reason = next((reason for end, reason in _REASONS.items() if text.endswith(end)), Reason.REMOTE_FAILURE)
    return _OF_WRITING.get(reason, reason) if writing else reason


def entry_reason_of(text: str) -> Reason:
    """Return why one entry cannot be staged if that is what the peer says about it."""
    reason = reason_of(text)
    return _OF_ENTRY.get(reason, reason)
