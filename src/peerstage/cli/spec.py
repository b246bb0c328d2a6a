"""What stands on the command line as text: peers, modes, owners."""

from __future__ import annotations

import re
from typing import NamedTuple

from peerstage.errors import escape
from peerstage.peer.attributes import peer_name, user_name
from peerstage.records import Ownership

#: A user holds no colon and no slash, a host neither bracket nor colon: so the first colon outside of brackets ends
#: the host, and everything behind it is the directory.
_SPEC = re.compile(r"(?P<user>[^:/]+)@(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^@:/\[\]]+):(?P<directory>.+)", re.DOTALL)


#: A host alone; only in brackets it may have a port behind it.
_HOST = re.compile(r"(?:(?P<user>[^:/]+)@)?(?:\[(?P<inner>[^\[\]@]+)\](?::(?P<port>\d{1,5}))?|(?P<host>[^@/\[\]]+))")


class Host(NamedTuple):
    """A host as the command line names it: ``[USER@]HOST`` or ``[USER@][HOST]:PORT``; None is for ssh's configuration.

    The user only decides what ssh's configuration says: which way leads to the host.
    """

    user: str | None
    host: str
    port: int | None

    def __str__(self) -> str:
        return self.host if self.port is None else f"[{self.host}]:{self.port}"


class Spec(NamedTuple):
    """A peer as the command line names it: ``USER@HOST:DIR``."""

    user: str
    host: str
    directory: str

    def __str__(self) -> str:
        return self.host

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


def parse_host(text: str) -> Host:
    """Return the host that *text* names.

    Raises:
        ValueError: It is neither ``[USER@]HOST`` nor ``[USER@][HOST]:PORT``.
    """
    found = _HOST.fullmatch(text)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 1 <= port <= 65535):
        raise ValueError(f"A host is [USER@]HOST, or with a port [USER@][HOST]:PORT: {escape(text)!r}")
    user = None if found["user"] is None else user_name(found["user"])
    return Host(user, peer_name(found["inner"] or found["host"]), port)


def parse_permissions(text: str | None) -> int | None:
    """Return the file mode that *text* holds in octal digits, as chmod(1) takes it; None passes.

    Raises:
        ValueError: It is no mode.
    """
    if text is None:
        return None
    if not re.fullmatch(r"(?:0o)?[0-7]{1,5}", text) or int(text, 8) > 0o777:
        raise ValueError(f"--permissions is an octal mode such as 640, 777 at most: {escape(text)!r}")
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
