"""Our own small file beside cback3's: for ``/etc/cback3.conf`` it is ``/etc/cback3.peerstage.ini``.

::

    [stage]
    # Peers at a time; where nothing is said it is one, as in cback3 itself.
    parallel = 4
    # For every remote peer: auto, sftp, scp, guarded (SCP behind a forced command), or rcp: cback's rcp_command.
    transport = auto
    identity = /home/backup/.ssh/backup_ed25519

    # For one of them.
    [peer db1.example.com]
    transport = guarded
    port = 2222

Also ``known_hosts``, ``host_key``, ``jump``, ``ssh_config``, ``connect_timeout``, ``elevate`` and ``deadline``; several
paths stand on one line, ``none`` is none. Where nothing is said, ssh's own configuration of ``backup_user`` decides.
Whatever can not be meant is an error that names file and line, before anything is connected.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peerstage.errors import ConfigurationError, Location
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.session.files import read_with_status
from peerstage.session.options import SSHOptions
from peerstage.transport.choose import TRANSPORTS

#: What ``transport`` may be beside the names of transports, as for the command line's ``--transport``.
GUARDED = "guarded"
MOST_PARALLEL = 64
_MOST_BYTES = 1024 * 1024

_SECTION = re.compile(r"\[\s*(?:(?P<stage>stage)|peer\s+(?P<peer>\S+))\s*\]")


def _transport(text: str) -> str:
    if text not in (*TRANSPORTS, GUARDED):
        raise ValueError(f"one of {', '.join((*TRANSPORTS, GUARDED))}")
    return text


def _parallel(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_PARALLEL:
        raise ValueError(f"a number from 1 to {MOST_PARALLEL}")
    return int(text)


def _paths(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(text.split())


def _as_option(name: str, read: Callable[[str], Any], text: str) -> Any:
    return getattr(SSHOptions(**{name: read(text)}), name)


#: Keys that become fields of `SSHOptions`, under the name there; what they hold is checked there too.
_SSH: dict[str, tuple[str, Callable[[str], Any]]] = {
    "port": ("port", int),
    "identity": ("identity", _paths),
    "known_hosts": ("known_hosts", _paths),
    "host_key": ("host_key", str),
    "jump": ("jump", str),
    "ssh_config": ("config", _paths),
    "connect_timeout": ("connect_timeout", float),
    "elevate": ("elevate", str),
}
_KEYS: dict[str, Callable[[str], Any]] = {
    "transport": _transport,
    "deadline": lambda text: Limits(deadline=float(text)).deadline,
    **{key: functools.partial(_as_option, name, read) for key, (name, read) in _SSH.items()},
}


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """How one remote peer is reached; what is not said is left to ssh's configuration."""

    values: dict[str, Any] = field(default_factory=dict)

    @property
    def transport(self) -> str:
        """One of the transports, or `GUARDED`."""
        return str(self.values.get("transport", "auto"))

    @property
    def ssh(self) -> SSHOptions:
        """What becomes `SSHOptions`."""
        return SSHOptions(**{name: self.values[key] for key, (name, _) in _SSH.items() if key in self.values})

    @property
    def limits(self) -> Limits:
        """What becomes `Limits`."""
        return Limits(deadline=self.values.get("deadline"))


class Settings:
    """What our own file says.

    Attributes:
        path: The file, whether it is there or not.
        parallel: Remote and local peers that are staged at a time.
        named: Peers that have a section, with its line.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.parallel = 1
        self.named: dict[str, int] = {}
        self._stage: dict[str, Any] = {}
        self._peers: dict[str, dict[str, Any]] = {}

    def of(self, peer: str) -> PeerSettings:
        """Return the settings of one peer: its own, and for the rest those of all."""
        return PeerSettings({**self._stage, **self._peers.get(peer, {})})

    def require_known(self, peers: set[str]) -> None:
        """Refuse sections of peers that are none.

        Raises:
            ConfigurationError: One is not in *peers*; it may be misspelt, and what it says would not be heeded.
        """
        for name, line in self.named.items():
            if name not in peers:
                raise self._complaint(line, f"{name!r} is no remote peer of the stage section")

    def read(self) -> None:
        """Read the file, if there is one.

        Raises:
            ConfigurationError: If it cannot be read, is not a regular file, holds more than 1 MiB, can be written by
                others, or holds an invalid line.
        """
        try:
            data, status = read_with_status(self.path, _MOST_BYTES)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise ConfigurationError(
                f"It cannot be read: {exc.strerror}.",
                path=self.path,
                reason=Reason.CONFIGURATION_UNREADABLE,
                location=Location(self.path),
            ) from exc
        _require_safe(status, self.path)
        text = data.decode("utf-8", "surrogateescape")
        section: dict[str, Any] | None = None
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.strip()
            if not line or line.startswith(("#", ";")):
                continue
            if line.startswith("["):
                section = self._open_section(number, line)
            elif section is None:
                raise self._complaint(number, "a section comes first: [stage] or [peer NAME]")
            else:
                self._take(number, line, section)

    def _open_section(self, number: int, line: str) -> dict[str, Any]:
        found = _SECTION.fullmatch(line)
        if found is None:
            raise self._complaint(number, f"a section is [stage] or [peer NAME], not {line!r}")
        if found["stage"]:
            return self._stage
        if found["peer"] in self._peers:
            raise self._complaint(number, f"{found['peer']!r} has a section already")
        self.named[found["peer"]] = number
        return self._peers.setdefault(found["peer"], {})

    def _take(self, number: int, line: str, section: dict[str, Any]) -> None:
        key, separator, text = (part.strip() for part in line.partition("="))
        if not separator or not text:
            raise self._complaint(number, f"a line is KEY = VALUE, not {line!r}")
        known = dict(_KEYS, parallel=_parallel) if section is self._stage else _KEYS
        if key not in known:
            raise self._complaint(number, f"there is no {key!r} here; there are {', '.join(sorted(known))}")
        if key in section:
            raise self._complaint(number, f"{key} is said already")
        try:
            section[key] = known[key](text)
        except ValueError as exc:
            raise self._complaint(number, f"{key} can not be {text!r}: {exc}") from exc
        self.parallel = self._stage.get("parallel", 1)

    def _complaint(self, number: int, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"Line {number}: {what.rstrip('.')}.", path=self.path, location=Location(self.path, number)
        )


def beside(config_path: str) -> str:
    """Return the path of our own file beside cback3's."""
    return f"{os.path.splitext(config_path)[0]}.peerstage.ini"


def _require_safe(status: os.stat_result, path: str) -> None:
    """Refuse a file that others can write: it says which hosts are trusted, and what runs on them."""
    own = {0, os.geteuid()} if hasattr(os, "geteuid") else {status.st_uid}
    if status.st_uid not in own or stat.S_IMODE(status.st_mode) & 0o022:
        raise ConfigurationError(
            "Others can write it. Let it belong to root, with mode 644 or less.",
            path=path,
            reason=Reason.INSECURE_CONFIGURATION,
            location=Location(path),
        )
