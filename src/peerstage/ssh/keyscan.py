"""Fetch a host's key without logging in: the key exchange of a stage, and nothing after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from peerstage.errors import HostKeyError, Location
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.connect.client_connection import open_client_connection
from peerstage.ssh.hostkeys.verifier import HostKeyVerifier, TrustedKey
from peerstage.ssh.options import SSHOptions
from peerstage.ssh.session import Session
from peerstage.watchdog import Watchdog


class ScannedHost(NamedTuple):
    """The key that a host presented, with proof of its private key, and what known_hosts says about it.

    Attributes:
        presented_key: The key or certificate in the SSH wire format: the one that a stage would see, or the wanted one.
        trusted: Why the key is trusted; None if it is not.
        error: Why the key is not trusted; None if it is.
        conflicting_line: The line of known_hosts to correct if the key is right, if any.
        is_new_host: Whether no known_hosts file has a key of the host.
        unwanted_keys: Every key that the host presented, if none of them is wanted; `presented_key` is the first.
    """

    presented_key: bytes
    trusted: TrustedKey | None
    error: HostKeyError | None
    conflicting_line: Location | None
    is_new_host: bool
    unwanted_keys: tuple[bytes, ...]


def scan_host_key(
    destination: Destination,
    options: SSHOptions,
    *,
    watchdog: Watchdog,
    is_wanted: Callable[[bytes], bool] | None = None,
) -> ScannedHost:
    """Return the key that the host at *destination* presents, without logging in there; jump hosts need a login.

    Nothing is sent after the key exchange, and no file is written. For the other arguments and the errors see
    `Session.connect`: those about host key and login come from jump hosts only.

    Args:
        destination: The host.
        options: The options that *destination* was resolved from.
        is_wanted: Returns whether to accept a public key. A new host is asked for each of its keys, on a connection
            each, until one is wanted. A known host is not: an attacker who intercepted the first connection could relay
            the next one to the real host.
    """
    watchdog.reset()
    verifier = HostKeyVerifier.read(destination)
    if is_wanted is not None and verifier.is_new_host:
        verifier.search_for(is_wanted)
    connection = open_client_connection(
        destination, options, verifier, watchdog=watchdog, connect_session=Session.connect
    )
    connection.close()
    key = connection.transport.presented_key
    unwanted_keys = tuple(verifier.unwanted_keys) if key in verifier.unwanted_keys else ()
    if unwanted_keys:
        key = unwanted_keys[0]
    try:
        return ScannedHost(key, verifier.check(key), None, None, verifier.is_new_host, unwanted_keys)
    except HostKeyError as exc:
        return ScannedHost(key, None, exc, verifier.conflicting_line(key), verifier.is_new_host, unwanted_keys)
