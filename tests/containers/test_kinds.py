"""Each kind of peer: the transport contract, and what `kinds.UNSUPPORTED` says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kinds import KINDS, REFUSED, UNSUPPORTED, WORKING, Scenario, expect_by_table, expect_failure, find_failure, run_on

from peerstage import Indicators, RemotePeer
from peerstage.errors import RemoteError
from peerstage.records import Limits, RemoteFile
from peerstage.target.base import Target
from peerstage.testing.contract import Source, TransportContract, files_in
from peerstage.transport.base import Transport
from peerstage.transport.factory import TransportOptions, build_transport
from peerstage.transport.retry import Retry
from peerstage.watchdog import Watchdog
from support.containers import Bench, BenchPeer, ContainerSource, FileTree
from support.programs import rcp_command, require_program


class SettlingTransport(Transport):
    """Writes what the source has buffered before each operation."""

    def __init__(self, inner: Transport, source: ContainerSource) -> None:
        self.capabilities = inner.capabilities
        self._inner = inner
        self._source = source

    def pull(self, directory: bytes, target: Target) -> None:
        self._source.settle()
        self._inner.pull(directory, target)

    def stat(self, path: bytes) -> RemoteFile | None:
        self._source.settle()
        return self._inner.stat(path)

    def touch(self, path: bytes) -> None:
        self._source.settle()
        self._inner.touch(path)

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(scope="class")
def connection(scenario: Scenario, bench: Bench) -> Iterator[Transport]:
    """A transport that all tests of the contract share."""
    bench_peer = bench.peer(scenario.kind.name)
    watchdog = Watchdog(Limits())
    guarded = scenario.transport == "guarded"
    name = "auto" if guarded else scenario.transport
    options = TransportOptions(
        name=bench_peer.host,
        user=bench_peer.user,
        ssh=bench_peer.options(),
        transport=name,
        guarded=guarded,
        rcp_command=rcp_command(bench_peer.ssh_arguments()) if name == "rcp" else None,
        working_directory="/tmp",
    )
    with build_transport(options, retry=Retry(), watchdog=watchdog) as transport:
        yield transport
    watchdog.close()


@pytest.mark.parametrize("scenario", WORKING, ids=str, scope="class")
class TestContract(TransportContract):
    """The contract, on every kind."""

    small_files = 600  # of which 512 are open at once, if the server has as many handles

    @pytest.fixture
    def source(self, bench_peer: BenchPeer) -> ContainerSource:
        return ContainerSource(bench_peer.container)

    @pytest.fixture
    def transport(self, connection: Transport, source: ContainerSource) -> Transport:
        return SettlingTransport(connection, source)

    def test_touch_creates_an_empty_file_or_truncates_one(  # type: ignore[override]
        self, transport: Transport, source: Source, scenario: Scenario
    ) -> None:
        with expect_by_table(scenario, "mark"), expect_by_table(scenario, "other paths"):
            super().test_touch_creates_an_empty_file_or_truncates_one(transport, source)

    def test_stat_finds_only_regular_files(  # type: ignore[override]
        self, transport: Transport, source: Source, scenario: Scenario
    ) -> None:
        with expect_by_table(scenario, "other paths"):
            super().test_stat_finds_only_regular_files(transport, source)

    def test_a_directory_does_not_keep_the_files_from_being_staged(  # type: ignore[override]
        self, transport: Transport, source: Source, target: Path, scenario: Scenario
    ) -> None:
        if find_failure(scenario, "the rest") is None:
            super().test_a_directory_does_not_keep_the_files_from_being_staged(transport, source, target)
            return
        source.make_directory(b"sub")
        source.write(b"good", b"good")
        with expect_by_table(scenario, "the rest"):
            self.stage(transport, source, target)
        assert files_in(target) in ({b"good": b"good"}, {})


def attempt_everything(peer: BenchPeer, transport: str, target: Path) -> Iterator[object]:
    """Yield the operations of a run."""
    remote = peer.remote(transport, retry=Retry(tries=1), limits=Limits(stall_timeout=5))
    yield lambda: remote.stagePeer(str(target))
    yield remote.writeStageIndicator


@run_on(REFUSED)
def test_unsupported_transport_fails_as_the_table_says(scenario: Scenario, bench_peer: BenchPeer, target: Path) -> None:
    bench_peer.container.fill(FileTree(a=b"a", **{"cback.collect": b""}))
    for call in attempt_everything(bench_peer, scenario.transport, target):
        with expect_failure(UNSUPPORTED[scenario.kind.name, scenario.transport]):
            call()
    assert not bench_peer.remote(scenario.transport, retry=Retry(tries=1)).checkCollectIndicator()
    assert os.listdir(target) == []
    assert set(bench_peer.container.files()) == {b"a", b"cback.collect"}


@pytest.mark.kind("guard")
def test_guard_compares_byte_for_byte_and_logs_what_it_refuses(bench: Bench) -> None:
    peer = bench.peer("guard")
    peer.container.fill(FileTree(a=b"a"))
    peer.container.execute("truncate", "-s", "0", "/var/log/guard")
    asked = ["scp -f /srv/collect/*", "scp -f '/srv/collect/*'", "scp -p -f /srv/collect/*", "id", ""]
    ssh = [require_program("ssh"), *peer.ssh_arguments(), f"{peer.user}@{peer.host}"]
    done = [subprocess.run([*ssh, command], input=b"\0\0\0", capture_output=True) for command in asked]
    assert [one.returncode for one in done] == [0, 1, 1, 1, 1]
    assert b"C0644 1 a" in done[0].stdout
    assert all(b"refused" in one.stderr for one in done[1:])
    assert peer.container.execute("cat", "/var/log/guard").decode().splitlines() == asked


@pytest.mark.kind("guard")
@pytest.mark.parametrize("ask", [RemotePeer.checkCollectIndicator, RemotePeer.readIndicators])
@pytest.mark.parametrize("transport", ["guarded", "scp", "rcp"])
def test_guard_sees_only_the_three_commands_of_the_original(
    bench: Bench, transport: str, ask: Callable[[RemotePeer], object], target: Path
) -> None:
    peer = bench.peer("guard")
    peer.container.fill(FileTree(a=b"a", **{"cback.collect": b""}))
    peer.container.execute("truncate", "-s", "0", "/var/log/guard")
    with peer.remote(transport) as remote:
        assert ask(remote) in (True, Indicators(RemoteFile(0)))
        assert remote.stagePeer(str(target)) == 2
        remote.writeStageIndicator()
    asked = peer.container.execute("cat", "/var/log/guard").decode().splitlines()
    assert asked == ["scp -f /srv/collect/cback.collect", "scp -f /srv/collect/*", "scp -t /srv/collect/cback.stage"]
    assert b"cback.stage" in peer.container.files()


@pytest.mark.kind("guard")
def test_guard_of_a_managed_peer_sees_only_the_command_of_the_original(bench: Bench, target: Path) -> None:
    peer = bench.peer("guard")
    peer.container.fill(FileTree(a=b"a"))
    peer.container.execute("truncate", "-s", "0", "/var/log/guard")
    with peer.remote("guarded") as remote:
        remote.executeManagedAction("collect", True)
        assert remote.stagePeer(str(target)) == 1
        with pytest.raises(RemoteError, match=r"'purge' failed.*status 1 and printed 'guard: refused'"):
            remote.executeManagedAction("purge", False)
    asked = peer.container.execute("cat", "/var/log/guard").decode().splitlines()
    assert asked == ["/usr/bin/cback3 --full collect", "scp -f /srv/collect/*", "/usr/bin/cback3 purge"]


@run_on(WORKING)
def test_command_runs_where_the_login_may_run_any(scenario: Scenario, bench_peer: BenchPeer) -> None:
    remote = bench_peer.remote(scenario.transport)
    with expect_by_table(scenario, "command"):
        remote.executeRemoteCommand("touch /srv/collect/ran || touch /tmp/ran")


@pytest.mark.kind("limited")
@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_one_channel_at_a_time_is_enough_for_commands_and_files(bench: Bench, transport: str, target: Path) -> None:
    peer = bench.peer("limited")
    peer.container.fill(FileTree(a=b"a", **{"cback.collect": b""}))
    with peer.remote(transport) as remote:
        for _ in range(2):
            assert remote.checkCollectIndicator()
            remote.executeRemoteCommand("true")
            assert remote.stagePeer(str(target)) == 2


@pytest.mark.kind("guard")
def test_auto_stages_from_a_guarded_peer_too(bench: Bench, target: Path) -> None:
    peer = bench.peer("guard")
    peer.container.fill(FileTree(a=b"a", **{"cback.collect": b""}))
    with peer.remote("auto") as remote:
        assert remote.checkCollectIndicator()
        assert remote.stagePeer(str(target)) == 2
    assert remote.last_report is not None
    assert remote.last_report.transport == "scp"


@run_on([one for one in WORKING if one.transport in ("sftp", "scp")])
def test_auto_uses_sftp_and_falls_back_to_scp(scenario: Scenario, bench_peer: BenchPeer, target: Path) -> None:
    bench_peer.container.fill(FileTree(a=b"a"))
    remote = bench_peer.remote("auto")
    assert remote.stagePeer(str(target)) == 1
    assert remote.last_report is not None
    assert remote.last_report.transport == ("sftp" if "sftp" in scenario.kind.transports else "scp")


def test_every_kind_and_transport_is_supported_or_in_the_table() -> None:
    for kind in KINDS:
        bench_peer = {"scp" if transport == "guarded" else transport for transport in kind.transports}
        for transport in ("sftp", "scp"):
            assert (transport in bench_peer) != ((kind.name, transport) in UNSUPPORTED), (kind.name, transport)
    assert {kind for kind, _ in UNSUPPORTED} <= {kind.name for kind in KINDS}
