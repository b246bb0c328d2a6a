"""What stands on the command line as text: peers, modes, owners."""

from __future__ import annotations

import re
from typing import NamedTuple

from peerstage.errors import escape
from peerstage.records import Ownership

#: A user holds no colon and no slash, a host neither bracket nor colon: so the first colon outside of brackets ends
#: the host, and everything behind it is the directory.
_SPEC = re.compile(r"(?P<user>[^:/]+)@(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^@:/\[\]]+):(?P<directory>.+)", re.DOTALL)


class Spec(NamedTuple):
    """A peer as the command line names it: ``USER@HOST:DIR``."""

    user: str
    host: str
    directory: str

    @property
    def place(self) -> str:
        """Host and directory as one printable line."""
        return escape(f"{self.host}:{self.directory}")


def parse_spec(text: str) -> Spec:
    """Return the peer that *text* names.

    Raises:
        ValueError: It is not ``USER@HOST:DIR``.
    """
    found = _SPEC.fullmatch(text)
    if found is None:
        raise ValueError(f"A peer is USER@HOST:DIR, with an IPv6 address in brackets: {escape(text)!r}")
    return Spec(found["user"], found["host"], found["directory"])


def parse_permissions(text: str | None) -> int | None:
    """Return the file mode that *text* holds in octal digits, as chmod(1) takes it; None passes.

    Raises:
        ValueError: It is no mode.
    """
    if text is None:
        return None
    if not re.fullmatch(r"(?:0o)?[0-7]{1,5}", text) or int(text, 8) > 0o7777:
        raise ValueError(f"--permissions is an octal mode such as 640: {escape(text)!r}")
    return int(text, 8)


def parse_owner(text: str | None) -> Ownership | None:
    """Return the numeric owner and group that *text* holds as ``UID:GID``; -1 leaves one as it is; None passes.

    Raises:
        ValueError: It is no such pair.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(-1|\d{1,10}):(-1|\d{1,10})", text, re.ASCII)
    if found is None:
        raise ValueError(f"--owner is UID:GID, two numbers: {escape(text)!r}")
    return Ownership(int(found[1]), int(found[2]))
