"""`SSHOptions`: settings that override ssh's configuration."""

from __future__ import annotations

import dataclasses
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peerstage.documented import Documented
from peerstage.printable import escape
from peerstage.records import StrOrBytesPath
from peerstage.system_errors import require_free_descriptor

if TYPE_CHECKING:
    import paramiko

#: Fields whose value no repr, log line or message contains.
_SECRETS = frozenset({"passphrase", "password", "pkey"})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SSHOptions(metaclass=Documented):
    """How to reach a peer. Every field is None by default, which means "as ssh's configuration says".

    Attributes:
        port: TCP port, 1 to 65535.
        identity: Path of a private key, or several; these replace configured and default keys.
        certificate: Path of an OpenSSH user certificate.
        passphrase: Decrypts private keys.
        password: For password authentication, which is tried last.
        pkey: A `paramiko.PKey`, or the bytes of a private key file; it replaces all key files and the agent.
        agent: False for no agent, True for the agent of the environment, or the path of an agent's socket.
        config: Path of an ssh_config file, or several; ``()`` for none.
        known_hosts: Path of a known_hosts file, or several; ``()`` for none. Bytes are the content of such a file.
        host_key: The fingerprint ``"SHA256:..."`` that the host key must have; ``"strict"`` to accept only hosts in
            known_hosts; or ``"accept-new"`` to add the key of an unknown host to the first file of `known_hosts` before
            authentication starts. The key is rejected if it cannot be added.
        jump: A ProxyJump value, ``[user@]host[:port],...``, which replaces a configured ProxyJump or ProxyCommand; or
            ``"none"``, which disables a configured ProxyJump but not a ProxyCommand. Jump hosts share keys, agent,
            configuration and known_hosts with the peer, but not port, password and pinned host key.
        connect_timeout: Seconds (15 if not configured) for name lookup, TCP connection and key exchange; each of the
            configured ConnectionAttempts has this time.
        keepalive_interval: Seconds of silence before a keepalive is sent (15 if not configured); 0 for never.
        keepalive_count: Keepalives that may stay unanswered (3 if not configured).
        elevate: A command line for the peer's shell that starts an SFTP server, so that a login that is not root can
            stage files that only root may read (``"sudo -n /usr/lib/openssh/sftp-server"``). It implies SFTP.
        sock: A connected socket, or an authenticated `paramiko.Transport`, for one session. A socket is closed with the
            session, a Transport is not.

    Raises:
        ValueError: If a value is invalid. Nothing is read or connected here.
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
        key = self.host_key
        is_valid = isinstance(key, str) and (key in ("strict", "accept-new") or key.startswith("SHA256:"))
        _require(key is None or is_valid, "host_key", '"strict", "accept-new" or "SHA256:..."', key)
        for name in ("connect_timeout", "keepalive_interval"):
            value = getattr(self, name)
            is_disabled = name == "keepalive_interval" and value == 0
            is_valid = value is None or is_disabled or (_is_number(value) and 0 < value < float("inf"))
            or_zero = " or 0" if name == "keepalive_interval" else ""
            _require(is_valid, name, f"a positive number of seconds{or_zero}", value)
        count = self.keepalive_count
        _require(count is None or (_is_int(count) and count >= 0), "keepalive_count", "an integer, 0 or more", count)
        for name in ("passphrase", "password"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise ValueError(f"SSHOptions: {name} must be a string.")
            if not _is_text(getattr(self, name) or ""):
                raise ValueError(f"SSHOptions: {name} must be text that UTF-8 can encode.")  # without the secret
        for name in ("jump", "elevate"):
            value = getattr(self, name)
            _require(value is None or (isinstance(value, str) and value != ""), name, "a non-empty string", value)

    def __repr__(self) -> str:
        fields = (
            f"{f.name}={'***' if f.name in _SECRETS else repr(value)}"
            for f in dataclasses.fields(self)
            if (value := getattr(self, f.name)) is not None
        )
        return f"SSHOptions({', '.join(fields)})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.sock is not None:
            raise TypeError("SSHOptions with a sock cannot be pickled: a connection cannot be sent to another process.")
        return _rebuild, ({f.name: getattr(self, f.name) for f in dataclasses.fields(self)},)


def _rebuild(values: dict[str, Any]) -> SSHOptions:
    return SSHOptions(**values)


def as_tuple(value: object) -> tuple[Any, ...]:
    """Return the value of an option that takes one item or several as a tuple; None becomes ``()``."""
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def expand_home(path: StrOrBytesPath) -> str:
    """Return *path* with ``~`` expanded, as by `os.path.expanduser` (``$HOME`` first).

    Raises:
        StageError: If the home directory cannot be looked up because no file can be opened.
    """
    given = os.fsdecode(path)
    expanded = os.path.expanduser(given)
    if given.startswith("~") and expanded == given:
        require_free_descriptor(f"The home directory in {escape(given)} cannot be looked up")
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


def _require(is_valid: bool, name: str, expected: str, value: object) -> None:
    if not is_valid:
        raise ValueError(f"SSHOptions: {name} must be {expected}, not {value!r}.")
