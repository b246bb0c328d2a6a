"""`RemotePeer` beyond the original: ssh's configuration, one login, lost connections, cancel, progress, leaks."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peerstage import Limits, Progress, RemotePeer, Retry, StageError, StageReport
from peerstage.errors import (
    Cancelled,
    ConnectError,
    ConnectionLost,
    LimitExceeded,
    NoSFTP,
    ProtocolError,
    TargetError,
)
from support.sshd import KillsSessions, Sshd

MIB = 1 << 20


def write_large_file(collect: Path, *, size: int = 64 * MIB) -> None:
    """Create a sparse file that takes a moment to transfer, and the indicator."""
    with (collect / "big").open("wb") as file:
        file.truncate(size)
    (collect / "cback.collect").touch()


def logins(server: Sshd) -> int:
    return server.log.count("Accepted publickey for")


def sftp_requests(server: Sshd) -> int:
    return len(re.findall(r"subsystem (?:'sftp'|request for sftp)", server.log))


def test_a_peer_configured_in_the_ssh_directory_of_the_user_needs_no_options(
    sshd: Sshd, collect: Path, target: Path, own_home: Path
) -> None:
    ssh = own_home / ".ssh"
    ssh.mkdir(mode=0o700)
    shutil.copy(sshd.identity, ssh / "id_ed25519")
    shutil.copy(sshd.known_hosts, ssh / "known_hosts")
    (ssh / "config").write_text(f"Host db1\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User somebody_else\n")
    (collect / "cback.collect").touch()

    peer = RemotePeer("db1", str(collect), "/tmp", sshd.user)
    assert peer.checkCollectIndicator()
    assert peer.stagePeer(str(target)) == 1
    peer.writeStageIndicator()

    assert (target / "cback.collect").exists()
    assert (collect / "cback.stage").exists()


def test_a_with_block_logs_in_once_and_each_call_outside_it_logs_in(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    server = own_sshd()
    write_large_file(collect, size=MIB)
    peer = RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=server.options())
    with peer:
        assert peer.checkCollectIndicator()
        assert not peer.checkCollectIndicator("missing")
        peer.stagePeer(str(target))
        peer.writeStageIndicator()
    assert logins(server) == 1
    assert peer.checkCollectIndicator()
    peer.writeStageIndicator()
    assert logins(server) == 3


def test_no_program_is_started(sshd: Sshd, collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"A process was started: {arguments}")

    (collect / "a").write_bytes(b"a")
    monkeypatch.setenv("PATH", "")
    for name in ("fork", "execve", "posix_spawn", "system"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    peer = RemotePeer(sshd.host, str(collect), None, sshd.user, ssh=sshd.options())
    assert peer.stagePeer(str(target)) == 1


def test_the_report_of_a_stage(peer: RemotePeer, sshd: Sshd, collect: Path, target: Path) -> None:
    (collect / "a").write_bytes(b"abc")
    (collect / "a").chmod(0o640)
    os.utime(collect / "a", (1_000_000_000, 1_000_000_000))
    peer.stagePeer(str(target))
    report = peer.last_report
    assert report is not None
    assert (report.peer, report.transport, report.target) == (sshd.host, "sftp", str(target))
    assert (report.count, report.bytes, report.failed, report.retries) == (1, 3, (), 0)
    assert (report.files[0].name, report.files[0].size, report.files[0].mtime) == ("a", 3, 1_000_000_000)
    fingerprints = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(sshd.home / "host.pub")], capture_output=True, text=True, check=True
    ).stdout
    assert report.host_key is not None
    assert report.host_key in fingerprints
    assert StageReport.from_json(report.to_json()) == report
    assert pickle.loads(pickle.dumps(report)) == report


def test_a_lost_connection_is_re_established_and_the_transfer_resumed(
    bulk: Path, leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    server = own_sshd()
    os.link(bulk, collect / "big")
    (collect / "cback.collect").touch()
    kill_once = KillsSessions(server, after=4 * MIB)
    peer = RemotePeer(
        server.host,
        str(collect),
        "/tmp",
        server.user,
        ssh=server.options(),
        on_progress=kill_once,
        retry=Retry(delay=0.05),
    )
    assert peer.stagePeer(str(target)) == 2
    assert kill_once.killed_at is not None
    subprocess.run(["cmp", str(collect / "big"), str(target / "big")], check=True)
    assert peer.last_report is not None
    assert peer.last_report.retries == 1
    assert peer.last_report.resumed_bytes >= 2 * MIB
    assert {file.name: file.outcome for file in peer.last_report.files} == {"big": "resumed", "cback.collect": "staged"}


def test_a_peer_that_does_not_come_back_leaves_the_target_unchanged(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    server = own_sshd()
    with (collect / "big").open("wb") as file:
        file.truncate(1 << 30)
    (target / "big").write_bytes(b"old")

    def kill(progress: Progress) -> None:
        if progress.bytes_done:
            server.stop()

    peer = RemotePeer(
        server.host, str(collect), "/tmp", server.user, ssh=server.options(), on_progress=kill, retry=Retry(delay=0.05)
    )
    with pytest.raises((ConnectError, ConnectionLost)) as caught:
        peer.stagePeer(str(target))
    assert str(caught.value).startswith(server.host)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"big": b"old"}
    assert peer.last_report is None


def test_a_file_that_changes_between_two_connections_is_fetched_from_the_start(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    server = own_sshd()
    write_large_file(collect, size=128 * MIB)
    changed: list[bool] = []

    def change(progress: Progress) -> None:
        if not changed and progress.bytes_done > 8 * MIB:
            changed.append(True)
            for pid in server.sessions():
                os.kill(pid, signal.SIGKILL)
            (collect / "new").write_bytes(b"new content, and shorter")
            os.replace(collect / "new", collect / "big")

    peer = RemotePeer(
        server.host,
        str(collect),
        "/tmp",
        server.user,
        ssh=server.options(),
        on_progress=change,
        retry=Retry(delay=0.05),
    )
    assert peer.stagePeer(str(target)) == 2
    assert (target / "big").read_bytes() == b"new content, and shorter"


def test_cancel_from_another_thread_ends_a_stage_before_anything_is_published(
    sshd: Sshd, collect: Path, target: Path, leaves_nothing: None
) -> None:
    write_large_file(collect, size=32 * MIB)
    begun, cancelled = threading.Event(), threading.Event()

    def wait_for_cancel(progress: Progress) -> None:
        if progress.bytes_done:
            begun.set()
            cancelled.wait(60)

    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=sshd.options(), on_progress=wait_for_cancel)

    def cancel() -> None:
        begun.wait()
        peer.cancel()
        cancelled.set()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(cancel)
        with pytest.raises(Cancelled, match=sshd.host):
            peer.stagePeer(str(target))
    assert list(target.iterdir()) == []
    peer.on_progress = None
    assert peer.stagePeer(str(target)) == 2


def test_cancel_in_a_with_block_holds_for_the_block(sshd: Sshd, collect: Path, target: Path) -> None:
    write_large_file(collect, size=MIB)
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=sshd.options())
    with peer:
        assert peer.checkCollectIndicator()
        peer.cancel()
        assert not peer.checkCollectIndicator()
        with pytest.raises(Cancelled):
            peer.stagePeer(str(target))
    assert peer.checkCollectIndicator()


def test_progress_is_reported_in_the_calling_thread_up_to_the_total(sshd: Sshd, collect: Path, target: Path) -> None:
    write_large_file(collect, size=32 * MIB)
    reported: list[tuple[Progress, threading.Thread]] = []
    peer = RemotePeer(
        sshd.host,
        str(collect),
        "/tmp",
        sshd.user,
        ssh=sshd.options(),
        on_progress=lambda progress: reported.append((progress, threading.current_thread())),
    )
    peer.stagePeer(str(target))
    assert {thread for _, thread in reported} == {threading.current_thread()}
    assert reported[-1][0] == Progress(2, 2, 32 * MIB, 32 * MIB)
    assert [progress.bytes_done for progress, _ in reported] == sorted(progress.bytes_done for progress, _ in reported)


def test_an_exception_of_on_progress_is_raised_after_the_cleanup(
    sshd: Sshd, collect: Path, target: Path, leaves_nothing: None
) -> None:
    write_large_file(collect)

    def fail(progress: Progress) -> None:
        if progress.bytes_done:
            raise KeyError("mine")

    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=sshd.options(), on_progress=fail)
    with pytest.raises(KeyError, match="mine"):
        peer.stagePeer(str(target))
    assert list(target.iterdir()) == []


def test_a_stopped_server_process_is_given_up_at_the_stall_timeout(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    server = own_sshd()
    write_large_file(collect)
    stopped: list[int] = []

    def stop(progress: Progress) -> None:
        if not stopped and progress.bytes_done:
            stopped.extend(server.sessions())
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)

    peer = RemotePeer(
        server.host,
        str(collect),
        "/tmp",
        server.user,
        ssh=server.options(),
        on_progress=stop,
        limits=Limits(stall_timeout=0.5),
        retry=Retry(tries=1),
    )
    with pytest.raises(LimitExceeded, match="stall_timeout"):
        peer.stagePeer(str(target))
    assert list(target.iterdir()) == []
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)


def test_the_deadline_ends_an_operation(own_sshd: Callable[..., Sshd], collect: Path, target: Path) -> None:
    server = own_sshd()
    write_large_file(collect, size=32 * MIB)
    slept: list[Progress] = []

    def outlast_deadline(progress: Progress) -> None:
        if progress.bytes_done and not slept:
            slept.append(progress)
            time.sleep(1.5)

    peer = RemotePeer(
        server.host,
        str(collect),
        "/tmp",
        server.user,
        ssh=server.options(),
        on_progress=outlast_deadline,
        limits=Limits(deadline=1.0),
    )
    with pytest.raises(LimitExceeded, match="deadline"):
        peer.stagePeer(str(target))
    assert list(target.iterdir()) == []


def test_an_unwritable_target_is_refused_before_connecting(tmp_path: Path) -> None:
    peer = RemotePeer("host.invalid", "/collect", "/tmp", "backup")
    if os.geteuid() == 0:
        target = Path("/proc/self")
    else:
        target = tmp_path / "target"
        target.mkdir(mode=0o500)
    with pytest.raises(TargetError):
        peer.stagePeer(str(target))


@pytest.mark.parametrize("sftp", ["/bin/false", "/bin/true", "/does/not/exist", ""])
def test_a_peer_without_sftp_is_reached_over_scp_from_then_on(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path, sftp: str
) -> None:
    server = own_sshd(sftp=sftp) if sftp else own_sshd(subsystem=False)
    (collect / "cback.collect").touch()
    peer = RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=server.options())
    with peer:
        assert peer.checkCollectIndicator()
        assert peer.stagePeer(str(target)) == 1
        peer.writeStageIndicator()
    assert peer.last_report is not None
    assert peer.last_report.transport == "scp"
    assert (collect / "cback.stage").exists()
    assert server.log.count("Accepted publickey") == 1, "one login for all"
    assert sftp_requests(server) == 1
    assert peer.checkCollectIndicator()
    assert pickle.loads(pickle.dumps(peer)).checkCollectIndicator()
    assert sftp_requests(server) == 1, "the choice is remembered"


def test_a_peer_without_sftp_is_an_error_if_sftp_was_requested(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    server = own_sshd(sftp="/bin/false")
    (collect / "a").touch()
    peer = RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=server.options(), transport="sftp")
    with pytest.raises(NoSFTP, match="choose the transport scp"):
        peer.stagePeer(str(target))
    assert sftp_requests(server) == 1, "it is not tried again"


def test_text_before_sftp_is_an_error_and_no_command_is_run(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    (collect / "a").touch()
    server = own_sshd()
    RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=server.options()).stagePeer(str(target))
    chatty_server = own_sshd(sftp="/bin/echo Welcome to db1")
    with pytest.raises(ProtocolError, match="Welcome to db1"):
        RemotePeer(chatty_server.host, str(collect), "/tmp", chatty_server.user, ssh=chatty_server.options()).stagePeer(
            str(target)
        )
    for sshd in (server, chatty_server):
        assert "Starting session: command" not in sshd.log


def test_the_fallback_to_scp_needs_only_one_channel_at_a_time(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    server = own_sshd(sftp="/bin/false", extra="MaxSessions 1")
    (collect / "cback.collect").touch()
    with RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=server.options()) as peer:
        for _ in range(3):
            assert peer.checkCollectIndicator()
            assert peer.stagePeer(str(target)) == 1
    assert server.log.count("Accepted publickey") == 1


def test_a_connection_lost_during_scp_is_re_established(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    server = own_sshd()
    for number in range(3):
        (collect / f"file{number}").write_bytes(os.urandom(24 * MIB))
    kill_once = KillsSessions(server, after=26 * MIB)
    peer = RemotePeer(
        server.host,
        str(collect),
        "/tmp",
        server.user,
        ssh=server.options(),
        transport="scp",
        retry=Retry(delay=0.1),
        on_progress=kill_once,
    )
    assert peer.stagePeer(str(target)) == 3
    assert kill_once.killed_at is not None
    assert peer.last_report is not None
    assert peer.last_report.retries == 1
    for number in range(3):
        assert (target / f"file{number}").read_bytes() == (collect / f"file{number}").read_bytes()


@pytest.mark.parametrize("working", ["/tmp", None])
def test_a_guarded_peer_refuses_paths_that_need_quoting(target: Path, working: str | None) -> None:
    peer = RemotePeer("host.invalid", "/srv/my files", working, "backup", guarded=True)
    for call in (lambda: peer.stagePeer(str(target)), peer.checkCollectIndicator, peer.writeStageIndicator):
        with pytest.raises(ValueError, match="quotes"):
            call()
    peer.collectDir = "/srv/collect"
    for method in (peer.checkCollectIndicator, peer.writeStageIndicator):
        with pytest.raises(ValueError, match="quotes"):
            method("with space")


def test_peers_in_several_threads_do_not_affect_each_other(sshd: Sshd, tmp_path: Path, leaves_nothing: None) -> None:
    peers = []
    for number in range(8):
        collect, target = tmp_path / f"collect{number}", tmp_path / f"target{number}"
        collect.mkdir()
        target.mkdir()
        (collect / "a").write_bytes(bytes([number]) * 100_000)
        user = sshd.user if number % 4 else "no_such_user"
        peers.append((RemotePeer(sshd.host, str(collect), "/tmp", user, ssh=sshd.options()), target))

    def stage(peer_and_target: tuple[RemotePeer, Path]) -> int | str:
        try:
            peer, target = peer_and_target
            return peer.stagePeer(str(target))
        except StageError as exc:
            return type(exc).__name__

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(stage, peers)) == [1 if number % 4 else "LoginError" for number in range(8)]


def test_two_runs_into_one_target_leave_one_complete_set(sshd: Sshd, collect: Path, target: Path) -> None:
    (collect / "big").write_bytes(os.urandom(8 * MIB))
    (collect / "cback.collect").touch()
    peers = [RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=sshd.options()) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda peer: peer.stagePeer(str(target)), peers)) == [2, 2, 2]
    assert sorted(os.listdir(target)) == ["big", "cback.collect"]
    assert (target / "big").read_bytes() == (collect / "big").read_bytes()


def test_a_failure_is_one_line_in_the_log_and_nothing_on_stderr(
    sshd: Sshd, collect: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "peerstage")
    RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=sshd.options(known_hosts=())).checkCollectIndicator()
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert capfd.readouterr().err == ""
