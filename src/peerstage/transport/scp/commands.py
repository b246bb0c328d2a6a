"""The commands that are run on a peer: the original's three, byte for byte where nothing needs quoting (PARITY 22)."""

from __future__ import annotations

import os
import re

_UNSAFE = re.compile(rb"[^A-Za-z0-9@%+=:,./_-]")


def fetch(path: bytes) -> bytes:
    """Return the command that sends the file *path*."""
    return b"scp -f " + quote(path)


def fetch_all(directory: bytes, *, times: bool = False) -> bytes:
    """Return the command that sends every file of *directory* whose name does not begin with a dot.

    Args:
        directory: Its path.
        times: Whether modification times are sent too.
    """
    options = b"-p -f " if times else b"-f "
    return b"scp " + options + quote(directory if directory.endswith(b"/") else directory + b"/") + b"*"


def remove(path: bytes) -> bytes:
    """Return the command that removes the file *path* if it is there."""
    return b"rm -f -- " + quote(path)


def quote(path: bytes) -> bytes:
    """Return *path* as one word of a POSIX shell, globs and all; as it is where that does no harm."""
    if not needs_quoting(path):
        return path
    return b"'" + path.replace(b"'", b"'\"'\"'") + b"'"


def require_plain(path: bytes) -> None:
    """Refuse a path that can not be sent to a guarded peer, which compares commands byte for byte.

    Raises:
        ValueError: It would have to be quoted.
    """
    if needs_quoting(path):
        raise ValueError(f"guarded=True sends paths unquoted, and this one needs quotes: {os.fsdecode(path)!r}")


def needs_quoting(path: bytes) -> bool:
    """Whether a shell would take *path* for something else than one word."""
    return not path or _UNSAFE.search(path) is not None
