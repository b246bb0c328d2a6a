"""Faults that only containers can make. Pause and kill from this machine; cuts and a new host key from the client,
since a published port changes when a network is taken away or a container is started again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client_side import Client
from pytest_docker.plugin import Services

from peerstage import Limits, Progress, Retry
from peerstage.errors import ConnectionLost, LimitExceeded
from peerstage.testing.contract import landed
from support.containers import COLLECT, Bench, BenchPeer, docker

MIB = 1024 * 1024
SIZE = 64 * MIB


@pytest.fixture
def faulty(bench: Bench, docker_services: Services) -> Iterator[BenchPeer]:
    """A peer of this test's own, with a file that takes a while."""
    bench.recreate("faults", docker_services._docker_compose.execute)
    peer = bench.peer("faults")
    peer.container.execute("truncate", "-s", str(SIZE), "/srv/collect/big")
    yield peer
    bench.thaw()


def in_mid_transfer(do: Callable[[], object]) -> Callable[[Progress], None]:
    """Return an ``on_progress`` that calls *do* once, when some bytes have come and others have not."""
    done = []

    def on_progress(progress: Progress) -> None:
        if not done and progress.bytes_total and 0 < progress.bytes_done < progress.bytes_total:
            done.append(True)
            do()

    return on_progress


@pytest.mark.kind("faults")
def test_a_paused_peer_is_ended_by_the_stall_limit(faulty: BenchPeer, target: Path, leaves_nothing: None) -> None:
    (target / "big").write_bytes(b"old")
    remote = faulty.remote(
        limits=Limits(stall_timeout=2.0),
        retry=Retry(tries=1),
        on_progress=in_mid_transfer(lambda: docker("pause", faulty.container.id)),
    )
    with pytest.raises(LimitExceeded, match="stall_timeout"):
        remote.stagePeer(str(target))
    assert landed(target) == {b"big": b"old"}


@pytest.mark.kind("faults")
def test_a_killed_peer_is_noticed_at_once_and_not_by_a_limit(
    faulty: BenchPeer, target: Path, leaves_nothing: None
) -> None:
    (target / "big").write_bytes(b"old")
    remote = faulty.remote(
        limits=Limits(stall_timeout=200.0, reply_timeout=200.0),
        retry=Retry(tries=1),
        on_progress=in_mid_transfer(lambda: docker("kill", faulty.container.id)),
    )
    with pytest.raises(ConnectionLost):
        remote.stagePeer(str(target))
    assert landed(target) == {b"big": b"old"}
    assert not remote.checkCollectIndicator()


def wait_until_given_up(client: Client, address: str) -> None:
    """Wait until the client has ended its connection to an address, as its kernel sees it."""
    seen = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    line = f"while grep -q '{seen}:0016 01' /proc/net/tcp; do sleep 0.02; done"
    client.container.execute("timeout", "60", "sh", "-c", line)


@pytest.mark.kind("faults", "client")
def test_a_network_that_comes_back_is_gone_on_with(bench: Bench, faulty: BenchPeer, client: Client) -> None:
    address = bench.address("faults")

    def cut() -> None:
        docker("network", "disconnect", bench.network, faulty.container.id)

    def mend() -> None:
        wait_until_given_up(client, address)
        docker("network", "connect", "--ip", address, bench.network, faulty.container.id)

    answer = client.run("faults", meanwhile=cut, afterwards=mend, limits={"stall_timeout": 2.0})
    assert answer["error"] is None
    assert answer["files"] == {"big": hashlib.sha256(bytes(SIZE)).hexdigest()}
    assert answer["retries"] >= 1
    assert answer["resumed"] > 0
    assert faulty.container.execute("ls", COLLECT).split() == [b"big", b"cback.stage"]
    assert answer["threads"] == []


@pytest.mark.kind("faults", "client")
def test_a_network_that_stays_away_ends_the_run_with_nothing_staged(
    bench: Bench, faulty: BenchPeer, client: Client
) -> None:
    answer = client.run(
        "faults",
        meanwhile=lambda: docker("network", "disconnect", bench.network, faulty.container.id),
        limits={"stall_timeout": 1.0},
        retry={"tries": 2, "delay": 0.1},
        ssh={"connect_timeout": 1.0},
    )
    assert answer["error"][0] == "ConnectError", answer
    assert answer["files"] == {}
    assert answer["threads"] == []


@pytest.mark.kind("faults", "client")
def test_a_peer_that_comes_back_with_another_host_key_is_refused(
    bench: Bench, faulty: BenchPeer, client: Client
) -> None:
    faulty.container.execute("truncate", "-s", "1000", "/srv/collect/big")
    assert client.run("faults")["count"] == 1
    faulty.container.execute("install", "-m", "600", "/run/keys/host_another", "/etc/ssh/host_key")
    faulty.container.restart()
    answer = client.run("faults")
    assert answer["error"][0] == "ChangedHostKey"
    assert answer["files"] == {}
    assert answer["ready"] is False


@pytest.mark.kind("faults", "client")
def test_a_peer_that_comes_back_with_another_host_key_in_mid_transfer_is_refused(
    bench: Bench, faulty: BenchPeer, client: Client
) -> None:
    def come_back() -> None:
        faulty.container.execute("install", "-m", "600", "/run/keys/host_another", "/etc/ssh/host_key")
        faulty.container.restart()

    answer = client.run("faults", meanwhile=come_back)
    assert answer["error"][0] == "ChangedHostKey"
    assert answer["files"] == {}
