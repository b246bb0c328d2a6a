"""From the command line that a site configures to the arguments that are run: no shell has a part in it (PARITY 20)."""

from __future__ import annotations

import os
import re

#: What the original runs where nothing else is configured.
DEFAULT_COMMAND = "/usr/bin/scp -B -q -C"

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
