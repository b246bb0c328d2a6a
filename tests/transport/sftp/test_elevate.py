"""An SFTP server that a command of the peer starts: what it may say first, and what becomes of it if it does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import Limits, RemotePeer, Retry, SSHOptions
from peerstage.errors import LimitExceeded, StageError
from peerstage.testing.contract import landed
from support.local_user import apart, by_value
from support.programs import sftp_server
from support.sshd import Sshd


@pytest.fixture
def elevated(sshd: Sshd, collect: Path) -> Callable[..., RemotePeer]:
    """Returns a peer with two files whose SFTP server is a command."""
    (collect / "a").write_bytes(b"a")
    (collect / "cback.collect").touch()

    def make(command: str, **changes: object) -> RemotePeer:
        options = sshd.options(elevate=command)
        return RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=options, **changes)  # type: ignore[arg-type]

    return make


def test_the_command_is_run_as_it_stands_and_serves_all_three_operations(
    elevated: Callable[..., RemotePeer], target: Path, collect: Path, tmp_path: Path
) -> None:
    with elevated(f"echo \"it's $((40 + 2))\" >>'{tmp_path}/ran'; exec {sftp_server()}") as peer:
        assert peer.checkCollectIndicator()
        assert peer.stagePeer(str(target)) == 2
        peer.writeStageIndicator()
    assert landed(target) == {b"a": b"a", b"cback.collect": b""}
    assert (collect / "cback.stage").exists()
    assert (tmp_path / "ran").read_text() == "it's 42\n"
    assert peer.last_report is not None
    assert peer.last_report.transport == "sftp"


REFUSALS = {
    "text before the first packet": ("echo 'Welcome to db1'; exec {server}", "Welcome to db1"),
    "a refusal": ("echo 'sudo: a password is required' >&2; exit 1", "sudo: a password is required"),
    "a prompt on stdout": ("printf '[sudo] password for backup: '; cat >/dev/null", r"\[sudo\] password for backup:"),
    "a command that is not there": ("no-such-sftp-server", "no-such-sftp-server.*not found"),
    "an end without a word": ("exit 3", "saying nothing"),
    "half a packet": ("printf '\\000\\000'", "x00"),
    "text without end": ("yes", "y.ny.ny"),
    "escapes": ("printf '\\033[2J\\033[31mred'; cat >/dev/null", "x1b.*red"),
}


@pytest.mark.parametrize(("command", "words"), REFUSALS.values(), ids=REFUSALS.keys())
@pytest.mark.usefixtures("leaves_nothing")
def test_what_comes_in_the_place_of_sftp_is_quoted_with_advice(
    elevated: Callable[..., RemotePeer], target: Path, command: str, words: str
) -> None:
    peer = elevated(command.format(server=sftp_server()))
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
def test_a_command_that_waits_for_a_password_ends_in_time_and_is_not_tried_again(
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


def test_there_is_no_way_back_to_scp_which_would_see_less(
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
def test_whatever_is_not_sftp_is_refused_before_connecting(others: dict[str, object], target: Path) -> None:
    ssh = SSHOptions(elevate="sudo -n sftp-server", config=())
    peer = RemotePeer("host.invalid", "/c", "/tmp", "backup", ssh=ssh, **others)  # type: ignore[arg-type]
    for call in (lambda: peer.stagePeer(str(target)), peer.checkCollectIndicator, peer.writeStageIndicator):
        with pytest.raises(ValueError, match=r"elevate means SFTP"):
            call()


def test_a_child_of_another_local_user_elevates_too(sshd: Sshd, collect: Path, target: Path, public_path: Path) -> None:
    (collect / "a").write_bytes(b"a")
    for command, words in ((f"exec {sftp_server()}", None), ("echo Password:; cat >/dev/null", "saying 'Password:'")):
        way = {**apart("sftp", sshd, public_path), "ssh": by_value(sshd, elevate=command)}
        peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, **way)
        if words is None:
            assert peer.stagePeer(str(target)) == 1
        else:
            with pytest.raises(StageError, match=words):
                peer.stagePeer(str(target))
