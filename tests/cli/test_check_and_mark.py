"""``peerstage check`` and ``peerstage mark``: results of single peers, and the exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cli.command import Command
from support.programs import sftp_server_path
from support.sshd import free_port


def test_peer_that_has_collected_is_ready(command: Command, collect: Path) -> None:
    (collect / "cback.collect").touch()
    done = command.reach("check", command.spec(collect))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{command.sshd.host}:{collect}: ready\n"


def test_peer_that_has_not_collected_is_not_ready(command: Command, collect: Path) -> None:
    done = command.reach("check", command.spec(collect))
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout == f"{command.sshd.host}:{collect}: not ready: cback.collect does not exist\n"


def test_indicator_may_have_another_name(command: Command, collect: Path) -> None:
    (collect / "collected").touch()
    assert command.reach("check", "--indicator", "collected", command.spec(collect)).returncode == 0


def test_all_peers_must_be_ready_and_each_has_its_line(command: Command, collect: Path, tmp_path: Path) -> None:
    (collect / "cback.collect").touch()
    other = tmp_path / "other"
    other.mkdir()
    done = command.reach("check", command.spec(collect), command.spec(other), command.spec(collect))
    assert done.returncode == 3
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()] == [
        "ready",
        "cback.collect does not exist",
        "ready",
    ]


def test_a_missing_collect_directory_is_an_error_and_not_an_unready_peer(
    command: Command, tmp_path: Path, assert_one_line: Callable[[str], None]
) -> None:
    for transport in ("sftp", "scp"):
        done = command.reach("check", "--transport", transport, command.spec(tmp_path / "none"))
        assert (done.returncode, done.stdout) == (4, "")
        assert_one_line(done.stderr)
        assert f"{tmp_path}/none: The peer has no such directory" in done.stderr


def test_unknown_host_key_is_refused(command: Command, collect: Path, assert_one_line: Callable[[str], None]) -> None:
    sshd = command.sshd
    (collect / "cback.collect").touch()
    options = ["--port", sshd.port, "--identity", sshd.identity, "--no-config", "--known-hosts", "/dev/null"]
    done = command("check", *options, command.spec(collect))
    assert (done.returncode, done.stdout) == (4, "")
    assert_one_line(done.stderr)


def test_host_key_may_be_given_by_its_fingerprint(command: Command, collect: Path) -> None:
    (collect / "cback.collect").touch()
    sshd = command.sshd
    staged = json.loads(command.reach("stage", "--json", command.spec(collect), collect.parent).stdout)
    options = ["--port", sshd.port, "--identity", sshd.identity, "--no-config", "--known-hosts", "/dev/null"]
    fingerprint = staged["report"]["host_key"]
    assert command("check", *options, "--host-key", fingerprint, command.spec(collect)).returncode == 0
    assert command("check", *options, "--host-key", "SHA256:" + "A" * 43, command.spec(collect)).returncode == 4


def test_closed_port_is_unreachable_and_the_others_are_asked(
    command: Command, collect: Path, assert_one_line: Callable[[str], None]
) -> None:
    (collect / "cback.collect").touch()
    done = command("check", "--port", free_port(), "--no-config", command.spec(collect))
    assert (done.returncode, done.stdout) == (4, "")
    assert_one_line(done.stderr)
    done = command.reach("check", "nobody-of-this-name@127.0.0.1:/x", command.spec(collect))
    assert (done.returncode, done.stdout) == (4, f"{command.sshd.host}:{collect}: ready\n")
    assert_one_line(done.stderr)


def test_address_in_brackets_reaches_the_peer(command: Command, assert_one_line: Callable[[str], None]) -> None:
    done = command("check", "--port", free_port(), "--no-config", "root@[::1]:/x")
    assert done.returncode == 4
    assert_one_line(done.stderr)


def test_json_is_one_object_per_peer(command: Command, collect: Path, tmp_path: Path) -> None:
    (collect / "cback.collect").touch()
    (tmp_path / "none").mkdir()
    done = command.reach(
        "check", "--json", command.spec(collect), command.spec(tmp_path / "none"), "nobody-of-this-name@127.0.0.1:/x"
    )
    ready, waiting, refused = [json.loads(line) for line in done.stdout.splitlines()]
    assert (ready["status"], ready["exit"], ready["error"]) == ("ready", 0, None)
    assert (ready["verb"], ready["peer"], ready["directory"]) == ("check", "127.0.0.1", str(collect))
    assert (waiting["status"], waiting["exit"]) == ("not ready", 3)
    assert [one["reason"] for one in (ready, waiting, refused)] == [None, "not-ready", "login-refused"]
    assert (refused["status"], refused["exit"], refused["kind"]) == ("failed", 4, "LoginError")
    assert done.returncode == 4


def test_mark_writes_the_indicator(command: Command, collect: Path) -> None:
    done = command.reach("mark", command.spec(collect))
    assert (done.returncode, done.stdout) == (0, f"{command.sshd.host}:{collect}: marked\n")
    assert (collect / "cback.stage").read_bytes() == b""
    assert command.reach("mark", "--indicator", "staged", command.spec(collect)).returncode == 0
    assert (collect / "staged").exists()


def test_mark_that_is_refused_says_so(command: Command, tmp_path: Path, assert_one_line: Callable[[str], None]) -> None:
    done = command.reach("mark", command.spec(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (4, "")
    assert_one_line(done.stderr)


def test_verbose_logs_to_standard_error_alone(command: Command, collect: Path) -> None:
    (collect / "file").write_bytes(b"x")
    done = command.reach("stage", "--json", "--verbose", command.spec(collect), collect.parent)
    assert "peerstage.staging: " in done.stderr
    assert json.loads(done.stdout)["report"]["count"] == 1


def test_sftp_server_may_be_a_command_of_the_peer(command: Command, collect: Path, tmp_path: Path) -> None:
    (collect / "cback.collect").touch()
    elevate = ("--elevate", f"echo >>'{tmp_path}/ran'; exec {sftp_server_path()}")
    target = tmp_path / "target"
    target.mkdir()
    assert command.reach("check", *elevate, command.spec(collect)).returncode == 0
    assert command.reach("stage", *elevate, command.spec(collect), target).returncode == 0
    assert command.reach("mark", *elevate, command.spec(collect)).returncode == 0
    assert (collect / "cback.stage").exists()
    assert (tmp_path / "ran").read_text() == "\n\n\n"


def test_sftp_server_by_a_command_excludes_scp(
    command: Command, collect: Path, assert_one_line: Callable[[str], None]
) -> None:
    done = command.reach("check", "--elevate", "sudo -n x", "--transport", "scp", command.spec(collect))
    assert done.returncode == 2
    assert_one_line(done.stderr)
