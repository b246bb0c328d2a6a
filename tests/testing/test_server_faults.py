"""Faults of the embedded server: refused logins, lost and slow connections, denied paths."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from peerstage import Limits, RemotePeer, Retry
from peerstage.errors import (
    ConnectError,
    IncompleteStage,
    LimitExceeded,
    LoginError,
    NoSFTP,
    RemoteError,
    StageError,
)
from peerstage.testing import EmbeddedServer, Faults, hash_files, ssh_server
from support.programs import require_program
from support.waiting import exits_within, wait_until

SIZE = 2_000_000


def peer_of(server: EmbeddedServer, directory: str = "/", **options: Any) -> RemotePeer:
    return RemotePeer(server.host, directory, None, server.username, ssh=server.options, **options)


@pytest.fixture
def filled(collect: Path, fresh_interpreter: str) -> Path:
    (collect / "cback.collect").touch()
    (collect / "data").write_bytes(os.urandom(SIZE))
    return collect


def test_a_server_without_sftp_is_staged_from_over_scp(filled: Path, target: Path, leaves_nothing: None) -> None:
    with ssh_server(filled, sftp=False) as server:
        peer = peer_of(server)
        assert peer.checkCollectIndicator()
        assert peer.stagePeer(target) == 2
        peer.writeStageIndicator()
        assert peer.last_report is not None
        assert peer.last_report.transport == "scp"
        with pytest.raises(NoSFTP):
            peer_of(server, transport="sftp").stagePeer(target)
    assert hash_files(target)[b"data"] == hash_files(filled)[b"data"]
    assert (filled / "cback.stage").exists()


GUARD = """
case "$SSH_ORIGINAL_COMMAND" in
    "scp -f {0}/*"|"scp -f {0}/cback.collect"|"scp -t {0}/cback.stage") exec $SSH_ORIGINAL_COMMAND;;
    *) echo "guard: refused" >&2; exit 1;;
esac
"""


@pytest.mark.usefixtures("openssh")
def test_a_forced_command_replaces_the_clients_command(filled: Path, target: Path, leaves_nothing: None) -> None:
    require_program("scp")
    with ssh_server(filled, forced_command=GUARD.format(filled)) as server:
        peer = peer_of(server, str(filled), guarded=True)
        assert peer.checkCollectIndicator()
        assert peer.stagePeer(target) == 2
        peer.writeStageIndicator()
        with pytest.raises(RemoteError, match="guard: refused"):
            peer.executeRemoteCommand("id")
        with pytest.raises(NoSFTP):
            peer_of(server, transport="sftp").stagePeer(target)
    assert hash_files(target)[b"data"] == hash_files(filled)[b"data"]
    assert (filled / "cback.stage").exists()


def test_a_forced_command_ends_with_the_server(filled: Path, tmp_path: Path) -> None:
    said = tmp_path / "pid"
    command = f"echo $$ > {said}.new; mv {said}.new {said}; trap '' HUP PIPE; while :; do sleep 1; done"
    with ThreadPoolExecutor(1) as pool, ssh_server(filled, forced_command=command) as server:
        running = pool.submit(peer_of(server).executeRemoteCommand, "x")
        wait_until(said.exists)
        assert not running.done()
    assert exits_within(int(said.read_text()))
    assert isinstance(running.exception(), StageError)


def test_a_login_is_refused(filled: Path, target: Path) -> None:
    with ssh_server(filled, faults=Faults(refuse_login=True, faulty_connections=1)) as server:
        with pytest.raises(LoginError):
            peer_of(server).stagePeer(target)
        assert peer_of(server).stagePeer(target) == 2, "the second connection is no faulty one"


def test_a_connection_is_closed_before_the_server_identifies_itself(filled: Path, target: Path) -> None:
    with ssh_server(filled, faults=Faults(cut_after=0, faulty_connections=1)) as server:
        with pytest.raises(ConnectError):
            peer_of(server).stagePeer(target)
        assert peer_of(server).stagePeer(target) == 2


def test_a_connection_that_is_cut_off_is_re_established(filled: Path, target: Path) -> None:
    with ssh_server(filled, faults=Faults(cut_after=SIZE // 2, faulty_connections=1)) as server:
        peer = peer_of(server, retry=Retry(delay=0))
        assert peer.stagePeer(target) == 2
    assert peer.last_report is not None
    assert peer.last_report.retries == 1
    assert peer.last_report.resumed_bytes > 0
    assert hash_files(target)[b"data"] == hash_files(filled)[b"data"]


def test_a_connection_that_stalls_is_given_up(filled: Path, target: Path) -> None:
    with (
        ssh_server(filled, faults=Faults(stall_after=SIZE // 2)) as server,
        pytest.raises(LimitExceeded, match="stall_timeout"),
    ):
        peer_of(server, limits=Limits(stall_timeout=0.5, reply_timeout=30), retry=Retry(tries=1)).stagePeer(target)
    assert os.listdir(target) == []


def test_a_slow_connection_is_slow(filled: Path, target: Path) -> None:
    with (
        ssh_server(filled, faults=Faults(bytes_per_second=SIZE // 20)) as server,
        pytest.raises(LimitExceeded, match="deadline"),
    ):
        peer_of(server, limits=Limits(deadline=1.0)).stagePeer(target)
    assert os.listdir(target) == []


@pytest.mark.parametrize("sftp", [True, False], ids=["sftp", "scp"])
def test_paths_are_denied(filled: Path, target: Path, sftp: bool) -> None:
    (filled / "secret").write_bytes(b"secret")
    with (
        ssh_server(filled, sftp=sftp, faults=Faults(deny=("/secret",))) as server,
        pytest.raises(IncompleteStage, match=r"secret.*(denies permission|Permission denied)"),
    ):
        peer_of(server).stagePeer(target)
    assert sorted(os.listdir(target)) == ["cback.collect", "data"]


def test_a_denied_directory_cannot_be_listed(filled: Path, target: Path) -> None:
    with (
        ssh_server(filled, faults=Faults(deny=(b"/",))) as server,
        pytest.raises(RemoteError, match="denies permission"),
    ):
        peer_of(server).stagePeer(target)


@pytest.mark.parametrize("sftp", [True, False], ids=["sftp", "scp"])
def test_writes_fail_without_space_and_reads_do_not(filled: Path, target: Path, sftp: bool) -> None:
    with ssh_server(filled, sftp=sftp, faults=Faults(no_space=True)) as server:
        peer = peer_of(server)
        assert peer.stagePeer(target) == 2
        with pytest.raises(RemoteError, match=r"cback\.stage.*No space left"):
            peer.writeStageIndicator()
    assert not (filled / "cback.stage").exists()


def test_a_server_without_a_given_directory_has_a_temporary_one(fresh_interpreter: str, target: Path) -> None:
    with ssh_server() as server:
        assert os.listdir(server.directory) == []
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        (server.directory / "data").write_bytes(b"content")
        assert peer_of(server).stagePeer(target) == 1
    assert not server.directory.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"cut_after": -1},
        {"cut_after": True},
        {"stall_after": 1.5},
        {"bytes_per_second": 0},
        {"faulty_connections": -1},
        {"cut_after": 1, "stall_after": 1},
        {"deny": "/path"},
        {"deny": ("relative",)},
    ],
    ids=str,
)
def test_invalid_faults_are_value_errors(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Faults: "):
        Faults(**values)
