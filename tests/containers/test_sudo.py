"""What root alone may read, staged by a login that is not root, through a real sudo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peerstage import Limits
from peerstage.errors import IncompleteStage, LimitExceeded, RemoteError
from peerstage.testing.contract import landed
from support.containers import Bench, BenchPeer, Files

pytestmark = pytest.mark.kind("sudo")

SERVER = "/usr/lib/openssh/sftp-server"
FILES = {b"shadow": b"root's alone", b"cback.collect": b""}


@pytest.fixture
def sudoer(bench: Bench) -> BenchPeer:
    """A peer whose collect directory, its files included, is root's alone."""
    peer = bench.peer("sudo")
    tree = Files()
    for name, data in FILES.items():
        tree.file(name, data, 0o600, owner=0)
    peer.container.fill(tree)
    peer.container.execute("sh", "-c", "chown root:root /srv/collect && chmod 700 /srv/collect")
    return peer


def test_root_s_files_are_staged_and_marked_by_a_login_that_is_not_root(sudoer: BenchPeer, target: Path) -> None:
    with sudoer.remote("auto", ssh=sudoer.options(elevate=f"sudo -n {SERVER}")) as remote:
        assert remote.checkCollectIndicator()
        assert remote.stagePeer(str(target)) == 2
        remote.writeStageIndicator()
    assert landed(target) == FILES
    marked = sudoer.container.files()[b"cback.stage"]
    assert (marked.data, marked.uid) == (b"", 0)


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_without_being_asked_nothing_is_elevated(sudoer: BenchPeer, target: Path, transport: str) -> None:
    with sudoer.remote(transport) as remote:
        assert not remote.checkCollectIndicator()
        with pytest.raises(OSError, match=r"(?i)permission|may not be listed"):
            remote.stagePeer(str(target))
    assert os.listdir(target) == []


def test_files_that_the_login_may_not_read_are_errors_of_their_own_without_it(sudoer: BenchPeer, target: Path) -> None:
    sudoer.container.execute("chmod", "755", "/srv/collect")
    with pytest.raises(IncompleteStage, match="shadow"):
        sudoer.remote("sftp").stagePeer(str(target))


REFUSALS = {
    "a password that -n forbids to ask for": ("sudo -n /usr/bin/id", "sudo: a password is required"),
    "a password without a terminal": ("sudo /usr/bin/id", "sudo: a terminal is required"),
    "a command that is not allowed": ("sudo -n /bin/cat", "sudo: a password is required"),
    "su, which asks": ("su -c /usr/lib/openssh/sftp-server", "saying 'Password:'"),
}


@pytest.mark.parametrize(("command", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_is_quoted_with_the_line_that_sudoers_needs(
    sudoer: BenchPeer, target: Path, command: str, words: str
) -> None:
    ssh = sudoer.options(elevate=command)
    remote = sudoer.remote("auto", ssh=ssh, limits=Limits(reply_timeout=3))
    with pytest.raises((RemoteError, LimitExceeded), match=f"{words}.*NOPASSWD: {SERVER}"):
        remote.stagePeer(str(target))
    assert os.listdir(target) == []


def test_a_sudo_that_waits_for_a_password_is_given_up_in_time(sudoer: BenchPeer, target: Path) -> None:
    ssh = sudoer.options(elevate="sudo -S /usr/bin/id")
    with pytest.raises(LimitExceeded, match=r"password for backup"):
        sudoer.remote("auto", ssh=ssh, limits=Limits(reply_timeout=2)).stagePeer(str(target))
    assert os.listdir(target) == []
