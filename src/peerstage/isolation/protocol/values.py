"""JSON values: encoding, and checks for the values that an untrusted child sends."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from peerstage.errors import ProtocolError
from peerstage.reasons import Reason

_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


def child_violation(message: str, *, path: bytes | None = None) -> ProtocolError:
    """Return the error for a child process that broke the protocol."""
    return ProtocolError(message, path=path, reason=Reason.CHILD_VIOLATION)


def encode_json(value: object) -> bytes:
    """Return *value* as JSON in ASCII."""
    return json.dumps(value).encode("ascii")


def decode_json(data: bytes) -> Any:
    """Return the value that *data* encodes.

    Raises:
        ProtocolError: If it is not valid JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise child_violation("The child process sent invalid JSON.") from exc


def bytes_to_text(data: bytes) -> str:
    """Return bytes as text for JSON, one character per byte."""
    return data.decode("latin-1")


def text_to_bytes(text: str) -> bytes:
    """Return the bytes that `bytes_to_text` encoded."""
    return text.encode("latin-1")


# Each of these returns the checked value, and raises `ProtocolError` with *what* if it is invalid.


def parse_int(value: Any, what: str, low: int, high: int) -> int:
    """Return *value* if it is an integer from *low* to *high*."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _invalid(what)
    return value


def parse_bool(value: Any, what: str) -> bool:
    """Return *value* if it is true or false."""
    if not isinstance(value, bool):
        raise _invalid(what)
    return value


def parse_text(value: Any, what: str, max_length: int) -> str:
    """Return the first *max_length* characters of *value*."""
    if not isinstance(value, str):
        raise _invalid(what)
    return value[:max_length]


def parse_bytes(value: Any, what: str, max_length: int) -> bytes:
    """Return the first *max_length* of the bytes that `bytes_to_text` encoded."""
    try:
        return text_to_bytes(parse_text(value, what, max_length))
    except UnicodeError as exc:
        raise _invalid(what) from exc


def parse_name(name: bytes) -> bytes:
    """Return *name* if it is the name of a file in a directory."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise child_violation("The child process sent an invalid file name.", path=name)
    return name


def parse_choice(value: Any, what: str, choices: Collection[str]) -> str:
    """Return *value* if it is one of *choices*."""
    if not isinstance(value, str) or value not in choices:
        raise _invalid(what)
    return value


def parse_items(value: Any, max_length: int, *, exactly: bool = False) -> list[Any]:
    """Return *value* if it is a list of at most (or *exactly*) *max_length* items."""
    if not isinstance(value, list) or len(value) > max_length or (exactly and len(value) < max_length):
        raise _invalid("list")
    return value


def parse_fingerprint(value: Any) -> str | None:
    """Return *value* if it is the SHA-256 fingerprint of a host key, or None."""
    if value is not None and not (isinstance(value, str) and _FINGERPRINT.fullmatch(value)):
        raise _invalid("host key fingerprint")
    return value


def _invalid(what: str) -> ProtocolError:
    return child_violation(f"The child process sent an invalid {what}.")
