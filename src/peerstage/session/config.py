"""How a peer is reached: `SSHOptions` over ssh's configuration, settled before anything is connected.

What is configured, changes who is reached or trusted, and is not honoured, is refused by file and line: never the wrong
machine.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from peerstage.errors import ConfigurationError, Location
from peerstage.peer_log import PeerLog
from peerstage.session.algorithms import Algorithms
from peerstage.session.jump import Hop, parse_jump
from peerstage.session.options import SSHOptions, expand, several
from peerstage.session.settings import NamedPath, Settings
from peerstage.session.ssh_config import Source, SSHConfig
from peerstage.session.values import FAMILIES, HOST_KEY_CHECKS
from peerstage.session.watchdog import Watchdog

_SYSTEM_DIRECTORY = "/etc/ssh"
_DEFAULT_KEYS = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk")
_USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")

#: Seconds and count that suit an unattended night, where nothing is configured (ssh itself knows no bound then).
_CONNECT_TIMEOUT = 15.0
_ALIVE_INTERVAL = 15.0
_ALIVE_COUNT = 3
#: The variable that names the agent's socket, and the value of IdentityAgent that stands for it.
_ENVIRONMENT = "SSH_AUTH_SOCK"
#: The least that RequiredRSASize can ask for.
_RSA_BITS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a peer is and what is shown to it.

    Attributes:
        name: The peer's name, as given.
        label: What begins each line of the log: the peer's name; of a hop, the name of the peer behind it, and its own.
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
        bind_address: Local address or name to connect from, None for any.
        attempts: How often a connection is tried, a second between.
        connect_timeout: Seconds for name, address and connection, each time.
        alive_interval: Seconds of silence before the peer is asked for a sign of life; 0 for never.
        alive_count: Questions that may stay unanswered.
        hops: Hosts to jump through, the nearest first.
        proxy_command: The command through which the peer is reached, with its tokens expanded; None for none.
        pinned: The fingerprint that the host must show, None where known_hosts decides.
        accept_new: Whether a host of which nothing is known is learnt when it is first reached.
        learns_into: The known_hosts file that new keys are added to, None if there is none.
        hash_names: Whether names are hidden in what is added (HashKnownHosts).
        algorithms: What is offered in the key exchange, and with which keys may sign.
        rsa_bits: What an RSA key has to have at least, the host's as the user's (RequiredRSASize).
        config: Paths of the configuration files that `SSHOptions` names; None for those that ssh reads.
        named: The lines of the configuration that name identities, certificates and the agent's socket, by path; a
            path that an option names, or that is a default, has none.
    """

    name: str
    label: str
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
    bind_address: str | None
    attempts: int
    connect_timeout: float
    alive_interval: float
    alive_count: int
    hops: tuple[Hop, ...]
    proxy_command: str | None
    pinned: str | None
    accept_new: bool
    learns_into: str | None
    hash_names: bool
    algorithms: Algorithms
    rsa_bits: int
    config: tuple[str, ...] | None = None
    named: Mapping[str, NamedPath] = field(default_factory=dict)

    @property
    def log(self) -> PeerLog:
        """For what is seen on the way there."""
        return PeerLog("peerstage.session", self.label)


def resolve_destination(
    name: str, user: str | None, options: SSHOptions, *, watchdog: Watchdog | None = None, label: str = ""
) -> Destination:
    """Return how *user* at *name* is reached; options win over the configuration. Nothing is connected.

    Args:
        name: A host name, an address, or an alias.
        user: Who logs in; None for whom the configuration names, or else whoever runs this process, as for a hop.
        options: What the configuration does not say.
        watchdog: Ends the commands of ``Match exec``.
        label: What begins each line of the log, if not *name*.

    Raises:
        ConfigurationError: Something that the configuration or the options ask for can not be honoured; the message
            names file and line.
        LimitExceeded, Cancelled: If the watchdog ended a command.
    """
    label = label or name
    config = read_config(name, user, options, watchdog=watchdog, label=label)
    found = Settings(config)
    found.refuse_what_is_not_honoured()
    host = config.host if config.first("hostname") is not None else name
    port = config.port or 22
    hops = _hops(options, found)
    alias = found.text("hostkeyalias")
    pinned = options.host_key if options.host_key and options.host_key.startswith("SHA256:") else None
    agent = _agent(options, found)
    checks = options.host_key or found.choice("stricthostkeychecking", HOST_KEY_CHECKS, "yes")
    if checks == "taken as yes":
        config.log.info("StrictHostKeyChecking is taken as yes; unknown host keys are refused.")
    return Destination(
        name=name,
        label=label,
        user=config.user,
        host=host,
        known_as=(alias, 22) if alias else (host, port),
        port=port,
        identities=_identities(options, found),
        explicit_identities=options.identity is not None,
        certificates=_certificates(options, found),
        identities_only=found.flag("identitiesonly"),
        agent=agent,
        known_hosts=_known_hosts(options, found),
        family=found.choice("addressfamily", FAMILIES, socket.AF_UNSPEC),
        bind_address=found.text("bindaddress") or None,
        attempts=found.attempts(),
        connect_timeout=options.connect_timeout or found.seconds("connecttimeout", 0.0) or _CONNECT_TIMEOUT,
        alive_interval=_alive_interval(options, found),
        alive_count=options.keepalive_count
        if options.keepalive_count is not None
        else found.count("serveralivecountmax", _ALIVE_COUNT),
        algorithms=found.algorithms(),
        hops=hops,
        proxy_command=None if hops else found.command(),
        pinned=pinned,
        accept_new=checks == "accept-new",
        learns_into=_learns_into(options, found),
        hash_names=found.flag("hashknownhosts"),
        rsa_bits=max(_RSA_BITS, found.count("requiredrsasize", _RSA_BITS)),
        config=None if options.config is None else tuple(expand(path) for path in several(options.config)),
        named=_named(options, found, agent),
    )


def read_config(
    name: str, user: str | None, options: SSHOptions, *, watchdog: Watchdog | None = None, label: str = ""
) -> SSHConfig:
    """Return ssh's configuration for *user* at *name*. See `resolve_destination`."""
    return SSHConfig.read(_sources(options), name, user, options.port, options.jump, watchdog, label)


def _sources(options: SSHOptions) -> list[Source]:
    """Return the files to read: those that *options* name, or the user's own and the system's, as ssh does."""
    base = expand("~/.ssh")
    if options.config is not None:
        return [Source(expand(path), required=True, checked=False, base=base) for path in several(options.config)]
    return [
        Source(os.path.join(base, "config"), required=False, checked=True, base=base),
        Source(f"{_SYSTEM_DIRECTORY}/ssh_config", required=False, checked=False, base=_SYSTEM_DIRECTORY),
    ]


def _named(options: SSHOptions, found: Settings, agent: str | None) -> dict[str, NamedPath]:
    """Return the lines of the configuration that name keys and the agent, as far as no option replaces them."""
    lines = []
    if options.identity is None and options.pkey is None:
        lines += found.named_paths("IdentityFile")
    if options.certificate is None:
        lines += found.named_paths("CertificateFile")
    named = {line.path: line for line in reversed(lines)}  # the first counts
    if agent is not None and options.agent is None and found.text("identityagent", _ENVIRONMENT) != _ENVIRONMENT:
        named[agent] = found.named_paths("IdentityAgent")[0]._replace(path=agent)
    return named


def _identities(options: SSHOptions, found: Settings) -> tuple[str, ...]:
    if options.pkey is not None:
        return ()
    if options.identity is not None:
        return tuple(expand(path) for path in several(options.identity))
    configured = found.paths("identityfile")
    if configured:
        return tuple(dict.fromkeys(path for path in configured if path.lower() != "none"))
    defaults = (expand(f"~/.ssh/{name}") for name in _DEFAULT_KEYS)
    # The private key may be in an agent alone, and only its public key or certificate in a file.
    return tuple(path for path in defaults if any(os.path.exists(path + end) for end in ("", ".pub", "-cert.pub")))


def _certificates(options: SSHOptions, found: Settings) -> tuple[str, ...]:
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


def _hops(options: SSHOptions, found: Settings) -> tuple[Hop, ...]:
    if options.jump is None:
        return found.hops()
    try:
        return parse_jump(options.jump)
    except ValueError as exc:
        raise ConfigurationError(f"The option jump: {exc}.", location=Location("SSHOptions(jump=...)")) from None


def _alive_interval(options: SSHOptions, found: Settings) -> float:
    if options.keepalive_interval is not None:
        return options.keepalive_interval
    return found.seconds("serveraliveinterval", _ALIVE_INTERVAL)  # a configured 0 is meant


def _agent(options: SSHOptions, found: Settings) -> str | None:
    if options.pkey is not None or options.agent is False:
        return None
    if options.agent is not None and not isinstance(options.agent, bool):
        return expand(options.agent)
    configured = found.text("identityagent")
    if options.agent is None and configured:
        if configured.lower() == "none":
            return None
        if configured.startswith("$") and not configured.startswith("${"):
            return os.environ.get(configured[1:]) or None
        if configured != _ENVIRONMENT:
            return found.path("identityagent")
    return os.environ.get(_ENVIRONMENT) or None


def _known_hosts(options: SSHOptions, found: Settings) -> tuple[str | bytes, ...]:
    if options.known_hosts is not None:
        return tuple(one if isinstance(one, bytes) else expand(one) for one in several(options.known_hosts))
    own = found.list_of_paths("userknownhostsfile") or [expand(path) for path in _USER_KNOWN_HOSTS]
    shared = [expand(path) for path in found.words("globalknownhostsfile")] or _GLOBAL_KNOWN_HOSTS  # without tokens
    return tuple(path for path in (*own, *shared) if path.lower() != "none")


def _learns_into(options: SSHOptions, found: Settings) -> str | None:
    """Return the first file of the user's own, as for ssh."""
    if options.known_hosts is not None:
        return next((expand(one) for one in several(options.known_hosts) if not isinstance(one, bytes)), None)
    words = found.list_of_paths("userknownhostsfile") or [expand(path) for path in _USER_KNOWN_HOSTS]
    return next((word for word in words if word.lower() != "none"), None)
