"""Fields of keys, certificates and signatures, as SSH encodes them (RFC 4251, 5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator


class Fields:
    """Reads one field after the other; iterated over, it yields strings to the end.

    Each method raises `ValueError` if the data ends before its field does.

    Attributes:
        at: Where the next field begins.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def string(self) -> bytes:
        """Return a string."""
        length = self.number(">I")
        start, self.at = self.at, self.at + length
        if self.at > len(self._data):
            raise ValueError("it is cut off")
        return self._data[start : self.at]

    def text(self) -> str:
        """Return a string as text."""
        return self.string().decode("utf-8", "backslashreplace")

    def number(self, form: str) -> int:
        """Return a number; *form* is that of `struct`."""
        start, self.at = self.at, self.at + struct.calcsize(form)
        if self.at > len(self._data):
            raise ValueError("it is cut off")
        return int(struct.unpack_from(form, self._data, start)[0])

    def rest(self) -> bytes:
        """Return everything behind the fields that were read."""
        start, self.at = self.at, len(self._data)
        return self._data[start:]

    def __iter__(self) -> Iterator[bytes]:
        while self.at < len(self._data):
            yield self.string()


def string(data: bytes) -> bytes:
    """Return *data* as a string field."""
    return struct.pack(">I", len(data)) + data
