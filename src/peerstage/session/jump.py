"""ProxyJump: the hops on the way to a peer, and a channel through a hop in the place of a socket."""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

import paramiko

from peerstage.records import MIB

#: Hops on one way at most: a host that jumps through itself must come to an end.
MOST_HOPS = 8
#: Bytes that may lie unread in a channel to a hop; beside the peer's own window they must not fill the memory.
WINDOW = 8 * MIB

_HOP = re.compile(
    r"(?:ssh://)?(?:(?P<user>\S+)@)?(?:\[(?P<address>[^\]\s]+)\]|(?P<host>[^:\s\[\]@/]+))(?::(?P<port>\d{1,5}))?/?"
)


#: What a ProxyCommand or Match exec would hand to a shell as something else than a name; ssh refuses it behind -J.
_UNSAFE = re.compile(r"[\x00-\x20\x7f'`\"$\\;&<>|(){}*?!]")
_UNSAFE_IN_USER = re.compile(r"[\x00-\x20\x7f'`\";&<>|(){}]|\A-|\\\Z")


class Hop(NamedTuple):
    """One host to jump through; None where ssh's configuration decides."""

    host: str
    user: str | None
    port: int | None

    def __str__(self) -> str:
        at = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{at}{host}:{self.port}" if self.port else f"{at}{host}"


def parse_jump(text: str) -> tuple[Hop, ...]:
    """Return the hops of a ProxyJump value, ``[user@]host[:port],...``; none for ``none`` (ssh_config(5)).

    Raises:
        ValueError: It is not such a value; the message is fit to follow a file and a line.
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
            match is None
            or not host
            or host.startswith("-")
            or _UNSAFE.search(host)
            or _UNSAFE_IN_USER.search(user)
            or (port is not None and not 1 <= port <= 65535)
        ):
            raise ValueError(f"the jump {text!r} is not [user@]host[:port], or several with commas between")
        hops.append(Hop(host, user or None, port))
    if len(hops) > MOST_HOPS:
        raise ValueError(f"{len(hops)} hops are more than {MOST_HOPS}")
    return tuple(hops)


class ChannelSocket:
    """A channel to a host beyond a hop, with as much of a socket as a paramiko transport needs."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    @property
    def _closed(self) -> bool:
        """Whether it is closed, by the name under which paramiko asks sockets for that."""
        return self._channel.closed

    def settimeout(self, seconds: float | None) -> None:
        """Bound every `recv_into` and `send`."""
        self._channel.settimeout(seconds)

    def recv_into(self, view: memoryview) -> int:
        """Fill the beginning of *view* with what has come; 0 at the end."""
        data = self._channel.recv(len(view))
        view[: len(data)] = data
        return len(data)

    def send(self, data: bytes) -> int:
        """Send as much of *data* as the hop takes; 0 once it takes nothing more."""
        return self._channel.send(data)

    def shutdown(self, how: int) -> None:
        """End the channel both ways, whatever *how* says: `recv_into` and `send` return."""
        self.close()

    def close(self) -> None:
        """Close the channel. Closing again is allowed, and so it is when its connection is gone."""
        with contextlib.suppress(Exception):  # one that can not be closed in good order goes with its connection
            self._channel.close()
