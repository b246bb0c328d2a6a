"""The commands that run on a peer: those of CedarBackup2, byte for byte unless a path needs quoting."""

from __future__ import annotations

import os
import re

_UNSAFE = re.compile(rb"[^A-Za-z0-9@%+=:,./_-]")


def fetch_file_command(path: bytes) -> bytes:
    """Return the command that sends the file *path*."""
    return b"scp -f " + quote(path)


def fetch_directory_command(directory: bytes, *, preserve_times: bool = False) -> bytes:
    """Return the command that sends every file of *directory* whose name does not begin with a dot."""
    options = b"-p -f " if preserve_times else b"-f "
    return b"scp " + options + quote(directory if directory.endswith(b"/") else directory + b"/") + b"*"


def remove_file_command(path: bytes) -> bytes:
    """Return the command that removes the file *path* if it exists."""
    return b"rm -f -- " + quote(path)


def quote(path: bytes) -> bytes:
    """Return *path* as one word for a POSIX shell, unchanged if it needs no quotes."""
    if not needs_quoting(path):
        return path
    return b"'" + path.replace(b"'", b"'\"'\"'") + b"'"


def require_unquoted(path: bytes) -> None:
    """Raise `ValueError` if *path* needs quotes: a guarded peer compares commands byte for byte."""
    if needs_quoting(path):
        raise ValueError(
            f"guarded=True sends paths unquoted, and this one needs quotes: {os.fsdecode(path)!r}. Choose a path of "
            "letters, digits and @%+=:,./_- only."
        )


def needs_quoting(path: bytes) -> bool:
    """Return whether a shell would not read *path* as one unchanged word."""
    return not path or _UNSAFE.search(path) is not None
