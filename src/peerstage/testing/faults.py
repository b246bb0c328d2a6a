"""Faults of an embedded server, as data."""

from __future__ import annotations

import os
from dataclasses import dataclass

from peerstage.documented import Documented
from peerstage.records import StrOrBytesPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults(metaclass=Documented):
    """The faults of an `ssh_server`.

    Attributes:
        refuse_login: Whether every login is refused.
        cut_after: Bytes that the server sends on a connection, including those of SSH itself, before it closes it; 0
            closes it before the server identifies itself.
        stall_after: Bytes that it sends likewise before it falls silent and keeps the connection open.
        bytes_per_second: The rate at which it sends.
        deny: Absolute paths, as clients see them, that cannot be read, written or listed, nor anything below them.
        no_space: Whether writes fail as on a full disk.
        faulty_connections: How many connections, counted from the first, have these faults; None for all.

    Raises:
        ValueError: If a number is out of range, `cut_after` and `stall_after` are both given, or a path is relative.
    """

    refuse_login: bool = False
    cut_after: int | None = None
    stall_after: int | None = None
    bytes_per_second: int | None = None
    deny: tuple[StrOrBytesPath, ...] = ()
    no_space: bool = False
    faulty_connections: int | None = None

    def __post_init__(self) -> None:
        for name, lowest in (("cut_after", 0), ("stall_after", 0), ("bytes_per_second", 1), ("faulty_connections", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < lowest):
                raise ValueError(f"Faults: {name} must be an integer of at least {lowest}, not {value!r}.")
        if self.cut_after is not None and self.stall_after is not None:
            raise ValueError("Faults: cut_after and stall_after exclude each other.")
        if isinstance(self.deny, (str, bytes, os.PathLike)):
            raise ValueError(f"Faults: deny must be a tuple of paths, not {self.deny!r}.")
        for path in self.deny:
            if not os.fsencode(path).startswith(b"/"):
                raise ValueError(f"Faults: deny must hold absolute paths, not {path!r}.")

    @property
    def affect_traffic(self) -> bool:
        """Whether the data that the server sends is cut off, held up or slowed down."""
        return not (self.cut_after is self.stall_after is self.bytes_per_second is None)

    def apply_to(self, connection: int) -> bool:
        """Return whether the connection with this number, from 0, has the faults."""
        return self.faulty_connections is None or connection < self.faulty_connections
