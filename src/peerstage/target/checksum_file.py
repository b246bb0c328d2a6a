"""The format of sha256sum(1): on each line a digest, two characters, and a file name. Files are untrusted input.

A line begins with a backslash if the name is escaped: a backslash is then written ``\\\\``, a newline ``\\n``, and a
carriage return ``\\r``. coreutils before 9.0 neither writes nor reads ``\\r``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from peerstage.printable import escape
from peerstage.records import MIB

#: Bounds on a file that is read: its bytes, its lines, and the bytes of each with a path of 4096 bytes, all escaped.
#: 64 MiB are more than 120,000 lines with long names take.
MAX_BYTES = 64 * MIB
MAX_LINES = 500_000
MAX_LINE_BYTES = 1 + 64 + 2 + 2 * 4096 + 1

_LINE = re.compile(rb"(\\?)([0-9a-fA-F]{64}) [ *]([^\0]+)\n", re.DOTALL)
_ESCAPED_NAME = re.compile(rb"(?:[^\\]|\\[\\nr])+", re.DOTALL)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_UNESCAPES = {escaped: char for char, escaped in _ESCAPES.items()}


def read_checksums(file: BinaryIO) -> Iterator[tuple[bytes, str]]:
    """Yield each name in *file*, as written there, with its SHA-256 digest in lower-case hexadecimal digits.

    Names are not checked: they may be paths that lead anywhere. Lines that begin with ``#`` are comments, as for
    sha256sum. A line without an end is an error, since the file may have been cut off in its name.

    Args:
        file: A binary file, at its beginning.

    Raises:
        ValueError: If a line has another form, or a bound is exceeded; the message names the line.
        OSError: If the file cannot be read.
    """
    number = size = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        size += len(line)
        if number > MAX_LINES:
            raise ValueError(f"it has more than {MAX_LINES} lines")
        if size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        try:
            if not line.startswith(b"#"):
                yield parse_checksum(line)
            elif not line.endswith(b"\n"):
                raise ValueError("is a comment that has no end or is too long")
        except ValueError as exc:
            raise ValueError(f"line {number} {exc}") from None


def parse_checksum(line: bytes) -> tuple[bytes, str]:
    """Return the name in *line*, which includes its newline, and the digest.

    Raises:
        ValueError: If the line has another form; the message is a predicate of the line.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"is longer than {MAX_LINE_BYTES} bytes")
    found = _LINE.fullmatch(line)
    if found is None:
        if not line.endswith(b"\n"):
            raise ValueError("has no end: the file was cut off")
        raise ValueError(f"is not a SHA-256 digest, two characters and a name: {escape(line[:100].rstrip())!r}")
    is_escaped, digest, name = found.groups()
    if is_escaped:
        if not _ESCAPED_NAME.fullmatch(name):
            raise ValueError("has a backslash that escapes nothing")
        name = re.sub(rb"\\.", lambda escaped: _UNESCAPES[escaped[0]], name)
    elif name.endswith(b"\r"):
        raise ValueError("ends with a carriage return: lines must end with a newline alone")
    return name, digest.decode().lower()


def format_checksum(name: bytes, digest: str) -> bytes:
    """Return the line for *name*, with its newline.

    Raises:
        ValueError: If *digest* is not 64 lower-case hexadecimal digits, or *name* is empty or contains NUL.
    """
    if not _DIGEST.fullmatch(digest) or not name or b"\0" in name:
        raise ValueError(f"Not a name and a SHA-256 digest: {name!r}, {digest!r}")
    escaped = re.sub(rb"[\\\n\r]", lambda char: _ESCAPES[char[0]], name)
    return b"%s%s  %s\n" % (b"\\" if escaped != name else b"", digest.encode(), escaped)
