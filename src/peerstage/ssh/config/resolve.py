"""Resolve a peer's name to a `Destination`: `SSHOptions` override ssh's configuration.

A keyword that affects the destination or its trust and is not supported is an error with file and line number, so that
no wrong host is ever contacted.
"""

from __future__ import annotations

import dataclasses
import math
import os
import socket
from collections.abc import Iterable

from peerstage.errors import ConfigurationError, Location
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.ssh._paramiko.client_transport import supported_algorithms
from peerstage.ssh.algorithms import REKEY_BYTES, REKEY_SECONDS, Algorithms, filter_algorithms
from peerstage.ssh.config.config_line import ConfigLine, config_error, located
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.config.parse_values import ADDRESS_FAMILIES, HOST_KEY_CHECKING, parse_rekey_limit
from peerstage.ssh.config.proxy_jump import Hop, parse_jump
from peerstage.ssh.config.read_config import ConfigFile, read_ssh_config
from peerstage.ssh.config.ssh_config import SSHConfig
from peerstage.ssh.options import SSHOptions, as_tuple, expand_home
from peerstage.watchdog import Watchdog

_SYSTEM_DIRECTORY = "/etc/ssh"
_DEFAULT_KEYS = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk")
_USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")

#: Defaults for an unattended run, in seconds and as a count. ssh's defaults (the system's TCP timeout, no keepalives)
#: suit a user at a terminal.
_CONNECT_TIMEOUT = 15.0
_SERVER_ALIVE_INTERVAL = 15.0
_SERVER_ALIVE_COUNT_MAX = 3
#: The variable that names the agent's socket, also as an argument of IdentityAgent.
_SSH_AUTH_SOCK = "SSH_AUTH_SOCK"
#: The smallest RSA key that RequiredRSASize can permit, as for ssh.
_MIN_RSA_BITS = 1024
#: As ssh limits RekeyLimit for AES: 2^32 blocks (RFC 4344, 3.2).
_MAX_REKEY_BYTES = 1 << 36
#: Upper bound for ConnectionAttempts; ssh has none.
_MAX_ATTEMPTS = 1000

#: Unsupported keywords that affect the destination or its trust, with their harmless arguments.
_UNSUPPORTED = {
    "CanonicalizeHostname": ("no", "false"),
    "KnownHostsCommand": ("none",),
    "RevokedHostKeys": ("none",),
    "NoHostAuthenticationForLocalhost": ("no", "false"),
    "ProxyUseFdpass": ("no", "false"),
    "BindInterface": (),
}
#: Unsupported keywords that would add keys to log in with, with their harmless arguments.
_UNSUPPORTED_KEYS = {"PKCS11Provider": ("none",), "SecurityKeyProvider": ("none", "internal", "$ssh_sk_provider")}


def resolve_destination(
    name: str, user: str | None, options: SSHOptions, *, watchdog: Watchdog | None = None, label: str = ""
) -> Destination:
    """Return how to reach *user* at *name*, without connecting.

    Args:
        name: A host name, an address, or an alias.
        user: The user to log in as; None for the configured one, or else the user who runs this process.
        options: Settings that override ssh's configuration.
        watchdog: Interrupts the commands of ``Match exec``.
        label: The start of each log line, if not *name*.

    Raises:
        ConfigurationError: If the configuration or the options are invalid or ask for something unsupported; with file
            and line number.
        LimitExceeded, Cancelled: If the watchdog interrupted a command.
        StageError: If this process or machine is out of descriptors or memory, or its disk fails.
    """
    config = read_config(name, user, options, watchdog=watchdog, label=label or name)
    _reject_unsupported(config)
    host = config.host if config.first("hostname") is not None else name
    port = config.port or 22
    hops = jump_hosts(config) if options.jump is None else _jump_option(options.jump)
    alias = config.text("hostkeyalias")
    agent_socket = _agent_socket(options, config)
    checking = options.host_key or config.choice("stricthostkeychecking", HOST_KEY_CHECKING, "yes")
    if checking == "lax":
        config.log.info("StrictHostKeyChecking is treated as yes: unknown host keys are rejected.")
    return Destination(
        name=name,
        label=label or name,
        user=config.user,
        host=host,
        host_key_name=(alias, 22) if alias else (host, port),
        port=port,
        identities=_identities(options, config),
        explicit_identities=options.identity is not None,
        certificates=_certificates(options, config),
        identities_only=config.flag("identitiesonly"),
        agent_socket=agent_socket,
        known_hosts=_known_hosts(options, config),
        address_family=config.choice("addressfamily", ADDRESS_FAMILIES, socket.AF_UNSPEC),
        bind_address=config.text("bindaddress") or None,
        connection_attempts=connection_attempts(config),
        connect_timeout=options.connect_timeout or config.seconds("connecttimeout", 0.0) or _CONNECT_TIMEOUT,
        server_alive_interval=options.keepalive_interval
        if options.keepalive_interval is not None
        else config.seconds("serveraliveinterval", _SERVER_ALIVE_INTERVAL),  # a configured 0 disables keepalives
        server_alive_count_max=options.keepalive_count
        if options.keepalive_count is not None
        else config.number("serveralivecountmax", _SERVER_ALIVE_COUNT_MAX),
        algorithms=configured_algorithms(config),
        hops=hops,
        proxy_command=None if hops else _proxy_command(config),
        pinned_fingerprint=checking if checking.startswith("SHA256:") else None,
        accept_new=checking == "accept-new",
        new_keys_file=_new_keys_file(options, config),
        hash_known_hosts=config.flag("hashknownhosts"),
        min_rsa_bits=max(_MIN_RSA_BITS, config.number("requiredrsasize", _MIN_RSA_BITS)),
        config_files=None if options.config is None else tuple(expand_home(path) for path in as_tuple(options.config)),
        configured_paths=_configured_paths(options, config, agent_socket),
    )


def read_config(
    name: str, user: str | None, options: SSHOptions, *, watchdog: Watchdog | None = None, label: str = ""
) -> SSHConfig:
    """Return ssh's configuration for *user* at *name*. See `resolve_destination`."""
    base = expand_home("~/.ssh")
    if options.config is not None:
        paths = (expand_home(path) for path in as_tuple(options.config))
        files = [ConfigFile(path, is_required=True, is_private=False, include_base=base) for path in paths]
    else:
        system = f"{_SYSTEM_DIRECTORY}/ssh_config"
        files = [
            ConfigFile(os.path.join(base, "config"), is_required=False, is_private=True, include_base=base),
            ConfigFile(system, is_required=False, is_private=False, include_base=_SYSTEM_DIRECTORY),
        ]
    return read_ssh_config(files, name, user, options.port, options.jump, watchdog, label)


def hop_options(options: SSHOptions, hop: Hop, earlier: tuple[Hop, ...]) -> SSHOptions:
    """Return the options for a jump host: keys, agent, configuration and known_hosts are the peer's.

    Args:
        options: The peer's options.
        hop: The jump host.
        earlier: The jump hosts before it; if empty, the ProxyJump or ProxyCommand of its own configuration applies.
    """
    return dataclasses.replace(
        options,
        port=hop.port,
        jump=",".join(map(str, earlier)) or None,
        host_key=None if (options.host_key or "").startswith("SHA256:") else options.host_key,
        password=None,
        elevate=None,
    )


# Keywords that need more than a typed value.


def _reject_unsupported(config: SSHConfig) -> None:
    refused = config.first("refuseconnection")
    if refused is not None:
        raise config_error(refused, f"RefuseConnection: {' '.join(refused.arguments)!r}")
    for keyword, harmless in _UNSUPPORTED.items():
        line = config.first(keyword.lower())
        if line is not None and not _is_harmless(line, harmless):
            raise config_error(line, f"{keyword} is not supported", Reason.UNSUPPORTED_KEYWORD)
    for keyword, harmless in _UNSUPPORTED_KEYS.items():
        line = config.first(keyword.lower())
        if line is not None and not _is_harmless(line, harmless):
            config.log.info("%s is ignored; its keys are not used.", keyword)


def _is_harmless(line: ConfigLine, harmless: tuple[str, ...]) -> bool:
    return " ".join(line.arguments).lower() in harmless


def connection_attempts(config: SSHConfig) -> int:
    """Return ConnectionAttempts, at most `_MAX_ATTEMPTS`.

    Raises:
        ConfigurationError: If it is 0, which ssh rejects.
    """
    line = config.first("connectionattempts")
    number = config.number("connectionattempts", 1)
    if line is not None and not number:
        raise config_error(line, "ConnectionAttempts must be at least 1")
    return min(number, _MAX_ATTEMPTS)


def jump_hosts(config: SSHConfig) -> tuple[Hop, ...]:
    """Return the configured jump hosts.

    Raises:
        ConfigurationError: If ProxyJump is invalid.
    """
    line = config.first("proxyjump")
    if line is None:
        return ()
    with located(line):
        return parse_jump(config.expand_proxy(line))


def _jump_option(jump: str) -> tuple[Hop, ...]:
    try:
        return parse_jump(jump)
    except ValueError as exc:
        raise ConfigurationError(f"The option jump: {exc}.", location=Location("SSHOptions(jump=...)")) from None


def _proxy_command(config: SSHConfig) -> str | None:
    line = config.first("proxycommand")
    return None if line is None or line.arguments[0].lower() == "none" else config.expand_proxy(line)


def configured_algorithms(config: SSHConfig) -> Algorithms:
    """Return the algorithms to offer, and the limits for key re-exchange.

    Raises:
        ConfigurationError: If a list selects no supported algorithm.
    """
    supported = supported_algorithms()
    limits = [parse_rekey_limit(line) for line in config.lines.get("rekeylimit", [])]
    size = limits[0].size if limits else 0
    times = [limit.seconds for limit in limits if limit.seconds is not None] or [REKEY_SECONDS]
    seconds = next((time for time in times if time < math.inf), 0.0)  # a later line may replace "none"
    return Algorithms(
        ciphers=_select(config, "ciphers", supported.ciphers),
        macs=_select(config, "macs", supported.macs),
        kex=_select(config, "kexalgorithms", supported.kex),
        host_keys=_select(config, "hostkeyalgorithms", supported.host_keys, patterns=True),
        is_host_key_order_fixed=not config.text("hostkeyalgorithms", "+").startswith(("+", "-")),
        ca_signatures=_select(config, "casignaturealgorithms", supported.ca_signatures, patterns=True),
        pubkey_accepted=_select(config, "pubkeyacceptedalgorithms", supported.pubkey_accepted, patterns=True),
        rekey_bytes=min(size or REKEY_BYTES, _MAX_REKEY_BYTES),
        rekey_seconds=seconds or None,
    )


def _select(config: SSHConfig, keyword: str, supported: tuple[str, ...], *, patterns: bool = False) -> tuple[str, ...]:
    line = config.first(keyword)
    if line is None:
        return supported
    selected, ignored = filter_algorithms(line.arguments[0], supported, patterns=patterns)
    if not selected:
        raise config_error(line, f"{line.keyword} selects no supported algorithm; supported are {', '.join(supported)}")
    if ignored:
        config.log.info(
            "%s: ignored unsupported or weak algorithms: %s.", escape(str(line)), escape(", ".join(ignored))
        )
    return selected


# Paths: an option, the configuration, or the default.


def _identities(options: SSHOptions, config: SSHConfig) -> tuple[str, ...]:
    if options.pkey is not None:
        return ()
    if options.identity is not None:
        return tuple(expand_home(path) for path in as_tuple(options.identity))
    configured = config.paths("identityfile")
    if configured:
        return _without_none(dict.fromkeys(configured))
    defaults = (expand_home(f"~/.ssh/{name}") for name in _DEFAULT_KEYS)
    # The private key may be in an agent only, and its public key or certificate in a file.
    return tuple(path for path in defaults if any(os.path.exists(path + end) for end in ("", ".pub", "-cert.pub")))


def _certificates(options: SSHOptions, config: SSHConfig) -> tuple[str, ...]:
    if options.certificate is not None:
        return (expand_home(options.certificate),)
    return _without_none(config.paths("certificatefile"))


def _agent_socket(options: SSHOptions, config: SSHConfig) -> str | None:
    if options.pkey is not None or options.agent is False:
        return None
    if options.agent is not None and not isinstance(options.agent, bool):
        return expand_home(options.agent)
    configured = config.text("identityagent")
    if options.agent is None and configured:
        if configured.lower() == "none":
            return None
        if configured.startswith("$") and not configured.startswith("${"):
            return os.environ.get(configured[1:]) or None
        if configured != _SSH_AUTH_SOCK:
            return config.paths("identityagent")[0]
    return os.environ.get(_SSH_AUTH_SOCK) or None


def _known_hosts(options: SSHOptions, config: SSHConfig) -> tuple[str | bytes, ...]:
    if options.known_hosts is not None:
        return tuple(file if isinstance(file, bytes) else expand_home(file) for file in as_tuple(options.known_hosts))
    line = config.first("globalknownhostsfile")  # which has no tokens
    shared = _GLOBAL_KNOWN_HOSTS if line is None else tuple(expand_home(path) for path in line.arguments)
    return _without_none([*_user_known_hosts(config), *shared])


def _new_keys_file(options: SSHOptions, config: SSHConfig) -> str | None:
    """Return the first known_hosts file of the user, as ssh does."""
    if options.known_hosts is not None:
        return next((expand_home(path) for path in as_tuple(options.known_hosts) if not isinstance(path, bytes)), None)
    return next(iter(_without_none(_user_known_hosts(config))), None)


def _user_known_hosts(config: SSHConfig) -> list[str]:
    return config.paths("userknownhostsfile") or [expand_home(path) for path in _USER_KNOWN_HOSTS]


def _without_none(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(path for path in paths if path.lower() != "none")


def _configured_paths(options: SSHOptions, config: SSHConfig, agent_socket: str | None) -> dict[str, ConfigLine]:
    """Return the lines that name keys, certificates and the agent's socket, unless an option overrides them."""
    keywords = []
    if options.identity is None and options.pkey is None:
        keywords.append("identityfile")
    if options.certificate is None:
        keywords.append("certificatefile")
    paths: dict[str, ConfigLine] = {}
    for keyword in keywords:
        for line in config.lines.get(keyword, []):
            paths.setdefault(config.expand_path(line, line.arguments[0]), line)
    agent = config.first("identityagent")
    if agent_socket and options.agent is None and agent is not None and agent.arguments[0] != _SSH_AUTH_SOCK:
        paths[agent_socket] = agent
    return paths
