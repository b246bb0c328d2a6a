"""Peers named *db1* whose servers run in this process and misbehave, each in one way."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko

from peerstage import RemotePeer, Retry
from peerstage.errors import (
    ChangedHostKey,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    LoginError,
    ProtocolError,
    RemoteNotFound,
    StageError,
    UnknownHostKey,
)
from support import ssh_server
from support.file_server import Master, ServesFiles, serves_files
from support.ssh_server import Handler, listening, paramiko_handler

#: Serves the peer *db1* during a block, and yields arguments for its `RemotePeer`.
PeerCase = Callable[[Master, Path], contextlib.AbstractContextManager[dict[str, Any]]]


class RefusesLogin(ServesFiles):
    """Refuses every login."""

    check_auth_publickey = ssh_server.RefusesEverybody.check_auth_publickey


class DisconnectsOnSubsystem(ServesFiles):
    """Closes the connection upon the request for the SFTP subsystem."""

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        channel.get_transport().close()
        return False


def served_by(handler: Callable[[Master], Handler], *settings: str, known: bool = True, **changes: Any) -> PeerCase:
    """Return a case whose server the handler implements; *changes* are arguments of the `RemotePeer`."""

    @contextlib.contextmanager
    def case(master: Master, collect: Path) -> Iterator[dict[str, Any]]:
        with listening(handler(master)) as port:
            master.add_host("db1", port, *settings, known=known)
            yield changes

    return case


def serves(master: Master) -> Handler:
    """Return a handler that serves files correctly."""
    return serves_files(master.key)


@contextlib.contextmanager
def refuses_connections(master: Master, collect: Path) -> Iterator[dict[str, Any]]:
    """A peer on whose port no server listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        master.add_host("db1", sock.getsockname()[1])
        yield {}


def peer_of(master: Master, collect: Path, **changes: Any) -> RemotePeer:
    """Return the peer *db1*, which retries once and immediately."""
    options = {"ssh": master.options(), "retry": Retry(tries=2, delay=0), **changes}
    return RemotePeer("db1", **{"collectDir": str(collect), "workingDir": "/tmp", "remoteUser": "backup", **options})


def error_of(operation: Callable[[], object]) -> StageError | None:
    """Return the `StageError` that *operation* raises, or None."""
    try:
        operation()
    except StageError as exc:
        return exc
    return None


#: How a peer misbehaves, the error that each method raises, and the level at which a check logs it.
BROKEN_PEERS: dict[str, tuple[PeerCase, type[StageError], int]] = {
    "down": (refuses_connections, ConnectError, logging.WARNING),
    "closes at once": (served_by(lambda master: ssh_server.closes_at_once), ConnectError, logging.WARNING),
    "disconnects": (
        served_by(lambda master: serves_files(master.key, DisconnectsOnSubsystem)),
        ConnectionLost,
        logging.WARNING,
    ),
    "no directory": (served_by(serves, collectDir="/no/such"), RemoteNotFound, logging.WARNING),
    "another key": (
        served_by(lambda master: serves_files(paramiko.ECDSAKey.generate())),
        ChangedHostKey,
        logging.ERROR,
    ),
    "unknown key": (served_by(serves, known=False), UnknownHostKey, logging.ERROR),
    "no login": (served_by(lambda master: serves_files(master.key, RefusesLogin)), LoginError, logging.ERROR),
    "configuration": (served_by(serves, "CanonicalizeHostname yes"), ConfigurationError, logging.ERROR),
    "protocol": (
        served_by(lambda master: paramiko_handler(ssh_server.IgnoresTheWindow, key=master.key)),
        ProtocolError,
        logging.ERROR,
    ),
}
