"""What each kind of peer can do and can not: the transport contract, and the table of `kinds`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kinds import CAN_NOT, KINDS, REFUSED, WORKING, Way, as_the_table_says, each, fails, failure_of

from peerstage.errors import RemoteError
from peerstage.landing.base import Landing
from peerstage.records import Limits
from peerstage.session.watchdog import Watchdog
from peerstage.testing.contract import Source, TransportContract, landed
from peerstage.transport.base import Transport
from peerstage.transport.choose import Route, assemble
from peerstage.transport.retry import Retry
from support.containers import Bench, BenchPeer, ContainerSource, Files
from support.programs import program, rcp_command


class AfterWrites(Transport):
    """Sees to it that what the source was given is in the container before the transport looks."""

    def __init__(self, inner: Transport, source: ContainerSource) -> None:
        self.capabilities = inner.capabilities
        self._inner = inner
        self._source = source

    def pull(self, directory: bytes, landing: Landing) -> None:
        self._source.settle()
        self._inner.pull(directory, landing)

    def exists(self, path: bytes) -> bool:
        self._source.settle()
        return self._inner.exists(path)

    def touch(self, path: bytes) -> None:
        self._source.settle()
        self._inner.touch(path)

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(scope="class")
def connection(way: Way, bench: Bench) -> Iterator[Transport]:
    """A transport along a way, which all tests of the contract share."""
    served = bench.peer(way.kind.name)
    limits = Limits()
    watchdog = Watchdog(limits)
    guarded = way.transport == "guarded"
    name = "auto" if guarded else way.transport
    route = Route(
        name=served.host,
        user=served.user,
        ssh=served.options(),
        transport=name,
        guarded=guarded,
        rcp_command=rcp_command(served.ssh_arguments()) if name == "rcp" else None,
        working_directory="/tmp",
    )
    with assemble(route, limits=limits, retry=Retry(), watchdog=watchdog) as transport:
        yield transport
    watchdog.close()


@pytest.mark.parametrize("way", WORKING, ids=str, scope="class")
class TestContract(TransportContract):
    """The contract, on every kind."""

    small_files = 600  # of which 512 are open at once, where a server has as many handles

    @pytest.fixture
    def source(self, served: BenchPeer) -> ContainerSource:
        return ContainerSource(served.container)

    @pytest.fixture
    def transport(self, connection: Transport, source: ContainerSource) -> Transport:
        return AfterWrites(connection, source)

    def test_touch_makes_an_empty_file_and_truncates_one(  # type: ignore[override]
        self, transport: Transport, source: Source, way: Way
    ) -> None:
        with as_the_table_says(way, "mark"), as_the_table_says(way, "other paths"):
            super().test_touch_makes_an_empty_file_and_truncates_one(transport, source)

    def test_only_a_regular_file_exists(  # type: ignore[override]
        self, transport: Transport, source: Source, way: Way
    ) -> None:
        with as_the_table_says(way, "other paths"):
            super().test_only_a_regular_file_exists(transport, source)

    def test_a_directory_does_not_take_the_files_with_it(  # type: ignore[override]
        self, transport: Transport, source: Source, target: Path, way: Way
    ) -> None:
        if failure_of(way, "the rest") is None:
            super().test_a_directory_does_not_take_the_files_with_it(transport, source, target)
            return
        source.make_directory(b"sub")
        source.write(b"good", b"good")
        with as_the_table_says(way, "the rest"):
            self.stage(transport, source, target)
        assert landed(target) in ({b"good": b"good"}, {})


def attempt_everything(peer: BenchPeer, transport: str, target: Path) -> Iterator[object]:
    """Yield the calls of a run."""
    remote = peer.remote(transport, retry=Retry(tries=1), limits=Limits(stall_timeout=5))
    yield lambda: remote.stagePeer(str(target))
    yield remote.writeStageIndicator


@each(REFUSED)
def test_what_a_kind_can_not_do_fails_as_the_table_says(way: Way, served: BenchPeer, target: Path) -> None:
    served.container.fill(Files(a=b"a", **{"cback.collect": b""}))
    for call in attempt_everything(served, way.transport, target):
        with fails(CAN_NOT[way.kind.name, way.transport]):
            call()
    assert not served.remote(way.transport, retry=Retry(tries=1)).checkCollectIndicator()
    assert os.listdir(target) == []
    assert set(served.container.files()) == {b"a", b"cback.collect"}


@pytest.mark.kind("guard")
def test_the_guard_compares_byte_for_byte_and_writes_down_what_it_refuses(bench: Bench) -> None:
    peer = bench.peer("guard")
    peer.container.fill(Files(a=b"a"))
    peer.container.execute("truncate", "-s", "0", "/var/log/guard")
    asked = ["scp -f /srv/collect/*", "scp -f '/srv/collect/*'", "scp -p -f /srv/collect/*", "id", ""]
    ssh = [program("ssh"), *peer.ssh_arguments(), f"{peer.user}@{peer.host}"]
    done = [subprocess.run([*ssh, command], input=b"\0\0\0", capture_output=True) for command in asked]
    assert [one.returncode for one in done] == [0, 1, 1, 1, 1]
    assert b"C0644 1 a" in done[0].stdout
    assert all(b"refused" in one.stderr for one in done[1:])
    assert peer.container.execute("cat", "/var/log/guard").decode().splitlines() == asked


@pytest.mark.kind("guard")
@pytest.mark.parametrize("transport", ["guarded", "scp", "rcp"])
def test_the_guard_sees_the_three_commands_of_the_original_and_nothing_else(
    bench: Bench, transport: str, target: Path
) -> None:
    peer = bench.peer("guard")
    peer.container.fill(Files(a=b"a", **{"cback.collect": b""}))
    peer.container.execute("truncate", "-s", "0", "/var/log/guard")
    with peer.remote(transport) as remote:
        assert remote.checkCollectIndicator()
        assert remote.stagePeer(str(target)) == 2
        remote.writeStageIndicator()
    asked = peer.container.execute("cat", "/var/log/guard").decode().splitlines()
    assert asked == ["scp -f /srv/collect/cback.collect", "scp -f /srv/collect/*", "scp -t /srv/collect/cback.stage"]
    assert b"cback.stage" in peer.container.files()


@pytest.mark.kind("guard")
def test_the_guard_of_a_managed_peer_sees_the_original_s_command_and_nothing_else(bench: Bench, target: Path) -> None:
    peer = bench.peer("guard")
    peer.container.fill(Files(a=b"a"))
    peer.container.execute("truncate", "-s", "0", "/var/log/guard")
    with peer.remote("guarded") as remote:
        remote.executeManagedAction("collect", True)
        assert remote.stagePeer(str(target)) == 1
        with pytest.raises(RemoteError, match=r"'purge' failed.*status 1, saying 'guard: refused'"):
            remote.executeManagedAction("purge", False)
    asked = peer.container.execute("cat", "/var/log/guard").decode().splitlines()
    assert asked == ["/usr/bin/cback3 --full collect", "scp -f /srv/collect/*", "/usr/bin/cback3 purge"]


@each(WORKING)
def test_a_command_runs_where_the_login_may_run_any(way: Way, served: BenchPeer) -> None:
    remote = served.remote(way.transport)
    with as_the_table_says(way, "command"):
        remote.executeRemoteCommand("touch /srv/collect/ran || touch /tmp/ran")


@pytest.mark.kind("limited")
@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_one_channel_at_a_time_is_enough_for_commands_between_files(bench: Bench, transport: str, target: Path) -> None:
    peer = bench.peer("limited")
    peer.container.fill(Files(a=b"a", **{"cback.collect": b""}))
    with peer.remote(transport) as remote:
        for _ in range(2):
            assert remote.checkCollectIndicator()
            remote.executeRemoteCommand("true")
            assert remote.stagePeer(str(target)) == 2


@pytest.mark.kind("guard")
def test_a_guard_that_was_not_announced_is_reached_all_the_same(bench: Bench, target: Path) -> None:
    peer = bench.peer("guard")
    peer.container.fill(Files(a=b"a", **{"cback.collect": b""}))
    with peer.remote("auto") as remote:
        assert remote.checkCollectIndicator()
        assert remote.stagePeer(str(target)) == 2
    assert remote.last_report is not None
    assert remote.last_report.transport == "scp"


@each([one for one in WORKING if one.transport in ("sftp", "scp")])
def test_auto_takes_sftp_where_it_is_and_scp_where_it_is_not(way: Way, served: BenchPeer, target: Path) -> None:
    served.container.fill(Files(a=b"a"))
    remote = served.remote("auto")
    assert remote.stagePeer(str(target)) == 1
    assert remote.last_report is not None
    assert remote.last_report.transport == ("sftp" if "sftp" in way.kind.transports else "scp")


def test_every_kind_and_transport_is_in_a_list() -> None:
    for kind in KINDS:
        served = {"scp" if transport == "guarded" else transport for transport in kind.transports}
        for transport in ("sftp", "scp"):
            assert (transport in served) != ((kind.name, transport) in CAN_NOT), (kind.name, transport)
    assert {kind for kind, _ in CAN_NOT} <= {kind.name for kind in KINDS}
