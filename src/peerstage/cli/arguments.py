"""Parse command-line arguments: peers, hosts, file modes, owners."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from peerstage.ownership import parse_mode, parse_owner
from peerstage.peer.attributes import validate_peer_name, validate_user_name
from peerstage.printable import escape
from peerstage.records import Ownership

#: A login name may hold ``@``, but no colon and no slash; a host holds a colon only in brackets.
_PEER = re.compile(
    r"(?:(?P<user>[^:/]+)@)?(?:\[(?P<bracketed>[^\[\]@]+)\]|(?P<host>[^@:/\[\]]+))(?::(?P<rest>.*))?", re.DOTALL
)
_HOST_FORMS = "[USER@]HOST[:PORT], with an IPv6 address in brackets"


class PeerSpec(NamedTuple):
    """A peer or host as it was typed: ``USER@HOST:DIR`` or ``[USER@]HOST[:PORT]``.

    Attributes:
        user: Who logs in; None leaves it to ssh's configuration.
        host: A host name, an alias of ssh_config(5) or an address, without brackets.
        port: The TCP port; None leaves it to ``--port`` and ssh's configuration.
        directory: The collect directory; None if none was typed.
        label: The peer's name in the plan; "" if it was typed in another way.
    """

    user: str | None
    host: str
    port: int | None = None
    directory: str | None = None
    label: str = ""

    def __str__(self) -> str:
        """Return the name in the plan; else ``HOST``, or ``[HOST]:PORT`` if a port was typed."""
        return self.label or self.address

    @property
    def address(self) -> str:
        """``HOST``, or ``[HOST]:PORT`` if a port was typed."""
        return self.host if self.port is None else f"[{self.host}]:{self.port}"

    @property
    def name(self) -> str:
        """The host, with an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def location(self) -> str:
        """The name in the plan, or host and directory, as one printable line."""
        if self.label:
            return escape(self.label)
        return escape(str(self) if self.directory is None else f"{self.name}:{self.directory}")


def parse_peer(text: str) -> PeerSpec:
    """Return the peer in ``USER@HOST:DIR``.

    Raises:
        ValueError: If *text* has another form.
    """
    spec = parse_host_or_peer(text)
    if spec.user is None or spec.directory is None:
        missing = "user" if spec.user is None else "absolute directory"
        raise ValueError(f"A peer is USER@HOST:DIR, and this names no {missing}: {escape(text)!r}")
    return spec


def parse_host(text: str) -> PeerSpec:
    """Return the host in ``[USER@]HOST[:PORT]``.

    Raises:
        ValueError: If *text* has another form.
    """
    spec = parse_host_or_peer(text)
    if spec.directory is not None:
        raise ValueError(f"A host is {_HOST_FORMS}; leave out the directory: {escape(text)!r}")
    return spec


def parse_host_or_peer(text: str) -> PeerSpec:
    """Return the host in ``[USER@]HOST[:PORT]``, or the peer in ``USER@HOST:DIR``.

    Raises:
        ValueError: If *text* has another form, or could mean two things.
    """
    host = text.partition("/")[0].rpartition("@")[2].removesuffix(":")
    if _is_ipv6(host):  # `fe80::1:22` may or may not end in a port
        raise ValueError(f"Write the IPv6 address in brackets, [{host}] or [{host}]:PORT: {escape(text)!r}")
    found = _PEER.fullmatch(text)
    if found is None:
        raise ValueError(f"A peer is USER@HOST:DIR, a host {_HOST_FORMS}: {escape(text)!r}")
    user = None if found["user"] is None else validate_user_name(found["user"])
    host, rest = validate_peer_name(found["bracketed"] or found["host"]), found["rest"]
    if rest is None:
        return PeerSpec(user, host)
    if rest.startswith("/"):
        if user is None:
            raise ValueError(f"A directory needs a user: write USER@{escape(text)}.")
        return PeerSpec(user, host, directory=rest)
    if not re.fullmatch(r"\d+", rest, re.ASCII):
        raise ValueError(f"After the colon comes a port, or a directory that begins with a slash: {escape(text)!r}")
    if len(rest) > 5 or not 1 <= int(rest) <= 65535:
        raise ValueError(f"A port is a number from 1 to 65535: {escape(text)!r}")
    return PeerSpec(user, host, int(rest))


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def parse_permissions(text: str | None) -> int | None:
    """Return the value of ``--permissions``, or None; see `parse_mode`."""
    try:
        return None if text is None else parse_mode(text)
    except ValueError as exc:
        raise ValueError(f"--permissions is {exc}") from None


def parse_owner_option(text: str | None) -> Ownership | None:
    """Return the value of ``--owner``, or None; see `parse_owner`."""
    try:
        return None if text is None else parse_owner(text)
    except ValueError as exc:
        raise ValueError(f"--owner is {exc}") from None
