"""Requests that stay unanswered while a channel is opened are retried on a new connection."""

from __future__ import annotations

import contextlib
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
from support.ssh_server import Policy, listening, options_for, paramiko_handler

pytestmark = pytest.mark.usefixtures("leaves_nothing")
QUICK = Limits(reply_timeout=0.5, deadline=20.0)


class Server:
    """Leaves one kind of request unanswered on the first connections, and refuses all requests on later ones.

    Attributes:
        connections: How many there were.
    """

    def __init__(self, unanswered: str, *, first: int = 1) -> None:
        self.key = paramiko.ECDSAKey.generate()
        self.connections = 0
        self.ended = threading.Event()
        server = self

        class LeavesUnanswered(Policy):
            """Sends no reply to that kind of request."""

            def __init__(self) -> None:
                server.connections += 1
                self.is_silent = server.connections <= first

            def answer(self, kind: str) -> bool:
                if self.is_silent and kind == unanswered:
                    server.ended.wait(30)
                return False

            def check_channel_request(self, kind: str, chanid: int) -> int:
                self.answer("channel")
                return paramiko.OPEN_SUCCEEDED

            def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
                return self.answer("subsystem")

            def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
                return self.answer("command")

        self._policy = LeavesUnanswered

    @contextlib.contextmanager
    def peer(self, transport: str, **options: Any) -> Iterator[RemotePeer]:
        with listening(paramiko_handler(self._policy, key=self.key)) as port:
            ssh = options_for(port, self.key, pkey=paramiko.ECDSAKey.generate())
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
    ("transport", "unanswered"), [("sftp", "channel"), ("sftp", "subsystem"), ("scp", "channel"), ("scp", "command")]
)
def test_unanswered_request_is_retried_on_a_new_connection(transport: str, unanswered: str, target: Path) -> None:
    server = Server(unanswered)
    with (
        server.peer(transport) as peer,
        pytest.raises(RemoteError, match=r"no sftp subsystem|not let this login run commands"),
    ):
        peer.stagePeer(str(target))
    assert server.connections == 2


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(("transport", "unanswered"), [("sftp", "channel"), ("sftp", "subsystem"), ("scp", "command")])
def test_peer_that_never_answers_is_given_up(transport: str, unanswered: str, target: Path) -> None:
    server = Server(unanswered, first=10)
    with server.peer(transport) as peer, pytest.raises(LimitExceeded, match=r"did not .* within 0\.5 s"):
        peer.stagePeer(str(target))
    assert server.connections == 2


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("unanswered", ["channel", "subsystem"])
def test_reply_timeout_applies_to_the_callers_connection(unanswered: str, target: Path) -> None:
    server = Server(unanswered)
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
