"""From the command line that a site configures to the arguments that are run: no shell has a part in it (PARITY 20)."""

from __future__ import annotations

import os
import re

#: What the original runs where nothing else is configured.
DEFAULT_COMMAND = "/usr/bin/scp -B -q -C"

#: What scp, rcp and rsync say of a file that is not there, or is no file.
_NOT_THERE = (b"No such file or directory", b"not a regular file")
_SHOWN = re.compile(rb"\\#?([0-3][0-7]{2})|\\\\")
_FIELD = re.compile(r'"([^"]+)"|([^ "]+)')


def split_command_line(line: str) -> list[str]:
    """Return the words of *line* as the original splits it: at spaces, and double quotes alone hold words together.

    A quoted part is a word of its own even where it touches another; ``""`` is none.

    Raises:
        ValueError: A quote is not closed.
    """
    if line.count('"') % 2:
        raise ValueError(f"A double quote is not closed in this command: {line!r}")
    return [quoted or plain for quoted, plain in _FIELD.findall(line)]


def place_on(user: str, host: str, path: bytes) -> str:
    """Return ``user@host:path`` as rcp-like commands read it; an IPv6 address stands in brackets."""
    return f"{user}@{f'[{host}]' if ':' in host else host}:{os.fsdecode(path)}"


def escape_blanks(path: bytes) -> bytes:
    """Return *path* with a backslash before each blank, for the peer's shell, as the original sends it."""
    return path.replace(b" ", b"\\ ")


def says_not_there(output: bytes, path: bytes) -> bool:
    """Return whether a line of *output* says that *path* is missing or no regular file.

    A line about anything else is no such answer: ssh says "No such file or directory" of its own key files, too.
    """
    named = re.compile(rb"(?<![^\s\"':])" + re.escape(path) + rb"/?(?=[\"':\s])")
    lines = unescape(output).splitlines()
    return any(named.search(line) and any(words in line for words in _NOT_THERE) for line in lines)


def unescape(output: bytes) -> bytes:
    """Return *output* with the bytes that scp (``\\303``, ``\\\\``) and rsync (``\\#303``) show escaped."""
    return _SHOWN.sub(lambda match: bytes([int(match[1], 8)]) if match[1] else b"\\", output)
