"""Connections that swallow what is asked for while a channel is opened: another one is made, if the limits allow."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import Limits, RemotePeer, Retry, SSHOptions
from peerstage.errors import LimitExceeded, RemoteError
from support.ssh_server import Policy, listening, made_of_paramiko

pytestmark = pytest.mark.usefixtures("leaves_nothing")
QUICK = Limits(reply_timeout=0.5, deadline=20.0)


@pytest.fixture(autouse=True)
def quiet_server() -> None:
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class Server:
    """Swallows one kind of request over the first connections, and refuses all of them over later ones.

    Attributes:
        connections: How many there were.
    """

    def __init__(self, swallows: str, *, first: int = 1) -> None:
        self.key = paramiko.ECDSAKey.generate()
        self.connections = 0
        self.ended = threading.Event()
        server = self

        class Swallows(Policy):
            """Is silent when it should answer."""

            def __init__(self) -> None:
                server.connections += 1
                self.is_silent = server.connections <= first

            def answer(self, kind: str) -> bool:
                if self.is_silent and kind == swallows:
                    server.ended.wait(30)
                return False

            def check_channel_request(self, kind: str, chanid: int) -> int:
                self.answer("channel")
                return paramiko.OPEN_SUCCEEDED

            def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
                return self.answer("subsystem")

            def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
                return self.answer("command")

        self._policy = Swallows

    @contextlib.contextmanager
    def peer(self, transport: str, **options: Any) -> Iterator[RemotePeer]:
        with listening(made_of_paramiko(self._policy, key=self.key)) as port:
            known = f"[127.0.0.1]:{port} {self.key.get_name()} {self.key.get_base64()}\n".encode()
            client = paramiko.ECDSAKey.generate()
            ssh = SSHOptions(port=port, config=(), agent=False, known_hosts=known, pkey=client)
            retry = Retry(tries=2, delay=0.01)
            self.port = port
            try:
                yield RemotePeer(
                    "127.0.0.1", "/c", "/tmp", "backup", ssh=ssh, transport=transport, retry=retry, limits=QUICK
                )
            finally:
                self.ended.set()


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(
    ("transport", "swallows"),
    [("sftp", "channel"), ("sftp", "subsystem"), ("scp", "channel"), ("scp", "command")],
)
def test_another_connection_is_made_whatever_is_swallowed(transport: str, swallows: str, target: Path) -> None:
    server = Server(swallows)
    with server.peer(transport) as peer, pytest.raises(RemoteError, match=r"no sftp subsystem|run no command"):
        peer.stagePeer(str(target))
    assert server.connections == 2


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(("transport", "swallows"), [("sftp", "channel"), ("sftp", "subsystem"), ("scp", "command")])
def test_a_peer_that_swallows_over_every_connection_is_given_up(transport: str, swallows: str, target: Path) -> None:
    server = Server(swallows, first=10)
    with server.peer(transport) as peer, pytest.raises(LimitExceeded, match=r"did not .* within 0\.5 s"):
        peer.stagePeer(str(target))
    assert server.connections == 2


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("swallows", ["channel", "subsystem"])
def test_a_connection_of_the_callers_is_not_waited_for_any_longer(swallows: str, target: Path) -> None:
    server = Server(swallows)
    with server.peer("sftp") as peer, socket.create_connection(("127.0.0.1", server.port)) as sock:
        transport = paramiko.Transport(sock)
        transport.connect(username="backup", pkey=paramiko.ECDSAKey.generate())
        peer.ssh = SSHOptions(sock=transport)
        started = time.monotonic()
        with pytest.raises(LimitExceeded, match=r"within 0\.5 s"):
            peer.stagePeer(str(target))
        assert time.monotonic() - started < 10
        assert transport.is_active()
        transport.close()
        transport.join(5)
