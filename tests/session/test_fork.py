"""A fork while connections are open: the child sends nothing on the parent's, and works by connections of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import RemotePeer, Retry
from support.children import in_child
from support.recording import recording
from support.sshd import Sshd

MIB = 1 << 20


class Behind:
    """A peer behind a bastion, and what its clients send to the bastion."""

    def __init__(self, server: Sshd, bastion: Sshd, collect: Path) -> None:
        (bastion.home / "authorized_keys").write_bytes((server.home / "id.pub").read_bytes())
        self.server, self.bastion, self.collect = server, bastion, collect

    def peer(self, port: int | None = None) -> RemotePeer:
        bastion, server = self.bastion, self.server
        line = bastion.known_hosts.read_text().split(" ", 1)[1]
        known = f"[{bastion.host}]:{port or bastion.port} {line}" + server.known_hosts.read_text()
        config = self.collect.with_name("config")
        config.write_text("RekeyLimit 1M\n")  # new keys on the way, too
        jump = f"{bastion.user}@{bastion.host}:{port or bastion.port}"
        options = server.options(known_hosts=known.encode(), config=str(config), jump=jump)
        return RemotePeer(
            server.host, str(self.collect), "/tmp", server.user, ssh=options, retry=Retry(tries=1)
        )  # a lost connection is not hidden


@pytest.fixture
def behind(own_sshd: Callable[..., Sshd], collect: Path) -> Behind:
    (collect / "cback.collect").touch()
    return Behind(own_sshd(), own_sshd(), collect)


def forgets_it(peer: RemotePeer) -> None:
    """Has nothing to do with it."""
    peer._stacks.clear()


def leaves_the_block(peer: RemotePeer) -> None:
    """Runs to the end of the with block, as a copy of its parent."""
    peer.__exit__(None, None, None)


def cancels(peer: RemotePeer) -> None:
    """Cancels what it takes for its own."""
    peer.cancel()


@pytest.mark.parametrize("way_out", [forgets_it, leaves_the_block, cancels])
def test_a_forked_child_sends_nothing_on_the_way_through_a_bastion(
    behind: Behind, way_out: Callable[[RemotePeer], object]
) -> None:
    for _ in range(4):  # in what order the connections are forgotten is different each time
        with recording(behind.bastion.port) as (port, sent), behind.peer(port) as peer:
            assert peer.checkCollectIndicator()
            before = len(sent)
            for _ in range(2):
                in_child(lambda: way_out(peer))
            assert len(sent) == before
            assert peer.checkCollectIndicator(), "the parent goes on by its connection"
    assert behind.server.log.count("Accepted publickey") == 4


def test_a_forked_child_works_by_a_connection_of_its_own(behind: Behind, tmp_path: Path) -> None:
    (behind.collect / "a").write_bytes(os.urandom(3 * MIB))
    with behind.peer() as peer:
        assert peer.checkCollectIndicator()
        for number in range(3):
            (tmp_path / f"{number}").mkdir()
        in_child(lambda: peer.stagePeer(str(tmp_path / "0")))

        def like_the_parent() -> None:
            with contextlib.ExitStack() as block:
                block.push(peer)
                peer.stagePeer(str(tmp_path / "1"))
                peer.writeStageIndicator()

        in_child(like_the_parent)
        assert peer.stagePeer(str(tmp_path / "2")) == 3, "with the mark of the child"
    for number in range(3):
        assert (tmp_path / f"{number}" / "a").read_bytes() == (behind.collect / "a").read_bytes()
    assert (behind.collect / "cback.stage").exists()
    assert behind.server.log.count("Accepted publickey") == 3, "one login each, and one in each block"


def test_a_fork_in_the_middle_of_a_transfer_does_not_disturb_it(behind: Behind, target: Path) -> None:
    """paramiko's thread is busy then, and holds locks that nobody releases in the child."""
    (behind.collect / "big").write_bytes(os.urandom(6 * MIB))
    forks = 0

    def fork(_: object) -> None:
        nonlocal forks
        forks += 1
        in_child(lambda: leaves_the_block(peer))

    with behind.peer() as peer:
        peer.on_progress = fork
        assert peer.stagePeer(str(target)) == 2
    assert forks
    assert (target / "big").read_bytes() == (behind.collect / "big").read_bytes()
    assert behind.server.log.count("Accepted publickey") == 1
