"""How a peer is reached: `SSHOptions` over ssh's configuration, settled before anything is connected.

What is configured and not honoured yet is refused, by file and line: never the wrong machine.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import socket
from dataclasses import dataclass
from typing import TypeVar

from peerstage.errors import ConfigurationError, escape
from peerstage.session.algorithms import Algorithms
from peerstage.session.jump import Hop, parse_jump
from peerstage.session.options import SSHOptions, expand, several
from peerstage.session.ssh_config import Source, SSHConfig, complaint, standing_at

T = TypeVar("T")

log = logging.getLogger("peerstage.session")

_SYSTEM_DIRECTORY = "/etc/ssh"
_DEFAULT_KEYS = ("id_rsa", "id_ecdsa", "id_ed25519")
_USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_FAMILIES = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}

#: Keywords that change who is reached or trusted and are not honoured yet, and the values with which they do not.
_NOT_YET = {
    "proxycommand": ("none",),
    "canonicalizehostname": ("no",),
    "knownhostscommand": ("none",),
    "revokedhostkeys": ("none",),
    "nohostauthenticationforlocalhost": ("no",),
    "proxyusefdpass": ("no",),
    "bindaddress": (),
    "bindinterface": (),
    "pkcs11provider": ("none",),
    "securitykeyprovider": ("none", "internal"),
}
#: Fields of `SSHOptions` that are not honoured yet.
_OPTIONS_NOT_YET = ("elevate",)

#: Seconds and count that suit an unattended night, where nothing is configured (ssh itself asks for nothing then).
_ALIVE_INTERVAL = 15.0
_ALIVE_COUNT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a peer is and what is shown to it.

    Attributes:
        name: The peer's name, as given.
        user: Who logs in.
        host: Name or address to connect to, after HostName.
        known_as: Name and port under which known_hosts is asked: HostKeyAlias, or the host and its port.
        port: TCP port.
        identities: Paths of private keys, in the order in which they are tried.
        explicit_identities: Whether they were given by `SSHOptions`.
        certificates: Paths of user certificates that are named, in the order in which they are tried.
        identities_only: Whether the agent may only offer keys that `identities` name.
        agent: Path of the agent's socket, None for no agent.
        known_hosts: Paths of known_hosts files, or their content, in order.
        family: Address family to connect with.
        connect_timeout: Seconds for name, address and connection.
        alive_interval: Seconds of silence before the peer is asked for a sign of life; 0 for never.
        alive_count: Questions that may stay unanswered.
        hops: Hosts to jump through, the nearest first.
        pinned: The fingerprint that the host must show, None where known_hosts decides.
        algorithms: What is offered in the key exchange, and with which keys may sign.
    """

    name: str
    user: str
    host: str
    known_as: tuple[str, int]
    port: int
    identities: tuple[str, ...]
    explicit_identities: bool
    certificates: tuple[str, ...]
    identities_only: bool
    agent: str | None
    known_hosts: tuple[str | bytes, ...]
    family: socket.AddressFamily
    connect_timeout: float
    alive_interval: float
    alive_count: int
    hops: tuple[Hop, ...]
    pinned: str | None
    algorithms: Algorithms


def resolve_destination(name: str, user: str | None, options: SSHOptions) -> Destination:
    """Return how *user* at *name* is reached; options win over the configuration. Nothing is connected.

    Args:
        name: A host name, an address, or an alias.
        user: Who logs in; None for whom the configuration names, or else whoever runs this process, as for a hop.
        options: What the configuration does not say.

    Raises:
        ConfigurationError: Something that the configuration or the options ask for can not be honoured; the message
            names file and line.
    """
    for field in _OPTIONS_NOT_YET:
        if getattr(options, field) is not None:
            raise ConfigurationError(f"SSHOptions({field}=...) is not honoured yet. Leave it out.")
    if options.host_key == "accept-new":
        raise ConfigurationError(
            'SSHOptions(host_key="accept-new") is not honoured yet. Add the key to known_hosts (ssh-keyscan), or pin '
            'it with host_key="SHA256:...".'
        )
    config = SSHConfig.read(_sources(options), name, user)
    found = _Settings(config)
    found.refuse_what_is_not_honoured()
    host = config.host if config.first("hostname") is not None else name
    port = options.port if options.port is not None else config.port or 22
    alias = found.text("hostkeyalias")
    pinned = options.host_key if options.host_key and options.host_key.startswith("SHA256:") else None
    if found.text("stricthostkeychecking", "yes").lower() not in ("yes", "true"):
        log.info("%s: StrictHostKeyChecking is taken as yes; unknown host keys are refused.", escape(name))
    return Destination(
        name=name,
        user=config.user,
        host=host,
        known_as=(alias, 22) if alias else (host, port),
        port=port,
        identities=_identities(options, found),
        explicit_identities=options.identity is not None,
        certificates=_certificates(options, found),
        identities_only=found.flag("identitiesonly"),
        agent=_agent(options, found),
        known_hosts=_known_hosts(options, found),
        family=found.choice("addressfamily", _FAMILIES, socket.AF_UNSPEC),
        connect_timeout=options.connect_timeout or found.seconds("connecttimeout") or 15.0,
        alive_interval=_alive_interval(options, found),
        alive_count=options.keepalive_count
        if options.keepalive_count is not None
        else found.count("serveralivecountmax", _ALIVE_COUNT),
        algorithms=Algorithms(),
        hops=_hops(options, found),
        pinned=pinned,
    )


def _sources(options: SSHOptions) -> list[Source]:
    """Return the files to read: those that *options* name, or the user's own and the system's, as ssh does."""
    base = expand("~/.ssh")
    if options.config is not None:
        return [Source(expand(path), required=True, checked=False, base=base) for path in several(options.config)]
    return [
        Source(os.path.join(base, "config"), required=False, checked=True, base=base),
        Source(f"{_SYSTEM_DIRECTORY}/ssh_config", required=False, checked=False, base=_SYSTEM_DIRECTORY),
    ]


class _Settings:
    """The settings that are in effect, as values of the right kind."""

    def __init__(self, config: SSHConfig) -> None:
        self._config = config

    def refuse_what_is_not_honoured(self) -> None:
        """Refuse what changes who is reached or trusted, and is not honoured yet."""
        for keyword, harmless in _NOT_YET.items():
            setting = self._config.first(keyword)
            if setting is not None and " ".join(setting.words).lower() not in harmless:
                raise complaint(setting, f"{keyword} is not honoured yet")

    def text(self, keyword: str, default: str = "") -> str:
        """Return a setting of one word."""
        setting = self._config.first(keyword)
        if setting is None:
            return default
        if len(setting.words) > 1:
            raise complaint(setting, f"{keyword} has more than one value")
        return setting.words[0]

    def path(self, keyword: str) -> str:
        """Return a setting that is a path, expanded."""
        setting = self._config.first(keyword)
        return "" if setting is None else self._config.expanded(setting, self.text(keyword))

    def paths(self, keyword: str) -> list[str]:
        """Return the paths of a setting that adds up, expanded."""
        settings = self._config.found.get(keyword, [])
        return [self._config.expanded(setting, setting.words[0]) for setting in settings]

    def list_of_paths(self, keyword: str) -> list[str]:
        """Return the paths of a setting of several words, expanded."""
        setting = self._config.first(keyword)
        return [] if setting is None else [self._config.expanded(setting, word) for word in setting.words]

    def hops(self) -> tuple[Hop, ...]:
        """Return the hosts to jump through."""
        setting = self._config.first("proxyjump")
        if setting is None:
            return ()
        with standing_at(setting):
            return parse_jump(self._config.tokens.expand(setting.words[0]))

    def seconds(self, keyword: str) -> float | None:
        """Return a setting in seconds, None where it is "none" or 0; ssh's time formats (1m30s) are understood."""
        text = self.text(keyword).lower()
        if text in ("", "none"):
            return None
        parts = re.findall(r"(\d+)([smhdw]?)", text)
        if "".join(number + unit for number, unit in parts) != text:
            raise self._complaint(keyword, "must be a time in seconds")
        total = sum(
            int(number) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[unit] for number, unit in parts
        )
        return float(total) or None

    def count(self, keyword: str, default: int) -> int:
        """Return a setting that is a number, 0 included."""
        text = self.text(keyword)
        if text and not (text.isascii() and text.isdigit()):
            raise self._complaint(keyword, "must be a number")
        return int(text) if text else default

    def flag(self, keyword: str) -> bool:
        """Return a setting that is yes or no."""
        return self.choice(keyword, {"yes": True, "true": True, "no": False, "false": False}, False)

    def choice(self, keyword: str, choices: dict[str, T], default: T) -> T:
        """Return a setting that is one of several words."""
        text = self.text(keyword).lower()
        if text and text not in choices:
            raise self._complaint(keyword, f"must be one of {', '.join(choices)}")
        return choices[text] if text else default

    def _complaint(self, keyword: str, what: str) -> ConfigurationError:
        setting = self._config.first(keyword)
        return ConfigurationError(f"{keyword} {what}.") if setting is None else complaint(setting, f"{keyword} {what}")


def _identities(options: SSHOptions, found: _Settings) -> tuple[str, ...]:
    if options.pkey is not None:
        return ()
    if options.identity is not None:
        return tuple(expand(path) for path in several(options.identity))
    configured = found.paths("identityfile")
    if configured:
        return tuple(dict.fromkeys(path for path in configured if path.lower() != "none"))
    defaults = (expand(f"~/.ssh/{name}") for name in _DEFAULT_KEYS)
    return tuple(path for path in defaults if os.path.exists(path))


def _certificates(options: SSHOptions, found: _Settings) -> tuple[str, ...]:
    if options.certificate is not None:
        return (expand(options.certificate),)
    return tuple(path for path in found.paths("certificatefile") if path.lower() != "none")


def hop_options(options: SSHOptions, hop: Hop, before: tuple[Hop, ...]) -> SSHOptions:
    """Return how a hop is reached: keys, agent, configuration and known_hosts are shared, the rest is the peer's own.

    Args:
        options: The peer's.
        hop: The hop.
        before: The hops on the way to it; without any, its own configuration decides.
    """
    return dataclasses.replace(
        options,
        port=hop.port,
        jump=",".join(str(one) for one in before) or None,
        host_key=None if (options.host_key or "").startswith("SHA256:") else options.host_key,
        password=None,
        elevate=None,
    )


def _hops(options: SSHOptions, found: _Settings) -> tuple[Hop, ...]:
    if options.jump is None:
        return found.hops()
    try:
        return parse_jump(options.jump)
    except ValueError as exc:
        raise ConfigurationError(f"SSHOptions(jump=...): {exc}.") from None


def _alive_interval(options: SSHOptions, found: _Settings) -> float:
    if options.keepalive_interval is not None:
        return options.keepalive_interval
    if found.text("serveraliveinterval"):
        return found.seconds("serveraliveinterval") or 0.0  # a configured 0 is meant
    return _ALIVE_INTERVAL


def _agent(options: SSHOptions, found: _Settings) -> str | None:
    if options.pkey is not None or options.agent is False:
        return None
    if isinstance(options.agent, str):
        return expand(options.agent)
    configured = found.text("identityagent")
    if options.agent is None and configured:
        if configured.lower() == "none":
            return None
        if configured.startswith("$") and not configured.startswith("${"):
            return os.environ.get(configured[1:]) or None
        if configured != "SSH_AUTH_SOCK":
            return found.path("identityagent")
    return os.environ.get("SSH_AUTH_SOCK") or None


def _known_hosts(options: SSHOptions, found: _Settings) -> tuple[str | bytes, ...]:
    if options.known_hosts is not None:
        return tuple(one if isinstance(one, bytes) else expand(one) for one in several(options.known_hosts))
    paths: list[str | bytes] = []
    for keyword, defaults in (("userknownhostsfile", _USER_KNOWN_HOSTS), ("globalknownhostsfile", _GLOBAL_KNOWN_HOSTS)):
        words = found.list_of_paths(keyword) or [expand(path) for path in defaults]
        paths.extend(word for word in words if word.lower() != "none")
    return tuple(paths)
