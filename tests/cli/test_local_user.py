"""``--local-user``: the verbs as another user of this machine."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command import SOURCE, Command
from cli.doctor_setup import STEPS
from support.children import is_reaped, isolated_children
from support.local_user import LOCAL_USER
from support.sshd import free_port
from support.waiting import wait_until


@pytest.fixture
def reaching(command: Command, public_path: Path) -> list[str]:
    """The options that reach the server with a key of that user."""
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


def test_a_dry_run_transfers_nothing_of_a_large_file(
    command: Command, reaching: list[str], collect: Path, target: Path
) -> None:
    with (collect / "huge").open("wb") as file:
        file.truncate(1 << 40)
    listed = command("stage", "--dry-run", *reaching, command.spec(collect), target)
    assert listed.returncode == 0
    assert "huge" in listed.stdout


@pytest.mark.parametrize("verb", ["check", "stage", "mark", "doctor", "trust"])
def test_an_unknown_local_user_is_reported_in_one_line(
    command: Command, collect: Path, target: Path, verb: str, assert_one_line: Callable[[str], None]
) -> None:
    places = {"stage": [command.spec(collect), target], "trust": ["127.0.0.1"]}
    done = command.reach(verb, "--local-user", "no_such_user", *places.get(verb, [command.spec(collect)]))
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr)
    assert "no_such_user" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_mid_transfer_leaves_nothing(
    command: Command, reaching: list[str], collect: Path, target: Path, signum: int
) -> None:
    with (collect / "large").open("wb") as file:
        file.truncate(3 << 30)
    with command.start("stage", *reaching, command.spec(collect), target) as process:
        wait_until(lambda: is_coming(target))
        children = isolated_children(process.pid)
        assert len(children) == 1
        process.send_signal(signum)
        process.communicate(timeout=20)
    assert process.returncode == -signum
    assert os.listdir(target) == []
    assert all(is_reaped(pid) for pid in children)


def is_coming(target: Path) -> bool:
    """Return whether a file has arrived in part."""
    return any(path.stat().st_size > 0 for path in target.glob(".peerstage-*/0"))


def test_the_doctor_checks_as_that_user(
    command: Command, reaching: list[str], collect: Path, public_path: Path
) -> None:
    (collect / "cback.collect").touch()
    done = command("doctor", "--json", *reaching, command.spec(collect))
    report = json.loads(done.stdout)
    assert (done.returncode, report["failed"], done.stderr) == (0, None, "")
    assert [step["step"] for step in report["steps"]] == STEPS
    assert report["steps"][0]["seen"].endswith(f"; as the local user {LOCAL_USER}")
    assert os.listdir(collect) == ["cback.collect"]

    (public_path / "id").chmod(0o600)
    shutil.chown(public_path / "id", "root")
    report = json.loads(command("doctor", "--json", *reaching, command.spec(collect)).stdout)
    assert (report["failed"], report["reason"]) == ("login", "key-file-unreadable")
    (public_path / "known_hosts").unlink()
    report = json.loads(command("doctor", "--json", *reaching, command.spec(collect)).stdout)
    remedy = next(step["remedy"] for step in report["steps"] if step["state"] == "failed")
    assert f"`peerstage trust --local-user {LOCAL_USER} --port " in remedy


def test_keys_are_scanned_and_added_as_that_user(
    command: Command, reaching: list[str], public_path: Path, tmp_path: Path
) -> None:
    known_hosts = public_path / "known_hosts"
    line = known_hosts.read_bytes()
    known_hosts.unlink()
    os.chmod(public_path, 0o777)
    listed, dead = tmp_path / "fingerprints", f"127.0.0.1:{free_port()}"
    listed.write_bytes(line)
    listed.chmod(0o600)  # the caller's own file, which that user cannot read
    hosts = [dead, command.sshd.host, "no-such-host.invalid"]
    done = command("trust", "--json", *reaching, "--fingerprints", listed, *hosts)
    states = [json.loads(answer)["state"] for answer in done.stdout.splitlines()]
    assert (done.returncode, states) == (4, ["unreachable", "new", "unreachable"])
    assert not known_hosts.exists()
    done = command("trust", "--json", "--yes", *reaching, "--fingerprints", listed, *hosts)
    results = [json.loads(answer) for answer in done.stdout.splitlines()]
    assert [result["state"] for result in results] == ["unreachable", "added", "unreachable"]
    assert [result["kind"] for result in results] == ["ConnectError", None, "ConnectError"]
    assert results[1]["added_to"] == str(known_hosts)
    assert known_hosts.stat().st_uid == pwd.getpwnam(LOCAL_USER).pw_uid
    done = command("trust", *reaching, command.sshd.host)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"known in {known_hosts}:1" in done.stdout


def test_keys_are_not_added_where_that_user_cannot_write(
    command: Command, reaching: list[str], public_path: Path, assert_one_line: Callable[[str], None]
) -> None:
    (public_path / "known_hosts").unlink()
    public_path.chmod(0o755)
    done = command("trust", "--yes", *reaching, command.sshd.host)
    assert done.returncode == 6
    assert_one_line(done.stderr)
    assert not (public_path / "known_hosts").exists()


@pytest.mark.parametrize("verb", ["doctor", "trust"])
def test_a_signal_ends_the_child_that_waits_for_a_silent_peer(
    command: Command, reaching: list[str], verb: str, collect: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        reaching[reaching.index("--port") + 1] = str(silent.getsockname()[1])
        place = command.spec(collect) if verb == "doctor" else "127.0.0.1"
        with command.start(verb, *reaching, "--connect-timeout", "600", place) as process:
            connection, _ = silent.accept()
            children = isolated_children(process.pid)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
            connection.close()
    assert process.returncode == -signal.SIGINT
    assert len(children) == 1
    assert all(is_reaped(pid) for pid in children)


@pytest.mark.parametrize("verb", ["doctor", "trust"])
def test_that_user_need_not_be_able_to_read_the_package(
    command: Command, reaching: list[str], collect: Path, tmp_path: Path, verb: str
) -> None:
    (collect / "cback.collect").touch()
    private = tmp_path / "private"
    shutil.copytree(SOURCE / "peerstage", private / "peerstage", ignore=shutil.ignore_patterns("__pycache__"))
    private.chmod(0o700)
    command.environment["PYTHONPATH"] = str(private)
    place = command.spec(collect) if verb == "doctor" else command.sshd.host
    done = command.in_a_process(verb, *reaching, place)
    assert (done.returncode, done.stderr) == (0, "")
