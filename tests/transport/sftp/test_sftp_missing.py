"""The fallback to SCP opens its channel after the one of the SFTP subsystem is closed; dropbear confuses them."""

from __future__ import annotations

import threading

import paramiko
import pytest

from peerstage import RemotePeer
from support.ssh_server import Policy, listening, options_for, paramiko_handler

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class ClosesChannelLate(Policy):
    """Accepts the SFTP subsystem, whose program has ended, and refuses commands until it has closed that channel."""

    def __init__(self) -> None:
        self.channels = 0
        self.is_free = False
        self._opened_another = threading.Event()

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self.channels += 1
        if self.channels > 1:
            self._opened_another.set()
        return paramiko.OPEN_SUCCEEDED

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        threading.Thread(target=self.end, args=(channel,), daemon=True).start()
        return True

    def end(self, channel: paramiko.Channel) -> None:
        channel.shutdown_write()
        if not self._opened_another.wait(0.3):
            self.is_free = True
            channel.close()

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return self.is_free and super().check_channel_exec_request(channel, command)

    def serve(self, channel: paramiko.Channel) -> None:
        channel.sendall(b"C0644 0 cback.collect\n\0")
        channel.send_exit_status(0)
        channel.close()


class NeverClosesChannel(ClosesChannelLate):
    """Sends EOF on the channel of the subsystem, and keeps it open."""

    def end(self, channel: paramiko.Channel) -> None:
        self.is_free = True
        channel.shutdown_write()


def finds_indicator(policy: type[Policy]) -> bool:
    host_key = paramiko.ECDSAKey.generate()
    with listening(paramiko_handler(policy, key=host_key)) as port:
        ssh = options_for(port, host_key, pkey=paramiko.ECDSAKey.generate())
        return RemotePeer("127.0.0.1", "/collect", "/tmp", "backup", ssh=ssh).checkCollectIndicator()


def test_scp_waits_until_the_server_has_closed_the_channel_of_sftp() -> None:
    assert finds_indicator(ClosesChannelLate)


def test_scp_does_not_wait_for_long_for_a_server_that_never_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerstage.transport.sftp.sftp_transport._CLOSE_CHECKS", 3)
    assert finds_indicator(NeverClosesChannel)
