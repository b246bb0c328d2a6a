"""SSH's data types (RFC 4251, section 5): a reader that checks every length, and packing of strings and integers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

_uint32 = struct.Struct(">I")
_uint64 = struct.Struct(">Q")
_TRUNCATED = "it ends within a field"


class MalformedData(ValueError):
    """Data that ends within a field, or has bytes after the last one."""


class DataReader:
    """Reads one field after another and never past the end; iterating yields the strings up to the end.

    Every method raises `MalformedData` if the data ends within the field.

    Attributes:
        position: The offset of the next field.
    """

    __slots__ = ("_data", "_end", "position")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = data
        self._end = len(data)
        self.position = 0

    @property
    def remaining(self) -> int:
        """The number of bytes not read yet."""
        return self._end - self.position

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Return several fields of fixed sizes."""
        start = self.position
        self.position = start + layout.size
        if self.position > self._end:
            raise MalformedData(_TRUNCATED)
        return layout.unpack_from(self._data, start)

    def read_uint32(self) -> int:
        """Return a uint32."""
        value: int = self.unpack(_uint32)[0]
        return value

    def read_uint64(self) -> int:
        """Return a uint64."""
        value: int = self.unpack(_uint64)[0]
        return value

    def read_string(self) -> bytes:
        """Return a string."""
        start = self.position + 4  # inlined: an SFTP listing holds thousands of strings
        if start > self._end:
            raise MalformedData(_TRUNCATED)
        end = start + _uint32.unpack_from(self._data, start - 4)[0]
        if end > self._end:
            raise MalformedData(_TRUNCATED)
        self.position = end
        return bytes(self._data[start:end])

    def read_text(self) -> str:
        """Return a string as text; bytes that are not UTF-8 become escapes."""
        return self.read_string().decode("utf-8", "backslashreplace")

    def read_mpint(self) -> int:
        """Return an mpint."""
        return int.from_bytes(self.read_string(), "big", signed=True)

    def read_remaining(self) -> bytes:
        """Return the bytes not read yet."""
        return bytes(self._data[self.skip(self.remaining) :])

    def skip(self, length: int) -> int:
        """Skip *length* bytes, and return the offset at which they begin."""
        start = self.position
        if length > self._end - start:
            raise MalformedData(_TRUNCATED)
        self.position = start + length
        return start

    def skip_string(self) -> None:
        """Skip a string."""
        self.skip(self.read_uint32())

    def expect_end(self) -> None:
        """Raise `MalformedData` if there are bytes that were not read."""
        if self.position != self._end:
            raise MalformedData(f"{self.remaining} bytes follow the last field")

    def __iter__(self) -> Iterator[bytes]:
        while self.position < self._end:
            yield self.read_string()


def pack_uint32(value: int) -> bytes:
    """Return *value* as a uint32."""
    return _uint32.pack(value)


def pack_string(value: bytes | bytearray | memoryview) -> bytes:
    """Return *value* as a string: its length, and its bytes."""
    return _uint32.pack(len(value)) + value
