"""`last_error` tells a peer that cannot be reached from one that is not ready, and the log level how urgent it is."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest

from peerstage import LocalPeer, RemotePeer
from peerstage.errors import Cancelled, IncompleteStage, NothingToStage, RemoteError, RemoteNotFound
from peerstage.peer.base import BackupPeer
from support.broken_peers import BROKEN_PEERS, error_of, peer_of, refuses_connections, served_by, serves
from support.file_server import Master
from support.local_user import isolated_options
from support.sshd import Sshd

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def master(tmp_path: Path) -> Master:
    return Master(tmp_path)


@pytest.mark.parametrize("how", BROKEN_PEERS)
def test_the_error_of_a_method_is_kept_until_the_next_call(
    master: Master, collect: Path, target: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    case, kind, level = BROKEN_PEERS[how]
    caplog.set_level(logging.INFO, "peerstage.peer")
    with case(master, collect) as changes:
        peer = peer_of(master, collect, **changes)
        assert peer.last_error is None
        assert peer.checkCollectIndicator() is False
        for operation in (lambda: peer.stagePeer(str(target)), peer.writeStageIndicator):
            assert type(peer.last_error) is kind
            peer.last_error = None
            raised = error_of(operation)
            assert type(raised) is kind
            assert str(peer.last_error) == str(raised)
        assert str(pickle.loads(pickle.dumps(peer)).last_error) == str(raised)
    [logged] = [record for record in caplog.records if record.name == "peerstage.peer"]
    assert logged.levelno == level
    assert logged.getMessage().startswith("db1")


def test_success_clears_the_error_and_a_peer_that_is_not_ready_has_none(
    master: Master, collect: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "peerstage.peer")
    (collect / "a").write_bytes(b"a")
    with served_by(serves)(master, collect), peer_of(master, collect) as peer:
        assert peer.checkCollectIndicator() is False
        assert peer.last_error is None
        assert [
            (record.levelname, record.getMessage()) for record in caplog.records if record.name == "peerstage.peer"
        ] == [("INFO", f"db1: {collect}/cback.collect does not exist yet.")]
        (collect / "cback.collect").touch()
        operations = (peer.checkCollectIndicator, lambda: peer.stagePeer(str(target)), peer.writeStageIndicator)
        for operation in operations:
            (collect / "lost").mkdir()
            assert isinstance(error_of(lambda: peer.stagePeer(str(target))), IncompleteStage)
            assert isinstance(peer.last_error, IncompleteStage)
            assert peer.last_error.report == peer.last_report
            (collect / "lost").rmdir()
            operation()
            assert peer.last_error is None


def test_a_wrong_argument_clears_the_error_of_an_earlier_call(master: Master, collect: Path) -> None:
    with refuses_connections(master, collect):
        peer = peer_of(master, collect)
        assert not peer.checkCollectIndicator()
        with pytest.raises(ValueError, match="plain file name"):
            peer.checkCollectIndicator("a/b")
        assert peer.last_error is None


def test_the_kept_error_refers_to_no_objects_of_the_call(master: Master, collect: Path, target: Path) -> None:
    with refuses_connections(master, collect):
        peer = peer_of(master, collect)
        error_of(lambda: peer.stagePeer(str(target)))
        for _ in range(2):
            assert peer.last_error is not None
            assert peer.last_error.__traceback__ is peer.last_error.__cause__ is peer.last_error.__context__ is None
            assert not peer.checkCollectIndicator()


def test_a_cancelled_check_is_logged_at_info(master: Master, collect: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "peerstage.peer")
    with refuses_connections(master, collect), peer_of(master, collect) as peer:
        peer.cancel()
        assert not peer.checkCollectIndicator()
        assert isinstance(peer.last_error, Cancelled)
    assert [record.levelno for record in caplog.records if record.name == "peerstage.peer"] == [logging.INFO]


def test_a_file_as_the_collect_directory_is_an_error(master: Master, collect: Path, sshd: Sshd) -> None:
    file = collect / "file"
    file.touch()
    for transport in ("sftp", "scp"):
        peer = RemotePeer(sshd.host, str(file), "/tmp", sshd.user, ssh=sshd.options(), transport=transport)
        assert not peer.checkCollectIndicator()
        assert isinstance(peer.last_error, RemoteError), transport


def test_a_guarded_peer_gets_only_the_requests_of_the_original(sshd: Sshd, tmp_path: Path) -> None:
    peer = RemotePeer(sshd.host, str(tmp_path / "no"), "/tmp", sshd.user, ssh=sshd.options(), guarded=True)
    assert not peer.checkCollectIndicator()
    assert peer.last_error is None


@pytest.mark.parametrize("how", ["isolated", "local user"])
def test_the_error_of_a_child_process_is_kept(
    sshd: Sshd, collect: Path, tmp_path: Path, public_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    options = (
        {"ssh": sshd.options(), "isolated": True} if how == "isolated" else isolated_options("sftp", sshd, public_path)
    )
    with RemotePeer(sshd.host, str(tmp_path / "missing"), "/tmp", sshd.user, **options) as peer:
        assert not peer.checkCollectIndicator()
        assert isinstance(peer.last_error, RemoteNotFound)
        assert str(peer.last_error).startswith(f"{sshd.host} {tmp_path}/missing: The peer has no such directory")
        peer.collectDir = str(collect)
        assert not peer.checkCollectIndicator()
        assert peer.last_error is None
        peer.cancel()
        assert not peer.checkCollectIndicator()
        assert isinstance(peer.last_error, Cancelled)


def test_a_local_peer_keeps_the_error(collect: Path, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "peerstage.peer")
    peer = LocalPeer("here", str(collect))
    assert not peer.checkCollectIndicator()
    assert peer.last_error is None
    assert isinstance(error_of(lambda: peer.stagePeer(str(target))), NothingToStage)
    assert isinstance(peer.last_error, NothingToStage)
    assert (peer.last_error.report, peer.last_report) == (None, None), "nothing was published"
    peer.writeStageIndicator()
    assert peer.last_error is None
    (collect / "cback.stage").unlink()
    collect.rmdir()
    assert not peer.checkCollectIndicator()
    assert isinstance(peer.last_error, RemoteNotFound)
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]
    assert all(record.getMessage().startswith("here") for record in caplog.records)


def test_a_new_peer_has_no_error(collect: Path) -> None:
    peers: tuple[BackupPeer, ...] = (RemotePeer("db1", str(collect), "/tmp", "backup"), LocalPeer("b", str(collect)))
    assert [peer.last_error for peer in peers] == [None, None]
