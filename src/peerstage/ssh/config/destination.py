"""`Destination`: everything that is needed to connect to a peer and to log in."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from peerstage.peer_log import PeerLog
from peerstage.ssh.algorithms import Algorithms
from peerstage.ssh.config.config_line import ConfigLine
from peerstage.ssh.config.proxy_jump import Hop


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """How to reach and authenticate one host. See `resolve_destination`.

    Attributes:
        name: The peer's name, as given.
        label: The start of each log line: the peer's name; for a jump host, the peer's name and its own.
        user: The user to log in as.
        host: Name or address to connect to, after HostName.
        host_key_name: Name and port to look up in known_hosts: HostKeyAlias, or the host and its port.
        port: TCP port.
        identities: Paths of private keys, in the order to try them.
        explicit_identities: Whether `SSHOptions` named them.
        certificates: Paths of user certificates, in the order to try them.
        identities_only: Whether to try only those keys of the agent that `identities` name (IdentitiesOnly).
        agent_socket: Path of the agent's socket, None for no agent.
        known_hosts: Paths of known_hosts files, or their content, in order.
        address_family: Address family to connect with.
        bind_address: Local address or name to connect from, None for any.
        connection_attempts: Number of attempts to connect, a second apart.
        connect_timeout: Seconds for name lookup, connection and key exchange, for each attempt.
        server_alive_interval: Seconds of silence before a keepalive is sent; 0 for never.
        server_alive_count_max: Keepalives that may stay unanswered.
        hops: Jump hosts, the nearest first.
        proxy_command: Command to connect through, its tokens expanded; None for none.
        pinned_fingerprint: Fingerprint that the host key must have, None if known_hosts decides.
        accept_new: Whether the key of an unknown host is added to known_hosts.
        new_keys_file: The known_hosts file to add new keys to, None if there is none.
        hash_known_hosts: Whether to hash the names that are added (HashKnownHosts).
        algorithms: Algorithms to offer, and limits for key re-exchange.
        min_rsa_bits: Smallest RSA key to accept, for hosts and users (RequiredRSASize).
        config_files: Paths of the configuration files that `SSHOptions` names; None for those that ssh reads.
        configured_paths: By path: the configuration line that names an identity, a certificate or the agent's socket.
            Default paths and paths from options are absent.
    """

    name: str
    label: str
    user: str
    host: str
    host_key_name: tuple[str, int]
    port: int
    identities: tuple[str, ...]
    explicit_identities: bool
    certificates: tuple[str, ...]
    identities_only: bool
    agent_socket: str | None
    known_hosts: tuple[str | bytes, ...]
    address_family: socket.AddressFamily
    bind_address: str | None
    connection_attempts: int
    connect_timeout: float
    server_alive_interval: float
    server_alive_count_max: int
    hops: tuple[Hop, ...]
    proxy_command: str | None
    pinned_fingerprint: str | None
    accept_new: bool
    new_keys_file: str | None
    hash_known_hosts: bool
    algorithms: Algorithms
    min_rsa_bits: int
    config_files: tuple[str, ...] | None = None
    configured_paths: Mapping[str, ConfigLine] = field(default_factory=dict)

    @property
    def log(self) -> PeerLog:
        """A logger for the connection."""
        return PeerLog("peerstage.ssh", self.label)
