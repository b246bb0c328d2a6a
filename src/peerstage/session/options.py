"""`SSHOptions`: how to reach a peer, where ssh's own configuration does not already say it."""

from __future__ import annotations

import dataclasses
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peerstage.documented import Documented
from peerstage.errors import escape
from peerstage.records import StrOrBytesPath
from peerstage.system_errors import require_descriptors

if TYPE_CHECKING:
    import paramiko

#: Fields whose value never shows in a repr, a log or a message.
SECRETS = frozenset({"passphrase", "password", "pkey"})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SSHOptions(metaclass=Documented):
    """How to reach a peer. Every field is None by default: "what ssh's configuration says".

    Attributes:
        port: TCP port, 1 to 65535.
        identity: Path of a private key, or several; these replace the configured and the default ones.
        certificate: Path of an OpenSSH user certificate.
        passphrase: Opens encrypted private keys.
        password: For password authentication, tried last.
        pkey: A `paramiko.PKey`, or the bytes of a private key file; then no key file and no agent is used.
        agent: False for no agent, True for the one of the environment, or the path of its socket.
        config: Path of an ssh_config file, or several; ``()`` for none.
        known_hosts: Path of a known_hosts file, or several; ``()`` for none. What is bytes is such a file's content.
        host_key: The fingerprint ``"SHA256:..."`` that the host must show; ``"strict"``, for the hosts of known_hosts
            alone; or ``"accept-new"``: a host of which nothing is known is added to the first file of `known_hosts`
            before it is spoken to, and refused if it can not be added.
        jump: A ProxyJump string, ``[user@]host[:port],...``, which takes the place of a configured ProxyJump or
            ProxyCommand, or ``"none"``, which takes that of a ProxyJump alone, as ``ssh -J`` does. Hops are reached
            with the same keys, agent, configuration and known_hosts; port, password and pinned host key are the peer's
            alone.
        connect_timeout: Seconds for name, address, TCP connection and key exchange (15 without configuration), for
            each of the ConnectionAttempts that are configured.
        keepalive_interval: Seconds of silence after which the peer is asked whether it lives (15 without
            configuration); 0 for never.
        keepalive_count: Questions that may stay unanswered, an interval each (3 without configuration).
        elevate: A command line that the peer's shell runs, as it stands, and that speaks SFTP: how a login that is not
            root stages what root alone may read (``"sudo -n /usr/lib/openssh/sftp-server"``). It means SFTP.
        sock: A connected socket, or an authenticated `paramiko.Transport`: it serves one session. A socket is closed
            with the session, a Transport never.

    Raises:
        ValueError: A value that can not be meant. Nothing is read or connected here.
    """

    port: int | None = None
    identity: StrOrBytesPath | tuple[StrOrBytesPath, ...] | None = None
    certificate: StrOrBytesPath | None = None
    passphrase: str | None = None
    password: str | None = None
    pkey: paramiko.PKey | bytes | None = None
    agent: bool | StrOrBytesPath | None = None
    config: StrOrBytesPath | tuple[StrOrBytesPath, ...] | None = None
    known_hosts: StrOrBytesPath | tuple[StrOrBytesPath, ...] | None = None
    host_key: str | None = None
    jump: str | None = None
    connect_timeout: float | None = None
    keepalive_interval: float | None = None
    keepalive_count: int | None = None
    elevate: str | None = None
    sock: socket.socket | paramiko.Transport | None = None

    def __post_init__(self) -> None:
        for name in ("identity", "config", "known_hosts"):
            value = getattr(self, name)
            if isinstance(value, (list, set, frozenset)):
                object.__setattr__(self, name, tuple(value))
        _require(self.port is None or (_is_int(self.port) and 1 <= self.port <= 65535), "port", "1 to 65535", self.port)
        _require(
            self.host_key is None or self.host_key in ("strict", "accept-new") or self.host_key.startswith("SHA256:"),
            "host_key",
            '"strict", "accept-new" or "SHA256:..."',
            self.host_key,
        )
        for name in ("connect_timeout", "keepalive_interval"):
            value = getattr(self, name)
            lowest_allowed = name == "keepalive_interval" and value == 0
            _require(
                value is None or lowest_allowed or (_is_number(value) and 0 < value < float("inf")),
                name,
                "seconds above 0",
                value,
            )
        _require(
            self.keepalive_count is None or (_is_int(self.keepalive_count) and self.keepalive_count >= 0),
            "keepalive_count",
            "a count",
            self.keepalive_count,
        )
        for name in ("passphrase", "password"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise ValueError(f"SSHOptions: {name} must be a string.")
            if not _is_text(getattr(self, name) or ""):
                raise ValueError(f"SSHOptions: {name} must be text that UTF-8 can encode.")  # which is a secret
        for name in ("jump", "elevate"):
            value = getattr(self, name)
            _require(value is None or (isinstance(value, str) and value != ""), name, "a non-empty string", value)

    def __repr__(self) -> str:
        shown = (
            f"{f.name}={'***' if f.name in SECRETS else repr(value)}"
            for f in dataclasses.fields(self)
            if (value := getattr(self, f.name)) is not None
        )
        return f"SSHOptions({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.sock is not None:
            raise TypeError("SSHOptions with an open sock can not be pickled: a connection can not be sent elsewhere.")
        return _rebuild, ({f.name: getattr(self, f.name) for f in dataclasses.fields(self)},)


def _rebuild(values: dict[str, Any]) -> SSHOptions:
    return SSHOptions(**values)


def several(value: object) -> tuple[Any, ...]:
    """Return the value of an option that takes one or several as a tuple; None becomes ``()``."""
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def expand(path: StrOrBytesPath) -> str:
    """Return *path* with ``~`` replaced by the home directory, as everywhere in Python (``$HOME`` first)."""
    given = os.fsdecode(path)
    expanded = os.path.expanduser(given)
    if given.startswith("~") and expanded == given:
        require_descriptors(f"The home directory in {escape(given)} cannot be looked up")
    return expanded


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require(holds: bool, name: str, meant: str, value: object) -> None:
    if not holds:
        raise ValueError(f"SSHOptions: {name} must be {meant}, not {value!r}.")
