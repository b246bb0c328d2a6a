"""Files of a listing in the body of a frame: encoder, and strict parser for untrusted input.

Each is its size (8), permission bits (4) and modification time (8), both -1 if unknown, the length of its name (4), and
the name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from peerstage.isolation.protocol.values import child_violation, parse_name
from peerstage.records import KIB, Entry
from peerstage.transport.names import is_hidden

#: Files in one frame, and bytes from which on the child begins another.
MAX_ENTRIES = 1024
_MAX_BYTES = 128 * KIB

MAX_SIZE = 2**63 - 1
_MAX_MTIME = 2**40
_ENTRY = struct.Struct(">QiqI")
_UNKNOWN = -1


def split_entries(entries: Sequence[Entry]) -> Iterator[tuple[Entry, ...]]:
    """Split *entries* into parts for one frame each."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        entry_size = _ENTRY.size + len(entry.name)
        size += entry_size
        if part and (len(part) == MAX_ENTRIES or size > _MAX_BYTES):
            yield tuple(part)
            part, size = [], entry_size
        part.append(entry)
    if part:
        yield tuple(part)


def encode_entries(entries: Sequence[Entry]) -> bytes:
    """Return *entries* as bytes."""
    return b"".join(map(_encode_entry, entries))


def _encode_entry(entry: Entry) -> bytes:
    mode = _UNKNOWN if entry.mode is None else entry.mode
    mtime = _UNKNOWN if entry.mtime is None else entry.mtime
    return _ENTRY.pack(entry.size, mode, mtime, len(entry.name)) + entry.name


def decode_entries(data: bytes, start: int) -> tuple[Entry, ...]:
    """Return the files that *data* encodes from *start* on.

    Raises:
        ProtocolError: If they are not from 1 to `MAX_ENTRIES` valid ones.
    """
    entries: list[Entry] = []
    at = start
    while at < len(data):
        name_at = at + _ENTRY.size
        if name_at > len(data) or len(entries) == MAX_ENTRIES:
            break
        size, mode, mtime, length = _ENTRY.unpack_from(data, at)
        at = name_at + length
        entries.append(_create_entry(data[name_at:at], size, mode, mtime))
    if not entries or at != len(data):
        raise child_violation("The child process sent an invalid list of files.")
    return tuple(entries)


def _create_entry(name: bytes, size: int, mode: int, mtime: int) -> Entry:
    parse_name(name)
    if size > MAX_SIZE or not _UNKNOWN <= mode <= 0o7777 or not _UNKNOWN <= mtime <= _MAX_MTIME:
        raise child_violation("The child process sent a file with an invalid size, mode or time.", path=name)
    if is_hidden(name):
        raise child_violation("The child process sent a dotfile, which was not requested.", path=name)
    return Entry(name, size, None if mode == _UNKNOWN else mode, None if mtime == _UNKNOWN else mtime)
