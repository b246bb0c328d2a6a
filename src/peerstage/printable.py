"""Text that a peer, a file or a user supplied, as one printable line."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from typing import Any

#: Control, format (bidirectional overrides), line and paragraph separator, surrogate.
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})


def escape(text: str | bytes | os.PathLike[Any]) -> str:
    """Return *text* as one printable line: control, format (bidi) and separator characters become escapes.

    Bytes are decoded as file names; undecodable ones are shown as ``\\xNN``. Everything that a peer sends is
    escaped before it is displayed or logged, so that it cannot forge log lines or control the terminal.
    """
    if not isinstance(text, str):
        text = os.fsdecode(text)
    if text.isprintable():
        return text
    return "".join(_escape_char(char) for char in text)


def join_first(texts: Sequence[str], count: int) -> str:
    """Return the first *count* of *texts*, and the number of the others: ``a, b and 3 more``."""
    more = f" and {len(texts) - count} more" if len(texts) > count else ""
    return ", ".join(texts[:count]) + more


def describe_exit(status: int | None, printed: str) -> str:
    """Return a clause about how a program ended and what it *printed*.

    *status* is negative after a signal, and None if unknown.
    """
    if status is None:
        how = "was killed, or ended without an exit status"
    else:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"{how} and printed {printed!r}" if printed else how


def _escape_char(char: str) -> str:
    if unicodedata.category(char) not in _ESCAPED_CATEGORIES:
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )
