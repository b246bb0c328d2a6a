"""Parse ProxyJump of ssh_config(5): the jump hosts in front of a peer."""

from __future__ import annotations

import re
from typing import NamedTuple

#: Most jump hosts in a row; it ends the recursion of a host that jumps through itself.
MAX_HOPS = 8

_HOP = re.compile(
    r"(?:ssh://)?(?:(?P<user>\S+)@)?(?:\[(?P<address>[^\]\s]+)\]|(?P<host>[^:\s\[\]@/]+))(?::(?P<port>\d{1,5}))?/?"
)
#: Characters that a shell would interpret if a ProxyCommand or Match exec passes the name on; ssh rejects them, too.
_UNSAFE = re.compile(r"[\x00-\x20\x7f'`\"$\\;&<>|(){}*?!]")
_UNSAFE_IN_USER = re.compile(r"[\x00-\x20\x7f'`\";&<>|(){}]|\A-|\\\Z")


class Hop(NamedTuple):
    """A jump host; user and port are None where ssh's configuration decides."""

    host: str
    user: str | None
    port: int | None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{user}{host}:{self.port}" if self.port else f"{user}{host}"


def parse_jump(text: str) -> tuple[Hop, ...]:
    """Return the jump hosts of a ProxyJump argument, ``[user@]host[:port],...``; none for ``none``.

    Raises:
        ValueError: If it is invalid.
    """
    if text.lower() == "none":
        return ()
    hops = []
    for word in text.split(","):
        match = _HOP.fullmatch(word)
        host = match and (match["address"] or match["host"])
        port = int(match["port"]) if match and match["port"] else None
        user = (match and match["user"]) or ""
        if (
            not host
            or host.startswith("-")
            or _UNSAFE.search(host)
            or _UNSAFE_IN_USER.search(user)
            or (port is not None and not 1 <= port <= 65535)
        ):
            raise ValueError(f"{text!r} is not a list of jump hosts [user@]host[:port] with commas between them")
        hops.append(Hop(host, user or None, port))
    if len(hops) > MAX_HOPS:
        raise ValueError(f"{len(hops)} jump hosts are more than {MAX_HOPS}")
    return tuple(hops)
