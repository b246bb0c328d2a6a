"""Parse command-line arguments: peers, hosts, file modes, owners."""

from __future__ import annotations

import ipaddress
import re
import sys
from typing import NamedTuple

from peerstage.peer.attributes import validate_peer_name, validate_user_name
from peerstage.printable import escape
from peerstage.records import Ownership
from peerstage.system_errors import require_free_descriptor

if sys.platform != "win32":
    import grp
    import pwd

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
    """

    user: str | None
    host: str
    port: int | None = None
    directory: str | None = None

    def __str__(self) -> str:
        """Return ``HOST``, or ``[HOST]:PORT`` if a port was typed."""
        return self.host if self.port is None else f"[{self.host}]:{self.port}"

    @property
    def name(self) -> str:
        """The host, with an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def location(self) -> str:
        """Host and directory as one printable line."""
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
    """Return the file mode in the octal digits of *text*, as chmod(1) takes it, or None.

    Raises:
        ValueError: If *text* is not such a mode.
    """
    if text is None:
        return None
    if not re.fullmatch(r"(?:0o)?[0-7]{1,5}", text) or int(text, 8) > 0o777:
        raise ValueError(f"--permissions is an octal mode such as 640, 777 at most: {escape(text)!r}")
    return int(text, 8)


def parse_owner(text: str | None) -> Ownership | None:
    """Return the owner and group in ``USER``, ``USER:GROUP`` or ``:GROUP``, as chown(1) takes them, or None.

    Each is a name or a number; one that is -1 or left out stays unchanged.

    Raises:
        ValueError: If *text* has another form, or names a user or group that does not exist.
        StageError: If this process has no descriptor left to look it up.
    """
    if text is None:
        return None
    user, colon, group = text.partition(":")
    if ":" in group or not (group if colon else user):
        raise ValueError(f"--owner is USER:GROUP, USER or :GROUP, by name or number: {escape(text)!r}")
    return Ownership(_look_up_id("user", user), _look_up_id("group", group))


def _look_up_id(kind: str, name: str) -> int:
    if name in ("", "-1"):
        return -1
    if re.fullmatch(r"\d{1,10}", name, re.ASCII):
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except (NameError, KeyError, ValueError):
        require_free_descriptor(f"The {kind} {name!r} cannot be looked up")
        raise ValueError(f"--owner: this machine has no {kind} {escape(name)!r}.") from None
