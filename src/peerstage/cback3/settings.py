"""Peerstage's settings file, next to cback3's configuration: ``/etc/cback3.peerstage.ini`` for ``/etc/cback3.conf``.

::

    [stage]
    # Peers staged at a time. The default is 1, as in cback3 itself.
    parallel = 4
    # For every remote peer: auto, sftp, scp, guarded (SCP with a forced command), or rcp (cback3's rcp_command).
    transport = auto
    identity = /home/backup/.ssh/backup_ed25519

    # For one remote peer.
    [peer db1.example.com]
    transport = guarded
    port = 2222

The other keys are ``known_hosts``, ``host_key``, ``jump``, ``ssh_config``, ``connect_timeout``, ``elevate`` and
``deadline``, and those of `StageOptions`: ``durable``, ``preserve_times``, ``manifest``, ``include``, ``exclude``,
``max_size``, ``checksums``, ``partial_dir`` and ``bwlimit``, of which only the last does not apply to local peers;
``checksums`` means ``verify="sha256"``, too. Paths and patterns are separated by spaces; ``none`` means none. For keys
that are not set, the ssh configuration of ``backup_user`` applies. Invalid settings raise an error with file and line
before anything is connected.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peerstage.bounded_files import read_trusted_file
from peerstage.errors import ConfigurationError, Location
from peerstage.records import Limits
from peerstage.sizes import parse_size
from peerstage.ssh.options import SSHOptions
from peerstage.stage_options import StageOptions
from peerstage.transport.factory import GUARDED, TRANSPORTS

_MAX_PARALLEL = 64
_MAX_BYTES = 1024 * 1024

_SECTION = re.compile(r"\[\s*(?:(?P<stage>stage)|peer\s+(?P<peer>\S+))\s*\]")


def _parse_transport(text: str) -> str:
    if text not in (*TRANSPORTS, GUARDED):
        raise ValueError(f"it must be one of {', '.join((*TRANSPORTS, GUARDED))}")
    return text


def _parse_parallel(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_PARALLEL:
        raise ValueError(f"it must be a number from 1 to {_MAX_PARALLEL}")
    return int(text)


def _parse_words(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(text.split())


def _parse_flag(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("it must be yes or no")
    return text == "yes"


def _parse_checksums(text: str) -> str | None:
    return None if text == "none" else StageOptions(verify="sha256", checksums=text).checksums


def _parse_directory(text: str) -> str | None:
    return None if text == "none" else text


def _parse_option(kind: type[Any], name: str, parse: Callable[[str], Any], text: str) -> Any:
    return getattr(kind(**{name: parse(text)}), name)


#: Keys for fields of `SSHOptions`: the name of the field, and a parser; `SSHOptions` checks the value.
_SSH: dict[str, tuple[str, Callable[[str], Any]]] = {
    "port": ("port", int),
    "identity": ("identity", _parse_words),
    "known_hosts": ("known_hosts", _parse_words),
    "host_key": ("host_key", str),
    "jump": ("jump", str),
    "ssh_config": ("config", _parse_words),
    "connect_timeout": ("connect_timeout", float),
    "elevate": ("elevate", str),
}
#: Keys for fields of `StageOptions`, which have the same names, and their parsers.
_STAGE: dict[str, Callable[[str], Any]] = {
    "durable": _parse_flag,
    "preserve_times": _parse_flag,
    "include": _parse_words,
    "exclude": _parse_words,
    "max_size": parse_size,
    "checksums": _parse_checksums,
    "manifest": _parse_flag,
    "bwlimit": parse_size,
    "partial_dir": _parse_directory,
}
_KEYS: dict[str, Callable[[str], Any]] = {
    "transport": _parse_transport,
    "deadline": lambda text: Limits(deadline=float(text)).deadline,
    **{key: functools.partial(_parse_option, SSHOptions, name, parse) for key, (name, parse) in _SSH.items()},
    **{name: functools.partial(_parse_option, StageOptions, name, parse) for name, parse in _STAGE.items()},
    "checksums": _parse_checksums,  # checks the value itself, since it is only allowed with verify="sha256"
}


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """How one peer is reached and staged; ssh's configuration applies to options of ssh that are not set.

    Attributes:
        transport: One of `TRANSPORTS`, or `GUARDED`.
        ssh: The options for ssh.
        stage: What is wanted of a stage.
        limits: The limits, of which the deadline can be set.
    """

    transport: str
    ssh: SSHOptions
    stage: StageOptions
    limits: Limits


class Settings:
    """The settings file.

    Attributes:
        path: The path of the file, which need not exist.
        parallel: The number of peers, remote and local, staged at a time.
        section_lines: Peers with a section of their own, and its line number.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.parallel = 1
        self.section_lines: dict[str, int] = {}
        self._stage: dict[str, Any] = {}
        self._peers: dict[str, dict[str, Any]] = {}

    def of_peer(self, peer: str | None) -> PeerSettings:
        """Return the settings of the remote *peer*: those of its section override those of ``[stage]``.

        None stands for any local peer: it has no section.

        Raises:
            ConfigurationError: If settings contradict each other.
        """
        values = {**self._stage, **(self._peers.get(peer, {}) if peer is not None else {})}
        ssh = SSHOptions(**{name: values[key] for key, (name, _) in _SSH.items() if key in values})
        try:
            stage = StageOptions(
                **{name: values[name] for name in _STAGE if name in values},
                verify="sha256" if values.get("checksums") is not None else "stable",
            )
        except ValueError as exc:
            raise ConfigurationError(f"{peer or 'local peers'}: {exc}", path=self.path) from exc
        return PeerSettings(values.get("transport", "auto"), ssh, stage, Limits(deadline=values.get("deadline")))

    def require_known_peers(self, peers: set[str]) -> None:
        """Refuse sections for unknown peers, which are probably misspelt and would have no effect.

        Raises:
            ConfigurationError: If a section is for a peer that is not in *peers*.
        """
        for name, line in self.section_lines.items():
            if name not in peers:
                raise self._config_error(line, f"{name!r} is not a remote peer of the stage section")

    def read(self) -> None:
        """Read the file if it exists.

        Raises:
            ConfigurationError: If it cannot be read, is not a regular file, is larger than 1 MiB, is writable by
                others, or has an invalid line.
        """
        try:
            data = read_trusted_file(self.path, _MAX_BYTES)
        except FileNotFoundError:
            return
        text = data.decode("utf-8", "surrogateescape")
        section: dict[str, Any] | None = None
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.strip()
            if not line or line.startswith(("#", ";")):
                continue
            if line.startswith("["):
                section = self._open_section(number, line)
            elif section is None:
                raise self._config_error(number, "a section must come first: [stage] or [peer NAME]")
            else:
                self._set(number, line, section)

    def _open_section(self, number: int, line: str) -> dict[str, Any]:
        match = _SECTION.fullmatch(line)
        if match is None:
            raise self._config_error(number, f"a section must be [stage] or [peer NAME], not {line!r}")
        if match["stage"]:
            return self._stage
        if match["peer"] in self._peers:
            raise self._config_error(number, f"{match['peer']!r} already has a section")
        self.section_lines[match["peer"]] = number
        return self._peers.setdefault(match["peer"], {})

    def _set(self, number: int, line: str, section: dict[str, Any]) -> None:
        key, separator, text = (part.strip() for part in line.partition("="))
        if not separator or not text:
            raise self._config_error(number, f"a setting must be KEY = VALUE, not {line!r}")
        known = dict(_KEYS, parallel=_parse_parallel) if section is self._stage else _KEYS
        if key not in known:
            raise self._config_error(number, f"unknown key {key!r}; valid keys are {', '.join(sorted(known))}")
        if key in section:
            raise self._config_error(number, f"{key} is already set")
        try:
            section[key] = known[key](text)
        except ValueError as exc:
            raise self._config_error(number, f"{key} cannot be {text!r}: {exc}") from exc
        self.parallel = self._stage.get("parallel", 1)

    def _config_error(self, number: int, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"Line {number}: {what.rstrip('.')}.", path=self.path, location=Location(self.path, number)
        )


def settings_path(config_path: str) -> str:
    """Return the path of the settings file for the configuration file *config_path*."""
    return f"{os.path.splitext(config_path)[0]}.peerstage.ini"
