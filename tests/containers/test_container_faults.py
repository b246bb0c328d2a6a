"""Faults that need containers: pause, kill, network loss, a changed host key.

Network loss and a changed host key are tested from the client container, since a published port changes when a network
is disconnected or a container restarts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client_container import ClientContainer
from pytest_docker.plugin import Services

from peerstage import Limits, Progress, Retry
from peerstage.errors import ConnectionLost, LimitExceeded
from peerstage.testing.contract import files_in
from support.containers import COLLECT, Bench, BenchPeer, docker

MIB = 1024 * 1024
SIZE = 64 * MIB


@pytest.fixture
def faulty_peer(bench: Bench, docker_services: Services) -> Iterator[BenchPeer]:
    """A peer that only this test uses, with a file that takes a while."""
    bench.recreate("faults", docker_services._docker_compose.execute)
    peer = bench.peer("faults")
    peer.container.execute("truncate", "-s", str(SIZE), "/srv/collect/big")
    yield peer
    bench.unpause()


def call_mid_transfer(action: Callable[[], object]) -> Callable[[Progress], None]:
    """Return an ``on_progress`` that calls *action* once, in the middle of the transfer."""
    done = []

    def on_progress(progress: Progress) -> None:
        if not done and progress.bytes_total and 0 < progress.bytes_done < progress.bytes_total:
            done.append(True)
            action()

    return on_progress


@pytest.mark.kind("faults")
def test_stall_limit_ends_the_run_of_a_paused_peer(faulty_peer: BenchPeer, target: Path, leaves_nothing: None) -> None:
    (target / "big").write_bytes(b"old")
    remote = faulty_peer.remote(
        limits=Limits(stall_timeout=2.0),
        retry=Retry(tries=1),
        on_progress=call_mid_transfer(lambda: docker("pause", faulty_peer.container.id)),
    )
    with pytest.raises(LimitExceeded, match="stall_timeout"):
        remote.stagePeer(str(target))
    assert files_in(target) == {b"big": b"old"}


@pytest.mark.kind("faults")
def test_killed_peer_is_noticed_at_once_and_not_by_a_limit(
    faulty_peer: BenchPeer, target: Path, leaves_nothing: None
) -> None:
    (target / "big").write_bytes(b"old")
    remote = faulty_peer.remote(
        limits=Limits(stall_timeout=200.0, reply_timeout=200.0),
        retry=Retry(tries=1),
        on_progress=call_mid_transfer(lambda: docker("kill", faulty_peer.container.id)),
    )
    with pytest.raises(ConnectionLost):
        remote.stagePeer(str(target))
    assert files_in(target) == {b"big": b"old"}
    assert not remote.checkCollectIndicator()


def wait_until_disconnected(client: ClientContainer, address: str) -> None:
    """Wait until the client's kernel has no established connection to an address."""
    hex_address = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    line = f"while grep -q '{hex_address}:0016 01' /proc/net/tcp; do sleep 0.02; done"
    client.container.execute("timeout", "60", "sh", "-c", line)


@pytest.mark.kind("faults", "client")
def test_transfer_resumes_after_a_network_outage(bench: Bench, faulty_peer: BenchPeer, client: ClientContainer) -> None:
    address = bench.address("faults")

    def disconnect() -> None:
        docker("network", "disconnect", bench.network, faulty_peer.container.id)

    def reconnect() -> None:
        wait_until_disconnected(client, address)
        docker("network", "connect", "--ip", address, bench.network, faulty_peer.container.id)

    answer = client.run("faults", on_hold=disconnect, after_resume=reconnect, limits={"stall_timeout": 2.0})
    assert answer["error"] is None
    assert answer["files"] == {"big": hashlib.sha256(bytes(SIZE)).hexdigest()}
    assert answer["retries"] >= 1
    assert answer["resumed"] > 0
    assert faulty_peer.container.execute("ls", COLLECT).split() == [b"big", b"cback.stage"]
    assert answer["threads"] == []


@pytest.mark.kind("faults", "client")
def test_lasting_network_outage_ends_the_run_with_nothing_staged(
    bench: Bench, faulty_peer: BenchPeer, client: ClientContainer
) -> None:
    answer = client.run(
        "faults",
        on_hold=lambda: docker("network", "disconnect", bench.network, faulty_peer.container.id),
        limits={"stall_timeout": 1.0},
        retry={"tries": 2, "delay": 0.1},
        ssh={"connect_timeout": 1.0},
    )
    assert answer["error"][0] == "ConnectError", answer
    assert answer["files"] == {}
    assert answer["threads"] == []


@pytest.mark.kind("faults", "client")
def test_changed_host_key_is_refused(bench: Bench, faulty_peer: BenchPeer, client: ClientContainer) -> None:
    faulty_peer.container.execute("truncate", "-s", "1000", "/srv/collect/big")
    assert client.run("faults")["count"] == 1
    faulty_peer.container.execute("install", "-m", "600", "/run/keys/host_another", "/etc/ssh/host_key")
    faulty_peer.container.restart()
    answer = client.run("faults")
    assert answer["error"][0] == "ChangedHostKey"
    assert answer["files"] == {}
    assert answer["ready"] is False


@pytest.mark.kind("faults", "client")
def test_changed_host_key_is_refused_when_resuming(
    bench: Bench, faulty_peer: BenchPeer, client: ClientContainer
) -> None:
    def restart_with_another_key() -> None:
        faulty_peer.container.execute("install", "-m", "600", "/run/keys/host_another", "/etc/ssh/host_key")
        faulty_peer.container.restart()

    answer = client.run("faults", on_hold=restart_with_another_key)
    assert answer["error"][0] == "ChangedHostKey"
    assert answer["files"] == {}
