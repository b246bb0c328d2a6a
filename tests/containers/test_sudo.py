"""Files that only root may read, staged by another login through a real sudo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peerstage import Limits
from peerstage.errors import IncompleteStage, LimitExceeded, RemoteError
from peerstage.testing.contract import files_in
from support.containers import Bench, BenchPeer, FileTree

pytestmark = pytest.mark.kind("sudo")

SERVER = "/usr/lib/openssh/sftp-server"
FILES = {b"shadow": b"root's alone", b"cback.collect": b""}


@pytest.fixture
def sudo_peer(bench: Bench) -> BenchPeer:
    """A peer whose collect directory and files only root may read."""
    peer = bench.peer("sudo")
    tree = FileTree()
    for name, data in FILES.items():
        tree.add_file(name, data, 0o600, owner=0)
    peer.container.fill(tree)
    peer.container.execute("sh", "-c", "chown root:root /srv/collect && chmod 700 /srv/collect")
    return peer


def test_elevated_login_stages_and_marks_files_of_root(sudo_peer: BenchPeer, target: Path) -> None:
    with sudo_peer.remote("auto", ssh=sudo_peer.options(elevate=f"sudo -n {SERVER}")) as remote:
        assert remote.checkCollectIndicator()
        assert remote.stagePeer(str(target)) == 2
        remote.writeStageIndicator()
    assert files_in(target) == FILES
    marked = sudo_peer.container.files()[b"cback.stage"]
    assert (marked.data, marked.uid) == (b"", 0)


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_nothing_is_elevated_by_default(sudo_peer: BenchPeer, target: Path, transport: str) -> None:
    with sudo_peer.remote(transport) as remote:
        assert not remote.checkCollectIndicator()
        with pytest.raises(OSError, match=r"(?i)permission|may not be listed"):
            remote.stagePeer(str(target))
    assert os.listdir(target) == []


def test_unreadable_files_are_entry_errors_without_elevation(sudo_peer: BenchPeer, target: Path) -> None:
    sudo_peer.container.execute("chmod", "755", "/srv/collect")
    with pytest.raises(IncompleteStage, match="shadow"):
        sudo_peer.remote("sftp").stagePeer(str(target))


REFUSALS = {
    "a password that -n forbids to ask for": ("sudo -n /usr/bin/id", "sudo: a password is required"),
    "a password without a terminal": ("sudo /usr/bin/id", "sudo: a terminal is required"),
    "a command that is not allowed": ("sudo -n /bin/cat", "sudo: a password is required"),
    "su, which asks": ("su -c /usr/lib/openssh/sftp-server", "printed 'Password:'"),
}


@pytest.mark.parametrize(("command", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusal_is_quoted_with_the_line_for_sudoers(
    sudo_peer: BenchPeer, target: Path, command: str, words: str
) -> None:
    ssh = sudo_peer.options(elevate=command)
    remote = sudo_peer.remote("auto", ssh=ssh, limits=Limits(reply_timeout=3))
    with pytest.raises((RemoteError, LimitExceeded), match=f"{words}.*NOPASSWD: {SERVER}"):
        remote.stagePeer(str(target))
    assert os.listdir(target) == []


def test_sudo_that_waits_for_a_password_times_out(sudo_peer: BenchPeer, target: Path) -> None:
    ssh = sudo_peer.options(elevate="sudo -S /usr/bin/id")
    with pytest.raises(LimitExceeded, match=r"password for backup"):
        sudo_peer.remote("auto", ssh=ssh, limits=Limits(reply_timeout=2)).stagePeer(str(target))
    assert os.listdir(target) == []
