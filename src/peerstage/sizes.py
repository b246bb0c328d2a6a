"""Sizes in bytes, as people write them: with a suffix for a power of 1024."""

from __future__ import annotations

import re

_SIZE = re.compile(r"([0-9]{1,18})([KMGT]?)", re.ASCII)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Return the number of bytes in *text*: digits, and K, M, G or T for a power of 1024, as rsync's --max-size has it.

    Raises:
        ValueError: If *text* has another form.
    """
    match = _SIZE.fullmatch(text.upper())
    if match is None:
        raise ValueError(f"a number of bytes, or one with K, M, G or T: {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def format_size_exactly(size: int) -> str:
    """Return *size* as `parse_size` reads it, with the largest suffix that keeps it exact."""
    suffix = next((unit for unit in "TGMK" if size and size % _UNITS[unit] == 0), "")
    return f"{size // _UNITS[suffix]}{suffix}"
