"""An SFTP server that a command on the peer starts, and commands that fail to start one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import Limits, RemotePeer, Retry, SSHOptions
from peerstage.errors import LimitExceeded, StageError
from peerstage.testing.contract import files_in
from support.local_user import isolated_options, options_by_value
from support.programs import sftp_server_path
from support.sshd import Sshd


@pytest.fixture
def elevated(sshd: Sshd, collect: Path) -> Callable[..., RemotePeer]:
    """Return a function that makes a peer with two files, whose SFTP server a command starts."""
    (collect / "a").write_bytes(b"a")
    (collect / "cback.collect").touch()

    def make(command: str, **changes: object) -> RemotePeer:
        options = sshd.options(elevate=command)
        return RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=options, **changes)  # type: ignore[arg-type]

    return make


def test_the_command_is_run_unchanged_and_serves_all_three_operations(
    elevated: Callable[..., RemotePeer], target: Path, collect: Path, tmp_path: Path
) -> None:
    with elevated(f"echo \"it's $((40 + 2))\" >>'{tmp_path}/ran'; exec {sftp_server_path()}") as peer:
        assert peer.checkCollectIndicator()
        assert peer.stagePeer(str(target)) == 2
        peer.writeStageIndicator()
    assert files_in(target) == {b"a": b"a", b"cback.collect": b""}
    assert (collect / "cback.stage").exists()
    assert (tmp_path / "ran").read_text() == "it's 42\n"
    assert peer.last_report is not None
    assert peer.last_report.transport == "sftp"


FAILURES = {
    "text before the first packet": ("echo 'Welcome to db1'; exec {server}", "Welcome to db1"),
    "a refusal": ("echo 'sudo: a password is required' >&2; exit 1", "sudo: a password is required"),
    "a prompt on stdout": ("printf '[sudo] password for backup: '; cat >/dev/null", r"\[sudo\] password for backup:"),
    "a missing command": ("no-such-sftp-server", "no-such-sftp-server.*not found"),
    "an exit without output": ("exit 3", "printed nothing"),
    "part of a packet": ("printf '\\000\\000'", "x00"),
    "endless text": ("yes", "y.ny.ny"),
    "escape sequences": ("printf '\\033[2J\\033[31mred'; cat >/dev/null", "x1b.*red"),
}


@pytest.mark.parametrize(("command", "words"), FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.usefixtures("leaves_nothing")
def test_output_instead_of_sftp_is_quoted_with_advice(
    elevated: Callable[..., RemotePeer], target: Path, command: str, words: str
) -> None:
    peer = elevated(command.format(server=sftp_server_path()))
    with pytest.raises(StageError, match=words) as caught:
        peer.stagePeer(str(target))
    text = str(caught.value)
    assert text.isprintable()
    assert "NOPASSWD" in text
    assert len(text) < 1200
    assert not caught.value.transient
    assert os.listdir(target) == []
    assert not peer.checkCollectIndicator()


@pytest.mark.parametrize("limits", [Limits(reply_timeout=1), Limits(stall_timeout=1)], ids=["reply", "stall"])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_password_prompt_times_out_and_is_not_retried(
    elevated: Callable[..., RemotePeer], target: Path, tmp_path: Path, limits: Limits
) -> None:
    command = f"echo >>'{tmp_path}/ran'; printf '[sudo] password for backup: ' >&2; cat >/dev/null"
    peer = elevated(command, limits=limits, retry=Retry(delay=0))
    with pytest.raises(LimitExceeded, match=r"password for backup: ?'.*NOPASSWD"):
        peer.stagePeer(str(target))
    assert (tmp_path / "ran").read_text() == "\n"


@pytest.mark.usefixtures("leaves_nothing")
def test_a_flood_on_stderr_ends_the_run(elevated: Callable[..., RemotePeer], target: Path) -> None:
    peer = elevated("cat /dev/zero >&2", retry=Retry(tries=1))
    with pytest.raises(StageError, match=r"x00.*NOPASSWD"):
        peer.stagePeer(str(target))


def test_there_is_no_fallback_to_scp_which_would_run_unelevated(
    elevated: Callable[..., RemotePeer], target: Path, tmp_path: Path
) -> None:
    peer = elevated("exit 1", transport="auto")
    for _ in range(2):
        with pytest.raises(StageError, match="elevated"):
            peer.stagePeer(str(target))


@pytest.mark.parametrize(
    "others",
    [{"transport": "scp"}, {"transport": "rcp"}, {"rcpCommand": "/bin/false"}, {"guarded": True}],
    ids=lambda others: str(next(iter(others.items()))),
)
def test_options_other_than_sftp_are_rejected_before_connecting(others: dict[str, object], target: Path) -> None:
    ssh = SSHOptions(elevate="sudo -n sftp-server", config=())
    peer = RemotePeer("host.invalid", "/c", "/tmp", "backup", ssh=ssh, **others)  # type: ignore[arg-type]
    for operation in (lambda: peer.stagePeer(str(target)), peer.checkCollectIndicator, peer.writeStageIndicator):
        with pytest.raises(ValueError, match=r"elevate requires SFTP"):
            operation()


def test_an_isolated_child_of_another_local_user_elevates_too(
    sshd: Sshd, collect: Path, target: Path, public_path: Path
) -> None:
    (collect / "a").write_bytes(b"a")
    for command, words in (
        (f"exec {sftp_server_path()}", None),
        ("echo Password:; cat >/dev/null", "printed 'Password:'"),
    ):
        options = {**isolated_options("sftp", sshd, public_path), "ssh": options_by_value(sshd, elevate=command)}
        peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, **options)
        if words is None:
            assert peer.stagePeer(str(target)) == 1
        else:
            with pytest.raises(StageError, match=words):
                peer.stagePeer(str(target))
