"""Peers and targets that are broken: the message of a verb names the next step, and that step, carried out to the
letter, makes the peer work: directories, files, indicators, transports, disks."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.command import Command
from cli.setups import Setup, commands_in
from peerstage.errors import IncompleteStage
from peerstage.reasons import Reason
from peerstage.transport.sftp import wire
from support.filesystems import tmpfs
from support.sftp_server import MTIME, Node, Server, attributes, packet, stage_from
from support.sshd import Sshd

Start = Callable[..., Sshd]


@pytest.fixture
def setup(own_home: Path, collect: Path, target: Path, sshd: Sshd, command: Command) -> Setup:
    return Setup(own_home, collect, target, sshd, command)


@pytest.fixture
def unprivileged_setup(
    own_home: Path, public_path: Path, target: Path, unprivileged_sshd: Sshd, command: Command
) -> Iterator[Setup]:
    """A set-up whose login is not root, so that modes mean something."""
    setup = Setup(own_home, public_path / "collect", target, unprivileged_sshd, command)
    yield setup
    setup.collect.chmod(0o755)


def over(setup: Setup, transport: str) -> Setup:
    setup.options += ["--transport", transport]
    return setup


# --- directories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["sftp", "scp"])
@pytest.mark.parametrize("verb", ["check", "stage", "mark"])
def test_a_directory_that_is_missing_is_created(setup: Setup, transport: str, verb: str) -> None:
    over(setup, transport)
    for path in setup.collect.iterdir():
        path.unlink()
    setup.collect.rmdir()
    said = setup.fails("not-found", verb)
    found = re.search(rf"(?P<path>{setup.collect})\S*: .*`(?P<command>mkdir -p)`", said)
    assert found is not None, said
    subprocess.run([*found["command"].split(), found["path"]], check=True)
    assert setup.run("check")[0] == 3, "it is there, and nothing was collected yet"
    setup.finish_collecting()
    setup.works()


@pytest.mark.parametrize("transport", ["sftp", "scp"])
@pytest.mark.parametrize("verb", ["check", "stage"])
def test_a_directory_that_is_a_file_is_replaced_by_the_one_that_holds_it(
    setup: Setup, transport: str, verb: str
) -> None:
    over(setup, transport).directory /= "data"
    assert "Give the directory that holds the files" in setup.fails("not-a-directory", verb)
    setup.directory = setup.directory.parent
    setup.works()


def test_an_empty_directory_waits_for_the_peer(setup: Setup) -> None:
    for path in setup.collect.iterdir():
        path.unlink()
    assert "Has the peer collected?" in setup.fails("nothing-to-stage", "stage", status=5)
    setup.finish_collecting()
    setup.works()


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_a_file_that_the_peer_cannot_read_is_opened_to_its_user(unprivileged_setup: Setup, transport: str) -> None:
    setup = over(unprivileged_setup, transport)
    (setup.collect / "data").chmod(0)
    os.chown(setup.collect / "data", setup.collect.stat().st_uid, -1)
    said = setup.fails("incomplete-stage", "stage", status=5)
    assert "data: " in said
    assert "Let the user who logs in read it" in said
    command = re.findall(r"`(chmod \S+)`", said)[0]
    subprocess.run([*command.split(), setup.collect / "data"], check=True)
    setup.works()


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_an_indicator_that_cannot_be_written_is_no_matter_of_reading(unprivileged_setup: Setup, transport: str) -> None:
    setup = over(unprivileged_setup, transport)
    setup.collect.chmod(0o555)
    said = setup.fails("write-denied", "mark")
    assert "read" not in said
    subprocess.run(re.findall(r"`(chmod .*?)`", said)[0].split(), check=True)
    setup.works()


def test_a_file_that_grows_while_it_is_staged_waits_for_the_peer_to_finish(target: Path) -> None:
    class StillCollects(Server):
        """Appends to a file between its listing and its last FSTAT."""

        def fstat(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
            node = self.handles[handle]
            assert isinstance(node, Node)
            return [packet(wire.ATTRS, number, attributes(Node(node.data + b"more", mtime=MTIME)))]

    with pytest.raises(IncompleteStage, match=r"Let the peer finish collecting first.*indicator last") as caught:
        stage_from(StillCollects({b"dump": Node(b"x" * 100)}), target)
    assert caught.value.report is not None
    assert [one.reason for one in caught.value.report.failed] == [Reason.CHANGED_WHILE_STAGED]
    assert stage_from(Server({b"dump": Node(b"x" * 104)}), target).count == 1


# --- transports ------------------------------------------------------------------------------------------------------


def test_a_forced_command_for_another_directory_is_compared_with_it(
    own_home: Path, collect: Path, target: Path, own_sshd: Start, command: Command
) -> None:
    setup = over(Setup(own_home, collect, target, own_sshd(), command), "guarded")
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
        said = setup.fails("command-refused", verb)
        assert "forbidden: " in said
        assert "compare the directory with the command= in the key's line of authorized_keys" in said
    setup.directory = Path(re.findall(r'command="\S+ (\S+)"', keys.read_text())[0])
    setup.works()


def test_a_peer_without_sftp_is_reached_by_scp(
    own_home: Path, collect: Path, target: Path, own_sshd: Start, command: Command
) -> None:
    setup = over(Setup(own_home, collect, target, own_sshd(subsystem=False), command), "sftp")
    said = setup.fails("no-sftp")
    assert commands_in(said) == ["Subsystem sftp internal-sftp"]
    chosen = re.findall(r"choose the transport (\w+)", said)
    setup.options[-1:] = chosen
    setup.works()


# --- this machine ----------------------------------------------------------------------------------------------------


def test_a_target_that_is_missing_is_made(setup: Setup) -> None:
    setup.target = setup.target / "to day" / "db1"
    setup.follow(setup.fails("target-missing", "stage", status=6))
    setup.works()


def test_a_target_that_is_a_file_is_replaced(setup: Setup) -> None:
    place = setup.target / "file"
    place.touch()
    right, setup.target = setup.target, place
    assert "Give another one" in setup.fails("target-not-a-directory", "stage", status=6)
    setup.target = right
    setup.works()


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_a_target_that_is_full_is_made_room_on(setup: Setup, tmp_path: Path, transport: str, root: None) -> None:
    over(setup, transport)
    (setup.collect / "large").write_bytes(os.urandom(400_000))
    with tmpfs(tmp_path / "disk", "size=512k") as setup.target:
        (setup.target / "old").write_bytes(bytes(300_000))
        said = setup.fails("no-space", "stage", status=6)
        assert "Make room" in said or "Free" in said
        (setup.target / "old").unlink()
        setup.works()


def test_a_target_that_is_read_only_is_mounted_writable(setup: Setup, tmp_path: Path, root: None) -> None:
    with tmpfs(tmp_path / "disk", "size=1m,ro") as setup.target:
        assert "Mount the target writable" in setup.fails("read-only-target", "stage", status=6)
        subprocess.run(["mount", "-o", "remount,rw", setup.target], check=True)
        setup.works()


# --- what stays behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_hidden_entries_are_named_where_more_is_asked_for(setup: Setup, options: list[str]) -> None:
    for number in range(30):
        (setup.collect / f".hidden{number:02}").touch()
    (setup.collect / ".profile.d").mkdir()
    spec = f"{setup.user}@db1:{setup.collect}"
    done = setup.command("stage", "-v", *options, spec, setup.target)
    assert done.returncode == 0
    told = next(line for line in done.stderr.splitlines() if "hidden" in line)
    assert "db1: hidden entries are not staged: .hidden" in told
    assert len(re.findall(r" \.\w", told)) == 20
    assert told.endswith(", and 11 more.")
    assert "hidden" not in setup.command("stage", *options, spec, setup.target).stderr
    assert not list(setup.target.glob(".hidden*"))
