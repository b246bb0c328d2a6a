"""The record at the end of a kept file: whose file it is, and which of its bytes have arrived.

Data and record are one file, so that one fsync(2) covers both, and one rename(2) gives it to another run::

    the file, with holes   magic (16)   binding (32)   ranges (16 each)   number of ranges (4)   SHA-256 (32)

The SHA-256 covers the rest of the record, and detects one that was written only in part.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Collection

from peerstage.records import Entry
from peerstage.target.ranges import Ranges

#: Ranges in one record; further ones are left out, the shortest first, and fetched again.
MAX_RANGES = 64

_MAGIC = b"peerstage kept 1"
_RANGE = struct.Struct(">QQ")
_COUNT = struct.Struct(">I")
_DIGEST_BYTES = 32
_HEAD_BYTES = len(_MAGIC) + _DIGEST_BYTES


def hash_fields(*fields: bytes) -> str:
    """Return a hash of *fields* in hexadecimal, which differs if any of them does."""
    digest = hashlib.sha256()
    for field in fields:
        digest.update(b"%d:" % len(field) + field)
    return digest.hexdigest()


def encode_record(binding: str, ranges: Collection[tuple[int, int]]) -> bytes:
    """Return the record of a kept file.

    Args:
        binding: What the file is bound to, from `hash_fields`.
        ranges: The bytes that have arrived, as (start, end): disjoint, ascending, no more than `MAX_RANGES`.
    """
    packed = b"".join(_RANGE.pack(start, end) for start, end in ranges)
    body = _MAGIC + bytes.fromhex(binding) + packed + _COUNT.pack(len(ranges))
    return body + hashlib.sha256(body).digest()


def read_record(fd: int, entry: Entry, binding: str) -> Ranges | None:
    """Return the bytes that a kept file holds; None if it does not end with a valid record of *entry*.

    Args:
        fd: The kept file.
        entry: The file as the peer lists it.
        binding: What it must be bound to.

    Raises:
        OSError: If it cannot be read.
    """
    length = os.fstat(fd).st_size - entry.size
    tail = _COUNT.size + _DIGEST_BYTES
    if not _HEAD_BYTES + tail < length <= _HEAD_BYTES + tail + MAX_RANGES * _RANGE.size:
        return None
    record = os.pread(fd, length, entry.size)
    body, digest = record[:-_DIGEST_BYTES], record[-_DIGEST_BYTES:]
    packed = body[_HEAD_BYTES : -_COUNT.size]
    if (
        len(record) != length
        or body[:_HEAD_BYTES] != _MAGIC + bytes.fromhex(binding)
        or hashlib.sha256(body).digest() != digest
        or body[-_COUNT.size :] != _COUNT.pack(len(packed) // _RANGE.size)
        or len(packed) % _RANGE.size
    ):
        return None
    ranges = Ranges()
    position = -1
    for start, end in _RANGE.iter_unpack(packed):
        if not position < start < end <= entry.size:
            return None
        ranges.add(start, end)
        position = end
    return ranges
