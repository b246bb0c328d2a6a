"""Keepalives (ServerAliveInterval): a dead connection is detected, a slow one is kept."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import RemotePeer, Retry, SSHOptions
from peerstage.errors import ConnectionLost
from peerstage.ssh.config.resolve import resolve_destination
from peerstage.ssh.keepalive import Keepalive
from support.clock import Clock
from support.logins import open_session
from support.ssh_server import Policy, listening, options_for, paramiko_handler
from support.sshd import Sshd
from support.waiting import wait_until


def make_keepalive(interval: float, max_unanswered: int) -> tuple[Keepalive, Clock, list[float]]:
    """Return a keepalive, its clock, and the times at which it sends requests."""
    clock, sent_at = Clock(), list[float]()
    return Keepalive(interval, max_unanswered, lambda: sent_at.append(clock.now), clock), clock, sent_at


def test_request_per_interval_and_failure_after_the_last() -> None:
    keepalive, clock, sent_at = make_keepalive(15, 3)
    for tenth in range(600):
        clock.now = tenth / 10
        keepalive.on_idle()
    assert sent_at == [15, 30, 45]
    clock.now = 60
    with pytest.raises(paramiko.SSHException, match="sent nothing for 60 s"):
        keepalive.on_idle()


def test_received_data_restarts_the_interval() -> None:
    keepalive, clock, sent_at = make_keepalive(15, 1)
    for second in range(200):
        clock.now = second
        keepalive.on_idle()
        if second % 20 == 0:
            keepalive.on_received()
    assert len(sent_at) == 10


def test_interval_is_configurable_and_0_disables_it(tmp_path: Path) -> None:
    file = tmp_path / "config"
    table = [
        ("", {}, (15.0, 3)),
        ("ServerAliveInterval 60\nServerAliveCountMax 5\n", {}, (60.0, 5)),
        ("ServerAliveInterval 1m\n", {}, (60.0, 3)),
        ("ServerAliveInterval 0\n", {}, (0.0, 3)),
        ("ServerAliveInterval 60\n", {"keepalive_interval": 0, "keepalive_count": 0}, (0, 0)),
        ("ServerAliveInterval 60\n", {"keepalive_interval": 2.5}, (2.5, 3)),
    ]
    for text, options, expected in table:
        file.write_text(text)
        found = resolve_destination("db1", "backup", SSHOptions(config=str(file), **options))  # type: ignore[arg-type]
        assert (found.server_alive_interval, found.server_alive_count_max) == expected


def test_peer_that_answers_stays_connected(leaves_nothing: None, own_sshd: Callable[..., Sshd]) -> None:
    server = own_sshd(extra="LogLevel DEBUG1")
    options = server.options(keepalive_interval=0.1, keepalive_count=1)
    with open_session(server.host, server.user, options) as (session, _):
        wait_until(lambda: server.log.count("keepalive@openssh.com") >= 10)
        session.open_subsystem("sftp").close()


@contextlib.contextmanager
def stop(server: Sshd) -> Iterator[None]:
    """Stop the server's processes for its connections, until the block ends."""
    stopped = server.sessions()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def count_silences(session: Any) -> list[None]:
    """Return a list that grows by one with each read that times out (0.1 s)."""
    packets, silences = session._transport.packetizer, list[None]()
    need_rekey = packets.need_rekey
    packets.need_rekey = lambda: silences.append(None) or need_rekey()
    return silences


@pytest.mark.parametrize("interval", [0.2, 0])
def test_stopped_peer_is_given_up_unless_disabled(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], interval: float
) -> None:
    server = own_sshd()
    options = server.options(keepalive_interval=interval, keepalive_count=2)
    with open_session(server.host, server.user, options) as (session, _):
        stream = session.open_subsystem("sftp")
        with stop(server):
            if interval:
                started = time.monotonic()
                with pytest.raises(ConnectionLost, match="sent nothing for"):
                    stream.receive()
                assert time.monotonic() - started < 5
            else:
                silences = count_silences(session)
                wait_until(lambda: len(silences) >= 10)
                stream.send(b"\0")


def test_stopped_peer_is_given_up_during_a_rekey(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("RekeyLimit default 1\n")
    server = own_sshd()
    options = server.options(keepalive_interval=1.0, keepalive_count=2, config=str(tmp_path / "config"))
    with open_session(server.host, server.user, options) as (session, watchdog):
        stream = session.open_subsystem("sftp")
        started = time.monotonic()
        with stop(server), watchdog.phase("answer at all", 15):
            with pytest.raises(ConnectionLost, match="sent nothing for 3 s"):
                stream.receive()
            assert time.monotonic() - started < 10


def test_stage_continues_on_a_new_connection(own_sshd: Callable[..., Sshd], collect: Path, target: Path) -> None:
    server = own_sshd()
    (collect / "a").write_bytes(b"a")
    ssh = server.options(keepalive_interval=0.2, keepalive_count=1)
    with RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=ssh, retry=Retry(delay=0.1)) as peer:
        peer.checkCollectIndicator()
        with stop(server):
            assert peer.stagePeer(str(target)) == 1
    assert peer.last_report is not None
    assert peer.last_report.retries == 1


@pytest.mark.usefixtures("patience")
def test_request_demands_a_reply_and_is_not_sent_to_a_busy_peer() -> None:
    key = paramiko.ECDSAKey.generate()
    requests: list[str] = []

    class Listens(Policy):
        """Records global requests, and sends data on its channel for a second."""

        def check_global_request(self, kind: str, msg: paramiko.Message) -> bool:
            requests.append(kind)
            return False

        def serve(self, channel: paramiko.Channel) -> None:
            for _ in range(20):
                channel.sendall(b"x")
                time.sleep(0.05)

    with listening(paramiko_handler(Listens, key=key)) as port:
        ssh = options_for(port, key, pkey=paramiko.ECDSAKey.generate(), keepalive_interval=0.3)
        with open_session("127.0.0.1", "backup", ssh) as (session, _):
            stream = session.open_subsystem("sftp")
            until = time.monotonic() + 0.8
            while time.monotonic() < until:
                stream.receive()
            assert requests == []
            wait_until(lambda: requests)
            assert set(requests) == {"keepalive@openssh.com"}
