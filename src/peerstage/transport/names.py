"""Names and paths that are exchanged with a peer, and their limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from peerstage.errors import LimitExceeded, ProtocolError
from peerstage.reasons import Reason
from peerstage.records import Limits


class ListedNames:
    """The names in one directory, as a peer lists them: each only once, and a limited number.

    Args:
        directory: The directory, for messages.
        limits: Bounds for their number and size.
        detects_repetition: Whether a repeated name is detected here. Otherwise names are counted and not kept.
    """

    def __init__(self, directory: bytes, limits: Limits, *, detects_repetition: bool = True) -> None:
        self._directory = directory
        self._limits = limits
        self._detects_repetition = detects_repetition
        self._names: set[bytes] = set()
        self._count = 0
        self._bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: bytes) -> None:
        """Add *name*.

        Raises:
            ProtocolError: If the name has been added before.
            LimitExceeded: If there are too many names, or they take too much memory.
        """
        if name in self._names:
            raise ProtocolError("The peer listed this name twice.", path=name)
        if self._detects_repetition:
            self._names.add(name)
        self._count += 1
        self._bytes += len(name) + sys.getsizeof(os.fsdecode(name))  # text may take four times its bytes
        if self._count > self._limits.entries:
            raise _exceeded(f"The directory has more than {self._limits.entries} entries", "entries", self._directory)
        self.check_listing_size(self._bytes)

    def check_listing_size(self, size: int) -> None:
        """Raise `LimitExceeded` if a listing of *size* bytes is too large."""
        if size > self._limits.listing_bytes:
            raise _exceeded(
                f"The listing has more than {self._limits.listing_bytes} bytes", "listing_bytes", self._directory
            )


def is_hidden(name: bytes) -> bool:
    """Return whether *name* begins with a dot. CedarBackup2's ``scp PEER:DIR/*`` never copied such files."""
    return name.startswith(b".")


def check_name_length(name: bytes, limits: Limits) -> None:
    """Raise `LimitExceeded` if a peer's file name is too long."""
    if len(name) > limits.name_bytes:
        raise _exceeded(f"The name has {len(name)} bytes, more than {limits.name_bytes}", "name_bytes", name[:255])


def check_path_length(path: bytes, limits: Limits) -> None:
    """Raise `LimitExceeded` if *path* is too long to be sent."""
    if len(path) > limits.path_bytes:
        raise _exceeded(f"The path has {len(path)} bytes, more than {limits.path_bytes}", "path_bytes", path[:255])


def _exceeded(what: str, limit: str, path: bytes) -> LimitExceeded:
    return LimitExceeded(f"{what} (Limits.{limit}).", path=path, reason=Reason.LIMIT_EXCEEDED, limit=limit)
