"""What may go wrong with an embedded server, as data."""

from __future__ import annotations

import os
from dataclasses import dataclass

from peerstage.documented import Documented
from peerstage.records import StrOrBytesPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults(metaclass=Documented):
    """What an `ssh_server` does wrong.

    Attributes:
        refuse_login: Whether nobody can log in.
        cut_after: Bytes that the server sends on a connection, those of SSH itself included, before it closes it; 0
            closes it before the server identifies itself.
        stall_after: Bytes that it sends likewise before it falls silent, with the connection open.
        bytes_per_second: How fast it sends.
        deny: Absolute paths, as clients see them, that may be neither read nor written nor listed, with all below.
        no_space: Whether nothing can be written, as on a full disk.
        connections: How many connections, the first ones, have these faults; None for all.

    Raises:
        ValueError: If a number is out of range, if both `cut_after` and `stall_after` are given, or if a path is not
            absolute.
    """

    refuse_login: bool = False
    cut_after: int | None = None
    stall_after: int | None = None
    bytes_per_second: int | None = None
    deny: tuple[StrOrBytesPath, ...] = ()
    no_space: bool = False
    connections: int | None = None

    def __post_init__(self) -> None:
        for name, lowest in (("cut_after", 0), ("stall_after", 0), ("bytes_per_second", 1), ("connections", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < lowest):
                raise ValueError(f"Faults: {name} must be an integer from {lowest} on, not {value!r}.")
        if self.cut_after is not None and self.stall_after is not None:
            raise ValueError("Faults: cut_after and stall_after exclude each other.")
        if isinstance(self.deny, (str, bytes, os.PathLike)):
            raise ValueError(f"Faults: deny must be a tuple of paths, not {self.deny!r}.")
        for path in self.deny:
            if not os.fsencode(path).startswith(b"/"):
                raise ValueError(f"Faults: deny must hold absolute paths, not {path!r}.")

    @property
    def disturb_the_line(self) -> bool:
        """Whether what the server sends is cut, held up or slowed down."""
        return not (self.cut_after is self.stall_after is self.bytes_per_second is None)

    def are_of(self, connection: int) -> bool:
        """Return whether a connection, counted from 0, has them."""
        return self.connections is None or connection < self.connections
