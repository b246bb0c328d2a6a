"""The command lines of rcp-like commands, split and built without a shell, and what these commands print."""

from __future__ import annotations

import os
import re

#: CedarBackup2's default.
DEFAULT_COMMAND = "/usr/bin/scp -B -q -C"

#: What scp, rcp and rsync print about a file that is missing or not regular.
_MISSING = (b"No such file or directory", b"not a regular file")
_ESCAPED_BYTE = re.compile(rb"\\#?([0-3][0-7]{2})|\\\\")
_FIELD = re.compile(r'"([^"]+)"|([^ "]+)')


def split_command_line(line: str) -> list[str]:
    """Return the words of *line* as CedarBackup2 splits it: at spaces, except within double quotes.

    A quoted part is a word of its own even if it touches another one; ``""`` is not a word.

    Raises:
        ValueError: If a quote is not closed.
    """
    if line.count('"') % 2:
        raise ValueError(f"A double quote is not closed in this command: {line!r}")
    return [quoted or plain for quoted, plain in _FIELD.findall(line)]


def remote_operand(user: str, host: str, path: bytes) -> str:
    """Return ``user@host:path`` as rcp-like commands parse it; an IPv6 address stands in brackets."""
    return f"{user}@{f'[{host}]' if ':' in host else host}:{os.fsdecode(path)}"


def escape_blanks(path: bytes) -> bytes:
    """Return *path* with a backslash before each space, for the peer's shell, as CedarBackup2 sends it."""
    return path.replace(b" ", b"\\ ")


def reports_missing(output: bytes, path: bytes) -> bool:
    """Return whether a line of *output* reports that *path* is missing or not a regular file.

    The line must name *path*: ssh prints "No such file or directory" about its own key files, too.
    """
    names_path = re.compile(rb"(?<![^\s\"':])" + re.escape(path) + rb"/?(?=[\"':\s])")
    lines = unescape_output(output).splitlines()
    return any(names_path.search(line) and any(text in line for text in _MISSING) for line in lines)


def unescape_output(output: bytes) -> bytes:
    """Return *output* with the bytes decoded that scp (``\\303``, ``\\\\``) and rsync (``\\#303``) escape."""
    return _ESCAPED_BYTE.sub(lambda match: bytes([int(match[1], 8)]) if match[1] else b"\\", output)
