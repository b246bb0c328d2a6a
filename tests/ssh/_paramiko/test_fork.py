"""Forked child processes send nothing on the parent's connections, and make their own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import RemotePeer, Retry
from support.children import run_in_fork
from support.recording import record_connection
from support.sshd import Sshd

MIB = 1 << 20


class PeerBehindJumpHost:
    """A peer, and the jump host through which it is reached."""

    def __init__(self, server: Sshd, bastion: Sshd, collect: Path) -> None:
        (bastion.home / "authorized_keys").write_bytes((server.home / "id.pub").read_bytes())
        self.server, self.bastion, self.collect = server, bastion, collect

    def peer(self, port: int | None = None) -> RemotePeer:
        bastion, server = self.bastion, self.server
        line = bastion.known_hosts.read_text().split(" ", 1)[1]
        known = f"[{bastion.host}]:{port or bastion.port} {line}" + server.known_hosts.read_text()
        config = self.collect.with_name("config")
        config.write_text("RekeyLimit 1M\n")  # rekey during the test
        jump = f"{bastion.user}@{bastion.host}:{port or bastion.port}"
        options = server.options(known_hosts=known.encode(), config=str(config), jump=jump)
        return RemotePeer(
            server.host, str(self.collect), "/tmp", server.user, ssh=options, retry=Retry(tries=1)
        )  # so that a lost connection is an error


@pytest.fixture
def behind(own_sshd: Callable[..., Sshd], collect: Path) -> PeerBehindJumpHost:
    (collect / "cback.collect").touch()
    return PeerBehindJumpHost(own_sshd(), own_sshd(), collect)


def drop_connections(peer: RemotePeer) -> None:
    """Drop the connections without closing them."""
    peer._transports.clear()


def leave_block(peer: RemotePeer) -> None:
    """Leave the with block, as a copy of the parent does."""
    peer.__exit__(None, None, None)


def cancel(peer: RemotePeer) -> None:
    """Cancel the operation."""
    peer.cancel()


@pytest.mark.parametrize("leave", [drop_connections, leave_block, cancel])
def test_forked_child_sends_nothing_through_a_jump_host(
    behind: PeerBehindJumpHost, leave: Callable[[RemotePeer], object]
) -> None:
    for _ in range(4):  # the order of garbage collection differs each time
        with record_connection(behind.bastion.port) as (port, sent), behind.peer(port) as peer:
            assert peer.checkCollectIndicator()
            before = len(sent)
            for _ in range(2):
                run_in_fork(lambda: leave(peer))
            assert len(sent) == before
            assert peer.checkCollectIndicator(), "the parent's connection still works"
    assert behind.server.log.count("Accepted publickey") == 4


def test_forked_child_makes_its_own_connection(behind: PeerBehindJumpHost, tmp_path: Path) -> None:
    (behind.collect / "a").write_bytes(os.urandom(3 * MIB))
    with behind.peer() as peer:
        assert peer.checkCollectIndicator()
        for number in range(3):
            (tmp_path / f"{number}").mkdir()
        run_in_fork(lambda: peer.stagePeer(str(tmp_path / "0")))

        def work_like_the_parent() -> None:
            with contextlib.ExitStack() as block:
                block.push(peer)
                peer.stagePeer(str(tmp_path / "1"))
                peer.writeStageIndicator()

        run_in_fork(work_like_the_parent)
        assert peer.stagePeer(str(tmp_path / "2")) == 3, "with the child's indicator"
    for number in range(3):
        assert (tmp_path / f"{number}" / "a").read_bytes() == (behind.collect / "a").read_bytes()
    assert (behind.collect / "cback.stage").exists()
    assert behind.server.log.count("Accepted publickey") == 3, "one login per operation, and one per with block"


def test_fork_during_a_transfer_does_not_disturb_it(behind: PeerBehindJumpHost, target: Path) -> None:
    """paramiko's thread holds locks then, which no thread of the child releases."""
    (behind.collect / "big").write_bytes(os.urandom(3 * MIB))
    forks = 0

    def fork(_: object) -> None:
        nonlocal forks
        forks += 1
        run_in_fork(lambda: leave_block(peer))

    with behind.peer() as peer:
        peer.on_progress = fork
        assert peer.stagePeer(str(target)) == 2
    assert forks
    assert (target / "big").read_bytes() == (behind.collect / "big").read_bytes()
    assert behind.server.log.count("Accepted publickey") == 1
