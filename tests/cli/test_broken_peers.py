"""Broken peers and targets: following the message of a verb literally makes the peer work again.

Directories, files, indicators, transports, disks.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.command import Command
from cli.peer_setup import PeerSetup, commands_in
from peerstage.errors import IncompleteStage
from peerstage.reasons import Reason
from peerstage.transport.sftp import wire
from support.filesystems import tmpfs
from support.sftp_server import MTIME, FakeSFTPServer, Node, pack_attributes, pack_packet, stage_from
from support.sshd import Sshd

Start = Callable[..., Sshd]


@pytest.fixture
def setup(own_home: Path, collect: Path, target: Path, sshd: Sshd, command: Command) -> PeerSetup:
    return PeerSetup(own_home, collect, target, sshd, command)


@pytest.fixture
def unprivileged_setup(
    own_home: Path, public_path: Path, target: Path, unprivileged_sshd: Sshd, command: Command
) -> Iterator[PeerSetup]:
    """A set-up whose login is not root, so that file modes matter."""
    setup = PeerSetup(own_home, public_path / "collect", target, unprivileged_sshd, command)
    yield setup
    setup.collect.chmod(0o755)


def over(setup: PeerSetup, transport: str) -> PeerSetup:
    setup.options += ["--transport", transport]
    return setup


# --- directories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["sftp", "scp"])
@pytest.mark.parametrize("verb", ["check", "stage", "mark"])
def test_a_directory_that_is_missing_is_created(setup: PeerSetup, transport: str, verb: str) -> None:
    over(setup, transport)
    for path in setup.collect.iterdir():
        path.unlink()
    setup.collect.rmdir()
    message = setup.fails("not-found", verb)
    found = re.search(rf"(?P<path>{setup.collect})\S*: .*`(?P<command>mkdir -p)`", message)
    assert found is not None, message
    subprocess.run([*found["command"].split(), found["path"]], check=True)
    assert setup.run("check")[0] == 3, "it is there, and nothing was collected yet"
    setup.finish_collecting()
    setup.works()


@pytest.mark.parametrize("transport", ["sftp", "scp"])
@pytest.mark.parametrize("verb", ["check", "stage"])
def test_a_file_given_as_directory_is_replaced_by_its_parent(setup: PeerSetup, transport: str, verb: str) -> None:
    over(setup, transport).directory /= "data"
    assert "Give the directory that holds the files" in setup.fails("not-a-directory", verb)
    setup.directory = setup.directory.parent
    setup.works()


def test_an_empty_directory_waits_for_the_peer(setup: PeerSetup) -> None:
    for path in setup.collect.iterdir():
        path.unlink()
    assert "Let the peer collect first." in setup.fails("nothing-to-stage", "stage", status=5)
    setup.finish_collecting()
    setup.works()


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_a_file_that_the_peer_cannot_read_is_opened_to_its_user(unprivileged_setup: PeerSetup, transport: str) -> None:
    setup = over(unprivileged_setup, transport)
    (setup.collect / "data").chmod(0)
    os.chown(setup.collect / "data", setup.collect.stat().st_uid, -1)
    message = setup.fails("incomplete-stage", "stage", status=5)
    assert "data: " in message
    assert "Give the remote user read permission on it" in message
    command = re.findall(r"`(chmod \S+)`", message)[0]
    subprocess.run([*command.split(), setup.collect / "data"], check=True)
    setup.works()


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_an_unwritable_directory_needs_write_permission_and_not_read_permission(
    unprivileged_setup: PeerSetup, transport: str
) -> None:
    setup = over(unprivileged_setup, transport)
    setup.collect.chmod(0o555)
    message = setup.fails("write-denied", "mark")
    assert "read" not in message
    subprocess.run(re.findall(r"`(chmod .*?)`", message)[0].split(), check=True)
    setup.works()


def test_a_file_that_grows_while_it_is_staged_waits_for_the_peer_to_finish(target: Path) -> None:
    class StillCollects(FakeSFTPServer):
        """Appends to a file between its listing and its last FSTAT."""

        def fstat(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
            node = self.handles[handle]
            assert isinstance(node, Node)
            return [pack_packet(wire.FXP_ATTRS, request_id, pack_attributes(Node(node.data + b"more", mtime=MTIME)))]

    with pytest.raises(IncompleteStage, match=r"Let the peer finish collecting first.*indicator last") as caught:
        stage_from(StillCollects({b"dump": Node(b"x" * 100)}), target)
    assert caught.value.report is not None
    assert [one.reason for one in caught.value.report.failed] == [Reason.CHANGED_WHILE_STAGED]
    assert stage_from(FakeSFTPServer({b"dump": Node(b"x" * 104)}), target).count == 1


# --- transports ------------------------------------------------------------------------------------------------------


def test_a_forced_command_for_another_directory_is_compared_with_it(
    own_home: Path, collect: Path, target: Path, own_sshd: Start, command: Command
) -> None:
    setup = over(PeerSetup(own_home, collect, target, own_sshd(), command), "guarded")
    guard = setup.home / "guard"
    guard.write_text(
        "#!/bin/sh\n"
        'case "$SSH_ORIGINAL_COMMAND" in "scp -"[ft]" $1/"*) exec sh -c "$SSH_ORIGINAL_COMMAND";; esac\n'
        'echo "forbidden: $SSH_ORIGINAL_COMMAND" >&2\nexit 1\n'
    )
    guard.chmod(0o755)
    keys = setup.sshd.home / "authorized_keys"
    keys.write_text(f'command="{guard} {setup.collect}" {keys.read_text()}')
    setup.directory = setup.home
    for verb in ("check", "stage", "mark"):
        message = setup.fails("command-refused", verb)
        assert "forbidden: " in message
        assert "compare the directory with its command= in authorized_keys" in message
    setup.directory = Path(re.findall(r'command="\S+ (\S+)"', keys.read_text())[0])
    setup.works()


def test_a_peer_without_sftp_is_reached_by_scp(
    own_home: Path, collect: Path, target: Path, own_sshd: Start, command: Command
) -> None:
    setup = over(PeerSetup(own_home, collect, target, own_sshd(subsystem=False), command), "sftp")
    message = setup.fails("no-sftp")
    assert commands_in(message) == ["Subsystem sftp internal-sftp"]
    chosen = re.findall(r"choose the transport (\w+)", message)
    setup.options[-1:] = chosen
    setup.works()


# --- this machine ----------------------------------------------------------------------------------------------------


def test_a_target_that_is_missing_is_made(setup: PeerSetup) -> None:
    setup.target = setup.target / "to day" / "db1"
    setup.follow(setup.fails("target-missing", "stage", status=6))
    setup.works()


def test_a_target_that_is_a_file_is_replaced(setup: PeerSetup) -> None:
    place = setup.target / "file"
    place.touch()
    right, setup.target = setup.target, place
    assert "Give another one" in setup.fails("target-not-a-directory", "stage", status=6)
    setup.target = right
    setup.works()


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_space_is_freed_on_a_full_target(setup: PeerSetup, tmp_path: Path, transport: str, root: None) -> None:
    over(setup, transport)
    (setup.collect / "large").write_bytes(os.urandom(400_000))
    with tmpfs(tmp_path / "disk", "size=512k") as setup.target:
        (setup.target / "old").write_bytes(bytes(300_000))
        message = setup.fails("no-space", "stage", status=6)
        assert "Free some space" in message
        (setup.target / "old").unlink()
        setup.works()


def test_a_target_that_is_read_only_is_mounted_writable(setup: PeerSetup, tmp_path: Path, root: None) -> None:
    with tmpfs(tmp_path / "disk", "size=1m,ro") as setup.target:
        assert "Mount the target read-write" in setup.fails("read-only-target", "stage", status=6)
        subprocess.run(["mount", "-o", "remount,rw", setup.target], check=True)
        setup.works()


# --- what stays behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_the_message_about_an_empty_directory_names_hidden_entries(setup: PeerSetup, options: list[str]) -> None:
    for number in range(30):
        (setup.collect / f".hidden{number:02}").touch()
    (setup.collect / ".profile.d").mkdir()
    spec = f"{setup.user}@db1:{setup.collect}"
    done = setup.command("stage", "-v", *options, spec, setup.target)
    assert done.returncode == 0
    report = next(line for line in done.stderr.splitlines() if "hidden" in line)
    assert "db1: hidden entries are not staged: .hidden" in report
    assert len(re.findall(r" \.\w", report)) == 20
    assert report.endswith(", and 11 more.")
    assert "hidden" not in setup.command("stage", *options, spec, setup.target).stderr
    assert not list(setup.target.glob(".hidden*"))
