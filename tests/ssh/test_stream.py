"""A stream, over a server of paramiko."""

from __future__ import annotations

import contextlib

import paramiko
import pytest

from peerstage.errors import ConnectionLost
from support.logins import open_session
from support.ssh_server import Policy, listening, options_for, paramiko_handler
from support.waiting import wait_until

KEY = paramiko.ECDSAKey.generate()


class SendsAndCloses(Policy):
    """Sends a greeting on the channel of a command, and closes the connection."""

    def serve(self, channel: paramiko.Channel) -> None:
        channel.sendall(b"data")
        channel.get_transport().close()


def test_what_arrived_before_the_connection_ended_is_received_although_a_later_send_failed() -> None:
    with (
        listening(paramiko_handler(SendsAndCloses, key=KEY)) as port,
        open_session("127.0.0.1", "backup", options_for(port, KEY, pkey=KEY)) as (session, _),
    ):
        stream = session.open_command(b"true")
        wait_until(lambda: stream.is_closed)
        stream.send(b"request")
        assert bytes(stream.receive()) == b"data"
        with pytest.raises(ConnectionLost):
            stream.receive()
        with pytest.raises(ConnectionLost):
            stream.send(b"request")


class SendsUntilTheEnd(Policy):
    """Sends data on the channel of a command as long as the connection lasts."""

    def serve(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                channel.sendall(b"x" * 100_000)


def test_a_closed_session_keeps_no_data_that_was_not_received() -> None:
    with (
        listening(paramiko_handler(SendsUntilTheEnd, key=KEY)) as port,
        open_session("127.0.0.1", "backup", options_for(port, KEY, pkey=KEY)) as (session, _),
    ):
        stream = session.open_command(b"true")
        assert bytes(stream.receive())[:1] == b"x"
        channel = stream._channel
        wait_until(channel.recv_ready)
        session.close()
        assert not channel.recv_ready()
