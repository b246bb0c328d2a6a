"""Slow lines to a real server, with times and rates scaled by 20."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from peerstage import Limits, RemotePeer
from support.slow_line import SlowLine
from support.sshd import Sshd

#: Times are divided, and rates multiplied, by this factor.
SCALE = 20
LIMITS = Limits(reply_timeout=60 / SCALE, stall_timeout=60 / SCALE, min_rate=Limits().min_rate * SCALE)
KB = 1000


def peer_over(sshd: Sshd, port: int, collect: Path, transport: str = "sftp", limits: Limits = LIMITS) -> RemotePeer:
    known = sshd.known_hosts.read_text().replace(f":{sshd.port} ", f":{port} ").encode()
    ssh = sshd.options(port=port, known_hosts=known)
    return RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=ssh, transport=transport, limits=limits)


@pytest.mark.parametrize("transport", ["sftp", "scp"])
@pytest.mark.parametrize(("rate", "files", "size"), [(20 * KB, 1, 1_600_000), (20 * KB, 200, 8192)])
def test_a_slow_line_causes_no_reconnect(
    sshd: Sshd, collect: Path, target: Path, transport: str, rate: float, files: int, size: int
) -> None:
    for number in range(files):
        (collect / f"file{number}").write_bytes(os.urandom(size))
    line = SlowLine(sshd.port, rate * SCALE)
    with line.open() as port:
        peer = peer_over(sshd, port, collect, transport)
        assert peer.stagePeer(str(target)) == files
    assert line.connections == 1
    for path in collect.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes()


def test_twenty_peers_share_a_line(sshd: Sshd, collect: Path, tmp_path: Path) -> None:
    (collect / "file").write_bytes(os.urandom(700_000))
    line = SlowLine(sshd.port, 20 * KB * SCALE * 5)  # 100 KB/s each; together they transfer 14 MB
    targets = [tmp_path / f"target{number}" for number in range(20)]
    with line.open() as port:
        peers = [peer_over(sshd, port, collect) for _ in targets]
        threads = [
            threading.Thread(target=peer.stagePeer, args=(str(target),))
            for peer, target in zip(peers, targets, strict=True)
        ]
        for thread, target in zip(threads, targets, strict=True):
            target.mkdir()
            thread.start()
        for thread in threads:
            thread.join()
    assert line.connections == 20
    expected = (collect / "file").read_bytes()
    assert all((target / "file").read_bytes() == expected for target in targets)


@pytest.mark.bulk
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("rate", "files", "size"), [(20 * KB, 1, 6_000_000), (60 * KB, 1, 14_000_000), (20 * KB, 500, 4096)]
)
def test_with_default_limits_a_slow_line_needs_one_connection(
    sshd: Sshd, collect: Path, target: Path, rate: float, files: int, size: int
) -> None:
    for number in range(files):
        (collect / f"file{number}").write_bytes(os.urandom(size))
    line = SlowLine(sshd.port, rate)
    with line.open() as port:
        assert peer_over(sshd, port, collect, limits=Limits()).stagePeer(str(target)) == files
    assert line.connections == 1
    for path in collect.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes()
