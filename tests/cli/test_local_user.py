"""``--local-user``: the verbs as another user of this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command import Command
from support.children import children_apart, is_gone
from support.local_user import LOCAL_USER
from support.waiting import wait_until


@pytest.fixture
def reaching(command: Command, public_path: Path) -> list[str]:
    """The options that lead to the server with a key of that user's."""
    for name in ("id", "known_hosts"):
        shutil.copy(command.sshd.home / name, public_path / name)
        shutil.chown(public_path / name, LOCAL_USER)
    port, place = str(command.sshd.port), public_path
    there = ["--port", port, "--identity", str(place / "id"), "--known-hosts", str(place / "known_hosts")]
    return [*there, "--no-config", "--local-user", LOCAL_USER]


def test_peers_are_checked_staged_and_marked_as_that_user(
    command: Command, reaching: list[str], collect: Path, target: Path
) -> None:
    (collect / "a").write_bytes(b"abc")
    (collect / "sub").mkdir()
    spec = command.spec(collect)
    assert command("check", *reaching, spec).returncode == 3
    (collect / "cback.collect").touch()
    assert command("check", *reaching, spec).returncode == 0

    listed = command("stage", "--dry-run", *reaching, spec, target)
    assert (listed.returncode, os.listdir(target)) == (5, [])
    assert "sub" in listed.stdout
    (collect / "sub").rmdir()
    for transport in ("sftp", "scp", "guarded"):
        done = command("stage", "--transport", transport, *reaching, spec, target)
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(os.listdir(target)) == ["a", "cback.collect"]
        assert (target / "a").stat().st_uid == pwd.getpwnam(LOCAL_USER).pw_uid

    assert command("mark", *reaching, spec).returncode == 0
    assert (collect / "cback.stage").exists()


def test_a_dry_run_of_a_large_file_brings_none_of_it(
    command: Command, reaching: list[str], collect: Path, target: Path
) -> None:
    with (collect / "huge").open("wb") as file:
        file.truncate(1 << 40)
    listed = command("stage", "--dry-run", *reaching, command.spec(collect), target)
    assert listed.returncode == 0
    assert "huge" in listed.stdout


@pytest.mark.parametrize("verb", ["check", "stage", "mark"])
def test_a_user_that_is_not_there_is_said_in_one_line(
    command: Command, collect: Path, target: Path, verb: str, one_line: Callable[[str], None]
) -> None:
    places = [command.spec(collect), *([target] if verb == "stage" else [])]
    done = command.reach(verb, "--local-user", "no_such_user", *places)
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done.stderr)
    assert "no_such_user" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_mid_transfer_leaves_nothing(
    command: Command, reaching: list[str], collect: Path, target: Path, signum: int
) -> None:
    with (collect / "large").open("wb") as file:
        file.truncate(3 << 30)
    with command.start("stage", *reaching, command.spec(collect), target) as process:
        wait_until(lambda: is_coming(target))
        children = children_apart(process.pid)
        assert len(children) == 1
        process.send_signal(signum)
        process.communicate(timeout=20)
    assert process.returncode == -signum
    assert os.listdir(target) == []
    assert all(is_gone(pid) for pid in children)


def is_coming(target: Path) -> bool:
    """Whether some bytes of a file have arrived, and it is not complete."""
    return any(path.stat().st_size > 0 for path in target.glob(".peerstage-*/0"))
