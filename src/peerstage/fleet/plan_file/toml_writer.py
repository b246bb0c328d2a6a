"""Write keys and values of TOML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def format_entry(key: str, value: Any) -> str:
    """Return ``key = value``; see `format_value`."""
    return f"{format_key(key)} = {format_value(value)}"


def format_key(key: str) -> str:
    """Return *key*, in quotes if it needs them.

    Raises:
        ValueError: If it cannot be written in UTF-8.
    """
    return key if _BARE.fullmatch(key) else _format_string(key)


def format_value(value: Any) -> str:
    """Return a string, number, flag, sequence of values, or mapping in TOML, on one printable line.

    Raises:
        ValueError: If it has another type, or cannot be written in UTF-8.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _format_string(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, Mapping):
        return format_table(value)
    raise ValueError(f"TOML has no form for {value!r}.")


def format_table(table: Mapping[str, Any]) -> str:
    """Return an inline table.

    Raises:
        ValueError: If it holds what cannot be written.
    """
    return f"{{ {', '.join(format_entry(*item) for item in table.items())} }}" if table else "{}"


def _format_string(text: str) -> str:
    return f'"{"".join(map(_escape, text))}"'


def _escape(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    code = ord(char)
    if 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"A plan is UTF-8, which has no form for the byte 0x{code & 0xFF:02x}.")
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
