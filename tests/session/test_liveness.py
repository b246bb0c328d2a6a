"""Whether the peer lives: asked for after a silence, and believed no longer than it answers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import Limits, RemotePeer, Retry, SSHOptions
from peerstage.errors import ConnectionLost
from peerstage.session.config import resolve_destination
from peerstage.session.liveness import Liveness
from peerstage.session.session import Session
from peerstage.session.watchdog import Watchdog
from support.ssh_server import Policy, listening, made_of_paramiko
from support.sshd import Sshd
from support.waiting import wait_until


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def liveness(interval: float, count: int) -> tuple[Liveness, Clock, list[float]]:
    clock = Clock()
    asked: list[float] = []

    return Liveness(interval, count, lambda: asked.append(clock.now), clock), clock, asked


def test_the_peer_is_asked_after_each_interval_and_given_up_one_after_the_last_question() -> None:
    alive, clock, asked = liveness(15, 3)
    for tenth in range(600):
        clock.now = tenth / 10
        alive.silent()
    assert asked == [15, 30, 45]
    clock.now = 60
    with pytest.raises(paramiko.SSHException, match="no sign of life for 60 s"):
        alive.silent()


def test_whatever_comes_is_a_sign_of_life() -> None:
    alive, clock, asked = liveness(15, 1)
    for second in range(200):
        clock.now = second
        alive.silent()
        if second % 20 == 0:
            alive.heard()
    assert len(asked) == 10


def test_a_configured_interval_is_taken_and_a_configured_0_means_never(tmp_path: Path) -> None:
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
        assert (found.alive_interval, found.alive_count) == expected


def session_of(server: Sshd, **options: object) -> tuple[Session, Watchdog]:
    limits = Limits()
    watchdog = Watchdog(limits)
    ssh = server.options(**options)
    destination = resolve_destination(server.host, server.user, ssh)
    return Session.connect(destination, ssh, limits=limits, watchdog=watchdog), watchdog


def test_a_peer_that_answers_stays_however_long_the_silence(
    leaves_nothing: None, own_sshd: Callable[..., Sshd]
) -> None:
    server = own_sshd(extra="LogLevel DEBUG1")
    session, watchdog = session_of(server, keepalive_interval=0.1, keepalive_count=1)
    wait_until(lambda: server.log.count("keepalive@openssh.com") >= 10)
    session.open_subsystem("sftp").close()
    session.close()
    watchdog.close()


def count_silences(session: Any) -> list[None]:
    """Return a list that grows by one each time that nothing has come for as long as a read waits (0.1 s)."""
    packets, silences = session._transport.packetizer, list[None]()
    need_rekey = packets.need_rekey
    packets.need_rekey = lambda: silences.append(None) or need_rekey()
    return silences


@pytest.mark.parametrize("interval", [0.2, 0])
def test_a_peer_that_is_stopped_is_given_up_unless_nobody_is_to_ask(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], interval: float
) -> None:
    server = own_sshd()
    session, watchdog = session_of(server, keepalive_interval=interval, keepalive_count=2)
    stream = session.open_subsystem("sftp")
    stopped = server.sessions()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        if interval:
            started = time.monotonic()
            with pytest.raises(ConnectionLost, match="no sign of life"):
                stream.receive()
            assert time.monotonic() - started < 5
        else:
            silences = count_silences(session)
            wait_until(lambda: len(silences) >= 10)
            stream.send(b"\0")
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        session.close()
        watchdog.close()


def test_a_peer_that_is_stopped_is_given_up_although_new_keys_are_due(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("RekeyLimit default 1\n")
    server = own_sshd()
    session, watchdog = session_of(server, keepalive_interval=1.0, keepalive_count=2, config=str(tmp_path / "config"))
    stream = session.open_subsystem("sftp")
    stopped = server.sessions()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    try:
        with watchdog.phase("answer at all", 15), pytest.raises(ConnectionLost, match="no sign of life for 3 s"):
            stream.receive()
        assert time.monotonic() - started < 10
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        session.close()
        watchdog.close()


def test_a_stage_goes_on_over_another_connection_when_the_peer_was_given_up(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    server = own_sshd()
    (collect / "a").write_bytes(b"a")
    ssh = server.options(keepalive_interval=0.2, keepalive_count=1)
    with RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=ssh, retry=Retry(delay=0.1)) as peer:
        peer.checkCollectIndicator()
        stopped = server.sessions()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        assert peer.stagePeer(str(target)) == 1
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert peer.last_report is not None
    assert peer.last_report.retries == 1


@pytest.mark.usefixtures("patience")
def test_the_question_wants_a_reply_and_is_not_asked_while_the_peer_talks() -> None:
    key = paramiko.ECDSAKey.generate()
    asked: list[tuple[str, bool]] = []

    class Listens(Policy):
        """Writes down global requests, and talks on its channel for a second."""

        def check_global_request(self, kind: str, msg: paramiko.Message) -> bool:
            asked.append((kind, True))
            return False

        def serve(self, channel: paramiko.Channel) -> None:
            for _ in range(20):
                channel.sendall(b"x")
                time.sleep(0.05)

    with listening(made_of_paramiko(Listens, key=key)) as port:
        known = f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n".encode()
        ssh = SSHOptions(
            port=port,
            config=(),
            agent=False,
            known_hosts=known,
            pkey=paramiko.ECDSAKey.generate(),
            keepalive_interval=0.3,
        )
        limits = Limits()
        watchdog = Watchdog(limits)
        destination = resolve_destination("127.0.0.1", "backup", ssh)
        session = Session.connect(destination, ssh, limits=limits, watchdog=watchdog)
        stream = session.open_subsystem("sftp")
        until = time.monotonic() + 0.8
        while time.monotonic() < until:
            stream.receive()
        assert asked == []
        wait_until(lambda: asked)
        assert {kind for kind, _ in asked} == {"keepalive@openssh.com"}
        session.close()
        watchdog.close()
