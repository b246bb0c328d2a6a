"""The names and paths that go to a peer and come from it, and how much of them `Limits` allows."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from peerstage.errors import LimitExceeded, ProtocolError
from peerstage.reasons import Reason
from peerstage.records import Limits


class Names:
    """The names that a peer gives for one directory: each of them once, and not too many.

    Args:
        directory: The directory, for messages.
        limits: How many names, and how much memory for them.
    """

    def __init__(self, directory: bytes, limits: Limits) -> None:
        self._directory = directory
        self._limits = limits
        self._names: set[bytes] = set()
        self._held = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: bytes) -> None:
        """Take note of *name*.

        Raises:
            ProtocolError: It came before.
            LimitExceeded: It is one too many, or all of them take too much memory.
        """
        if name in self._names:
            raise ProtocolError("The peer gives this name twice.", path=name)
        self._names.add(name)
        self._held += len(name) + sys.getsizeof(os.fsdecode(name))  # text may take four times its bytes
        if len(self._names) > self._limits.entries:
            raise LimitExceeded(
                f"More than {self._limits.entries} entries (Limits.entries).",
                path=self._directory,
                reason=Reason.LIMIT_EXCEEDED,
                limit="entries",
            )
        self.require_bytes(self._held)

    def require_bytes(self, count: int) -> None:
        """Refuse a listing of so many bytes if that is too much."""
        if count > self._limits.listing_bytes:
            raise LimitExceeded(
                f"A listing of over {self._limits.listing_bytes} bytes (Limits.listing_bytes).",
                path=self._directory,
                reason=Reason.LIMIT_EXCEEDED,
                limit="listing_bytes",
            )


def check_name_length(name: bytes, limits: Limits) -> None:
    """Refuse a name that is longer than what `Limits` allows."""
    if len(name) > limits.name_bytes:
        raise LimitExceeded(
            f"A name of {len(name)} bytes (Limits.name_bytes).",
            path=name[:255],
            reason=Reason.LIMIT_EXCEEDED,
            limit="name_bytes",
        )


def check_path(path: bytes, limits: Limits) -> None:
    """Refuse a path that is longer than what `Limits` lets us send."""
    if len(path) > limits.path_bytes:
        raise LimitExceeded(
            f"A path of {len(path)} bytes (Limits.path_bytes).",
            path=path[:255],
            reason=Reason.LIMIT_EXCEEDED,
            limit="path_bytes",
        )
