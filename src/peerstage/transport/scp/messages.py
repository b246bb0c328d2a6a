"""The messages of the SCP protocol: pure and strict parsers.

No standard describes the protocol. These are the messages that rcp and OpenSSH's ``scp -f`` send for a list of files;
all others are rejected. Each is one line::

    C0644 1234 name        a file: mode, size, name; 1234 bytes of data and a status follow
    T1700000000 0 1700000000 0     modification and access time (seconds, microseconds) of the next file
    \\x01scp: name: why      a warning: this file is not sent
    \\x02why                 a fatal error: nothing more is sent

A single ``\\x00`` is the status of a file that was sent completely; a warning or a fatal error can stand in its place.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple, TypeAlias

from peerstage.errors import ProtocolError
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.transport.names import check_name_length, is_hidden

NO_SUCH_FILE = "No such file or directory"
#: How scp refuses anything but a regular file, and how ProFTPD's mod_sftp does.
NOT_REGULAR = ("not a regular file", "Operation not permitted")
#: The ends of error texts: scp's own, and those of strerror(3).
_REASONS = {
    NO_SUCH_FILE: Reason.NOT_FOUND,
    **dict.fromkeys(NOT_REGULAR, Reason.NOT_A_FILE),
    "Permission denied": Reason.PERMISSION_DENIED,
    "No space left on device": Reason.REMOTE_NO_SPACE,
    "Disk quota exceeded": Reason.REMOTE_NO_SPACE,
    "Not a directory": Reason.NOT_A_DIRECTORY,
}

#: Advice for text in the place of a message.
SILENCE_LOGIN_SCRIPT = "A login script that prints text does this: make it silent in non-interactive sessions."
#: The bytes of a message besides names and paths.
_MESSAGE_OVERHEAD = 64
_MAX_FILE_SIZE = (1 << 63) - 1
_FILE = re.compile(rb"C([0-7]{4}) (0|[1-9][0-9]{0,18}) ([^\0]+)", re.DOTALL)
_TIMES = re.compile(rb"T(0|[1-9][0-9]{0,11}) [0-9]{1,6} (0|[1-9][0-9]{0,11}) [0-9]{1,6}")
_DIRECTORY = re.compile(rb"D[0-7]{4} |E$")


class FileMessage(NamedTuple):
    """A file follows: its name, its size in bytes, its permission bits."""

    name: bytes
    size: int
    mode: int


class TimesMessage(NamedTuple):
    """The modification time of the next file, in seconds since the epoch."""

    mtime: int


class WarningMessage(NamedTuple):
    """One file is not sent, or not completely."""

    text: str


class FatalMessage(NamedTuple):
    """Nothing more is sent."""

    text: str


Message: TypeAlias = "FileMessage | TimesMessage | WarningMessage | FatalMessage"


def parse_message(line: bytes, limits: Limits) -> Message:
    """Parse a message without its newline.

    Raises:
        ProtocolError: If it is malformed, or announces something that was not requested, such as a directory.
        LimitExceeded: If a name is too long.
    """
    kind = line[:1]
    if kind in (b"\x01", b"\x02"):
        text = os.fsdecode(line[1:]).strip()
        return WarningMessage(text) if kind == b"\x01" else FatalMessage(text)
    if match := _TIMES.fullmatch(line):
        return TimesMessage(int(match[1]))
    match = _FILE.fullmatch(line)
    if match is not None and int(match[2]) <= _MAX_FILE_SIZE:
        return _file_message(match[3], int(match[2]), int(match[1], 8), limits)
    if _DIRECTORY.match(line):
        raise ProtocolError("The peer sent a directory, which was not requested. Its scp is faulty or compromised.")
    raise ProtocolError(
        f"The peer sent {escape(line[:120])!r}, which is not SCP. {SILENCE_LOGIN_SCRIPT}",
        reason=Reason.TEXT_BEFORE_PROTOCOL,
    )


def _file_message(name: bytes, size: int, mode: int, limits: Limits) -> FileMessage:
    if b"/" in name or is_hidden(name):
        raise ProtocolError(
            "The peer sent a file that was not requested. Its scp is faulty or compromised.",
            path=name[: limits.name_bytes],
        )
    check_name_length(name, limits)
    return FileMessage(name, size, mode)


def max_message_bytes(limits: Limits) -> int:
    """Return the length of the longest message to accept: a file message, or a warning about a path."""
    return max(limits.name_bytes, limits.path_bytes) + limits.name_bytes + _MESSAGE_OVERHEAD


def entry_in_warning(text: str) -> bytes | None:
    """Return the name that a warning ``scp: DIRECTORY/NAME: why`` is about; None if it names none."""
    path, colon, _ = text.removeprefix("scp: ").rpartition(": ")
    return os.fsencode(path.rpartition("/")[2]) or None if colon else None


def reason_in_text(text: str, *, is_write: bool = False) -> Reason:
    """Return the reason in the error *text* of a peer that was asked to read, or to write a file."""
    text = text.rstrip(".")
    reason = next((reason for end, reason in _REASONS.items() if text.endswith(end)), Reason.REMOTE_FAILURE)
    return Reason.WRITE_DENIED if is_write and reason is Reason.PERMISSION_DENIED else reason
