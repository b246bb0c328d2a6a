"""Peers *db1* that servers of this process are, each broken in its way."""

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
from support.ssh_server import Handler, listening, made_of_paramiko

#: Has a peer *db1* be there for a while; yields arguments of a `RemotePeer`.
Case = Callable[[Master, Path], contextlib.AbstractContextManager[dict[str, Any]]]


class Unwilling(ServesFiles):
    """Lets nobody in."""

    check_auth_publickey = ssh_server.RefusesEverybody.check_auth_publickey


class Leaves(ServesFiles):
    """Ends the connection where it is asked for SFTP."""

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        channel.get_transport().close()
        return False


def served_by(handler: Callable[[Master], Handler], *settings: str, known: bool = True, **changes: Any) -> Case:
    """A peer *db1* that a server of this process is."""

    @contextlib.contextmanager
    def case(master: Master, collect: Path) -> Iterator[dict[str, Any]]:
        with listening(handler(master)) as port:
            master.learn("db1", port, *settings, known=known)
            yield changes

    return case


def serves(master: Master) -> Handler:
    """Return a handler that serves files as it should."""
    return serves_files(master.key)


@contextlib.contextmanager
def refuses_connections(master: Master, collect: Path) -> Iterator[dict[str, Any]]:
    """A peer on whose port nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        master.learn("db1", sock.getsockname()[1])
        yield {}


def peer_of(master: Master, collect: Path, **changes: Any) -> RemotePeer:
    """Return the peer *db1*, which tries again once, and at once."""
    values = {"ssh": master.options(), "retry": Retry(tries=2, delay=0), **changes}
    return RemotePeer("db1", **{"collectDir": str(collect), "workingDir": "/tmp", "remoteUser": "backup", **values})


def error_of(operation: Callable[[], object]) -> StageError | None:
    """Return the error that *operation* raises."""
    try:
        operation()
    except StageError as exc:
        return exc
    return None


#: How a peer is broken, what each method then fails with, and how loudly a check says so.
BROKEN: dict[str, tuple[Case, type[StageError], int]] = {
    "down": (refuses_connections, ConnectError, logging.WARNING),
    "hangs up": (served_by(lambda master: ssh_server.closes_at_once), ConnectError, logging.WARNING),
    "leaves": (served_by(lambda master: serves_files(master.key, Leaves)), ConnectionLost, logging.WARNING),
    "no directory": (served_by(serves, collectDir="/no/such"), RemoteNotFound, logging.WARNING),
    "another key": (
        served_by(lambda master: serves_files(paramiko.ECDSAKey.generate())),
        ChangedHostKey,
        logging.ERROR,
    ),
    "unknown key": (served_by(serves, known=False), UnknownHostKey, logging.ERROR),
    "no login": (served_by(lambda master: serves_files(master.key, Unwilling)), LoginError, logging.ERROR),
    "configuration": (served_by(serves, "CanonicalizeHostname yes"), ConfigurationError, logging.ERROR),
    "protocol": (
        served_by(lambda master: made_of_paramiko(ssh_server.IgnoresTheWindow, key=master.key)),
        ProtocolError,
        logging.ERROR,
    ),
}
