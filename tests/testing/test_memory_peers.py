"""Peers in memory: users test a script, and each of its failures, without a network."""

from __future__ import annotations

import os
import pickle
import socket
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from peerstage import Limits, Progress, Reason, RemotePeer, Retry, StageError, StageOptions
from peerstage.errors import (
    Cancelled,
    ConnectError,
    ConnectionLost,
    IncompleteStage,
    LoginError,
    NothingToStage,
    RemoteError,
    RemoteNotFound,
)
from peerstage.testing import MemoryFile, MemoryHost, MemoryPeer, memory_peer, memory_peers
from support.waiting import wait_until

READY = {"cback.collect": b"", "data.tar.gz": b"content" * 1000}


def back_up(names: list[str], target: Path) -> list[str]:
    """Do what a user's script might do; return the peers that it could not back up, and why."""
    problems = []
    for name in names:
        with RemotePeer(name, "/srv/collect", "/tmp", "backup", localUser="no-such-user", retry=Retry(tries=2)) as peer:
            try:
                if not peer.checkCollectIndicator():
                    problems.append(f"{name}: not ready")
                    continue
                (target / name).mkdir()
                peer.stagePeer(target / name)
                peer.writeStageIndicator()
            except StageError as exc:
                problems.append(f"{name}: {type(exc).__name__}")
    return problems


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every connection, name lookup and process start fail."""

    def refuse(*arguments: object, **options: object) -> Any:
        raise AssertionError("This was to be done in memory.")

    for name in ("socket.socket.connect", "socket.getaddrinfo", "subprocess.Popen.__init__"):
        monkeypatch.setattr(name, refuse)


@pytest.mark.usefixtures("no_network", "leaves_nothing")
def test_a_remote_peer_in_memory_is_checked_staged_and_marked(target: Path) -> None:
    peer = memory_peer(READY)
    assert isinstance(peer, RemotePeer)
    assert peer.checkCollectIndicator()
    assert peer.stagePeer(target) == 2
    peer.writeStageIndicator()
    assert {path.name: path.read_bytes() for path in target.iterdir()} == READY
    assert peer.files[b"cback.stage"].data == b""
    assert peer.last_report is not None
    assert (peer.last_report.transport, peer.last_report.count) == ("memory", 2)


@pytest.mark.usefixtures("no_network", "leaves_nothing")
def test_a_script_is_tested_with_every_kind_of_peer(target: Path) -> None:
    directory = {"/srv/collect": READY}
    hosts = {
        "good": MemoryHost(directory),
        "not-ready": MemoryHost({"/srv/collect": {"data.tar.gz": b"half"}}),
        "dead": MemoryHost(directory, error=ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED)),
        "no-login": MemoryHost(
            directory, error=LoginError("The server accepts none of our keys.", reason=Reason.LOGIN_REFUSED)
        ),
        "lost": MemoryHost(directory, lose_after=0),
        "unmarkable": MemoryHost(directory, writable=False),
        "incomplete": MemoryHost({"/srv/collect": {**READY, "sub": MemoryFile(mode=stat.S_IFDIR | 0o755)}}),
    }
    with memory_peers(hosts):
        problems = back_up([*hosts, "unheard-of"], target)
    assert problems == [
        "not-ready: not ready",
        "dead: not ready",
        "no-login: not ready",
        "lost: ConnectionLost",
        "unmarkable: RemoteError",
        "incomplete: IncompleteStage",
        "unheard-of: not ready",
    ]
    marked = {name for name, host in hosts.items() if b"cback.stage" in host.directories[b"/srv/collect"]}
    assert marked == {"good"}
    assert sorted(os.listdir(target / "incomplete")) == ["cback.collect", "data.tar.gz"]


FAILURES: dict[str, tuple[Callable[[], MemoryPeer], type[StageError]]] = {
    "a dead peer": (
        lambda: memory_peer(READY, error=ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED)),
        ConnectError,
    ),
    "a refused login": (
        lambda: memory_peer(READY, error=LoginError("No key is accepted.", reason=Reason.LOGIN_REFUSED)),
        LoginError,
    ),
    "a lost connection": (lambda: memory_peer(READY, lose_after=0), ConnectionLost),
    "a directory among the files": (
        lambda: memory_peer({**READY, "sub": MemoryFile(mode=stat.S_IFDIR | 0o755)}),
        IncompleteStage,
    ),
    "an unreadable file": (
        lambda: memory_peer(
            {**READY, "secret": MemoryFile(error=RemoteError("Permission denied.", reason=Reason.PERMISSION_DENIED))}
        ),
        IncompleteStage,
    ),
    "an empty directory": (memory_peer, NothingToStage),
    "a missing directory": (lambda: MemoryPeer(MemoryHost({}), "peer", "/gone"), RemoteNotFound),
}


@pytest.mark.usefixtures("no_network", "leaves_nothing")
@pytest.mark.parametrize("failure", FAILURES)
def test_a_stage_fails_as_over_a_network(target: Path, failure: str) -> None:
    make, error = FAILURES[failure]
    with pytest.raises(StageError) as caught:
        make().stagePeer(target)
    assert type(caught.value) is error
    assert caught.value.peer == "peer"
    assert isinstance(caught.value.reason, Reason)
    assert bool(os.listdir(target)) == (error is IncompleteStage)


@pytest.mark.usefixtures("no_network")
def test_each_connection_raises_a_new_error(target: Path) -> None:
    peer = memory_peer(READY, error=ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED))
    raised = []
    for _ in range(2):
        with pytest.raises(ConnectError) as caught:
            peer.stagePeer(target)
        raised.append(caught.value)
    assert raised[0] is not raised[1]


def test_a_lost_connection_is_re_established_without_delay(
    target: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = os.urandom(300_000)
    patient = Retry(delay=1000.0, max_delay=1000.0)
    peer = memory_peer(
        {"data": content}, lose_after=100_000, faulty_connections=2, retry=patient, limits=Limits(deadline=30.0)
    )
    assert peer.stagePeer(target) == 1
    assert (target / "data").read_bytes() == content
    assert peer.last_report is not None
    assert peer.last_report.retries == 2
    assert peer.last_report.resumed_bytes >= 100_000
    assert peer.host.connection_count == 3


def test_a_peer_that_fails_at_first_succeeds_later(target: Path) -> None:
    peer = memory_peer(
        READY, error=ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED), faulty_connections=1
    )
    assert not peer.checkCollectIndicator()
    assert peer.checkCollectIndicator()
    assert peer.stagePeer(target) == 2


def test_a_with_block_connects_once_and_each_call_outside_it_connects(target: Path) -> None:
    peer = memory_peer(READY)
    with peer:
        peer.checkCollectIndicator()
        peer.stagePeer(target)
    assert peer.host.connection_count == 1
    peer.checkCollectIndicator()
    assert peer.host.connection_count == 2


def test_progress_is_reported(target: Path) -> None:
    told: list[Progress] = []
    memory_peer(READY, on_progress=told.append).stagePeer(target)
    assert told[-1] == Progress(2, 2, 7000, 7000)


def test_contradictory_options_are_refused(target: Path) -> None:
    with pytest.raises(ValueError, match="guarded=True requires SCP"):
        memory_peer(READY, guarded=True, transport="sftp").stagePeer(target)


def test_names_may_be_any_bytes(target: Path) -> None:
    assert memory_peer({b"\xff": b"x", "ü": b"y"}).stagePeer(target) == 2
    assert sorted(os.listdir(os.fsencode(target))) == sorted([b"\xff", "ü".encode()])


def test_every_keyword_argument_of_a_remote_peer_is_accepted(tmp_path: Path) -> None:
    peer = memory_peer(READY, remoteUser="archive", workingDir=str(tmp_path), ignoreFailureMode="all")
    assert (peer.remoteUser, peer.workingDir, peer.ignoreFailureMode) == ("archive", str(tmp_path), "all")
    assert memory_peer(READY).remoteUser == "backup"


def test_a_peer_in_memory_pickles(target: Path) -> None:
    assert pickle.loads(pickle.dumps(memory_peer(READY))).stagePeer(target) == 2


def test_hosts_in_memory_are_gone_after_the_block(target: Path) -> None:
    with memory_peers({"db1": MemoryHost({"/c": READY})}):
        peer = RemotePeer("db1", "/c", None, "backup")
        assert peer.checkCollectIndicator()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    peer.name, peer.ssh = "127.0.0.1", peer.ssh.__class__(port=port, config=())
    with pytest.raises(ConnectError, match="refused"):
        peer.stagePeer(target)


def test_the_error_for_an_unknown_host_names_the_known_ones(target: Path) -> None:
    with (
        memory_peers({"db1": MemoryHost({}), "db2": MemoryHost({})}),
        pytest.raises(ConnectError, match=r"^db3: .*db1, db2"),
    ):
        RemotePeer("db3", "/c", None, "backup").stagePeer(target)


def test_hosts_may_be_added_and_changed_within_the_block(target: Path) -> None:
    hosts: dict[str, MemoryHost] = {}
    with memory_peers(hosts):
        hosts["db1"] = MemoryHost({"/c": {}})
        peer = RemotePeer("db1", "/c", None, "backup")
        assert not peer.checkCollectIndicator()
        hosts["db1"].directories[b"/c"][b"cback.collect"] = MemoryFile()
        assert peer.checkCollectIndicator()


def test_failures_are_kept_logged_and_retried_as_over_a_network(target: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused = ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED)
    down = memory_peer(READY, name="db1", error=refused, retry=Retry(connect=2))
    assert not down.checkCollectIndicator()
    assert isinstance(down.last_error, ConnectError)
    assert "2 attempts" in str(down.last_error)
    boots = memory_peer(READY, name="db2", error=refused, faulty_connections=1, retry=Retry(connect=2))
    assert boots.checkCollectIndicator()
    assert boots.last_error is None
    assert [record.getMessage()[:4] for record in caplog.records] == ["db1:", "db1:", "db2:"]


def test_a_bandwidth_limit_holds_in_memory_and_cancel_ends_a_slow_transfer(target: Path) -> None:
    peer = memory_peer({"cback.collect": b"", "data": bytes(200_000)}, stage=StageOptions(bwlimit=1024))
    with ThreadPoolExecutor(1) as pool, peer:
        staged = pool.submit(peer.stagePeer, target)
        wait_until(lambda: list(target.glob(".peerstage-*/0*")))
        assert not staged.done()
        peer.cancel()
        with pytest.raises(Cancelled):
            staged.result(10)
    assert list(target.iterdir()) == []
