"""``peerstage doctor``: transports, directories, files and indicators after the login."""

from __future__ import annotations

import os
import time
from pathlib import Path

import paramiko
import pytest

from cli.doctor_setup import DoctorSetup, beside, failed, state_of
from cli.follow_remedy import follow
from support.ssh_server import (
    RefusesChannels,
    RefusesCommands,
    listening,
    paramiko_handler,
)


def test_refused_entries_and_the_age_of_the_indicator_are_reported(setup: DoctorSetup) -> None:
    setup.start()
    (setup.collect / "sub").mkdir()
    os.utime(setup.collect / "cback.collect", (time.time() - 90000,) * 2)
    report = setup.doctor()
    assert (report["failed"], report["exit"]) == ("files", 5), "as a stage would end"
    assert "1 of 3 entries would not be staged: sub: It is a directory" in state_of(report, "files")["seen"]
    assert "1 d 1 h" in state_of(report, "indicator")["seen"]
    os.utime(setup.collect / "cback.collect", (time.time() + 90000,) * 2)
    assert "in the future" in state_of(setup.doctor(), "indicator")["seen"]


def test_scp_is_checked_on_a_peer_without_sftp(setup: DoctorSetup) -> None:
    setup.start(subsystem=False)
    report = setup.doctor()
    assert report["exit"] == 0
    assert state_of(report, "SFTP")["state"] == "tried"
    for step in ("SCP", "directory", "files", "indicator", "write"):
        assert state_of(report, step)["state"] == "ok"
    assert state_of(report, "directory")["seen"] == "2 files, 1000 bytes"
    assert sorted(os.listdir(setup.collect)) == ["cback.collect", "data"]


def test_a_guarded_peer_is_sent_only_commands_of_the_original(setup: DoctorSetup) -> None:
    setup.start(subsystem=False)
    setup.guard()
    report = setup.doctor("--transport", "guarded")
    assert report["exit"] == 0
    assert setup.asked == [f"scp -f {setup.collect}/*", f"scp -f {setup.collect}/cback.collect"]
    assert [state_of(report, step)["state"] for step in ("directory", "files", "write")] == ["ok", "ok", "skipped"]


def test_a_guarded_peer_that_can_be_staged_passes(setup: DoctorSetup, target: Path) -> None:
    setup.start()
    setup.guard()
    assert setup.stage(target).returncode == 0
    report = setup.doctor()
    assert (report["exit"], report["failed"]) == (0, None)
    assert [state_of(report, step)["state"] for step in ("SFTP", "SCP", "directory", "files")] == ["tried", *["ok"] * 3]
    assert "--transport guarded" in state_of(report, "write")["seen"]


@pytest.mark.parametrize("transport", ["auto", "guarded"])
def test_an_empty_directory_of_a_guarded_peer_is_not_a_refused_command(setup: DoctorSetup, transport: str) -> None:
    setup.start()
    setup.guard()
    for path in setup.collect.iterdir():
        path.unlink()
    report = setup.doctor("--transport", transport)
    assert (report["failed"], report["exit"]) == ("files", 5)
    assert state_of(report, "SCP")["state"] == "ok"


def test_unreadable_files_are_named_and_later_steps_are_checked(unprivileged_setup: DoctorSetup) -> None:
    setup = unprivileged_setup
    for name in ("one", "two"):
        (setup.collect / name).write_bytes(b"secret")
        (setup.collect / name).chmod(0)
    for transport in ("sftp", "scp"):
        report = setup.doctor("--transport", transport)
        assert (report["failed"], report["exit"]) == ("files", 5)
        found = state_of(report, "files")
        assert found["reason"] == "incomplete-stage"
        assert "2 of 4 entries would not be staged: one: " in found["seen"]
        assert "two: " in found["seen"]
        assert [state_of(report, step)["state"] for step in ("indicator", "write")] == ["ok", "ok"]
    follow(setup, found["remedy"])
    assert setup.doctor()["exit"] == 0


def test_some_files_that_cannot_be_read_and_a_directory(unprivileged_setup: DoctorSetup) -> None:
    setup = unprivileged_setup
    (setup.collect / "data").chmod(0)
    (setup.collect / "sub").mkdir()
    found = state_of(setup.doctor("--transport", "scp"), "files")
    assert "sub: The entry is not a regular file; " in found["cause"]
    follow(setup, found["remedy"], ELSEWHERE=str(setup.home))
    assert setup.doctor()["exit"] == 0


def test_over_scp_a_file_of_any_size_is_opened_and_not_sent(setup: DoctorSetup) -> None:
    setup.start()
    with (setup.collect / "huge").open("wb") as file:
        file.truncate(1 << 40)
    report = setup.doctor("--transport", "scp")
    assert report["exit"] == 0
    assert state_of(report, "files")["seen"] == "3 of 3 files were opened on the peer"


def test_no_file_is_written_over_scp_by_a_login_that_cannot_remove_it(setup: DoctorSetup) -> None:
    setup.start(subsystem=False)
    setup.force('case "$SSH_ORIGINAL_COMMAND" in scp*) exec $SSH_ORIGINAL_COMMAND;; esac\nexit 3')
    report = setup.doctor("--transport", "scp")
    assert report["exit"] == 0
    assert state_of(report, "write")["state"] == "skipped"
    assert "could not remove" in state_of(report, "write")["seen"]
    assert sorted(os.listdir(setup.collect)) == ["cback.collect", "data"]


def test_a_server_that_refuses_channels(setup: DoctorSetup) -> None:
    setup.start()
    key = paramiko.Ed25519Key.from_private_key_file(str(setup.sshd.home / "host"))
    with listening(paramiko_handler(RefusesChannels, key=key)) as port:
        beside(setup, port)
        found = failed(setup.doctor("--port", port), "SFTP", "session-refused")
    assert "sshd_config" in found["remedy"]


@pytest.mark.parametrize("directory", ["/srv/collect", ""])
def test_a_server_that_refuses_the_elevated_command_is_to_allow_that_one(setup: DoctorSetup, directory: str) -> None:
    setup.start()
    setup.directory = directory
    key = paramiko.Ed25519Key.from_private_key_file(str(setup.sshd.home / "host"))
    with listening(paramiko_handler(RefusesCommands, key=key)) as port:
        beside(setup, port)
        found = failed(setup.doctor("--port", port, "--elevate", "sudo -n sftp-server"), "SFTP", "command-refused")
    assert "--elevate" in found["cause"]
    assert found["remedy"].startswith("let it run that command (command= in ")
    assert "DIR" not in found["remedy"]


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_missing_indicator(setup: DoctorSetup, transport: str) -> None:
    setup.start()
    (setup.collect / "cback.collect").unlink()
    report = setup.doctor("--transport", transport)
    assert (report["failed"], report["exit"]) == ("indicator", 3)
    assert f"`touch {setup.collect}/cback.collect`" in state_of(report, "indicator")["remedy"]
    assert state_of(report, "write")["state"] == "ok", "that does not hang on it"
    assert os.listdir(setup.collect) == ["data"]
    assert setup.doctor("--transport", transport, "--indicator", "data")["exit"] == 0


@pytest.mark.parametrize(
    ("mode", "step", "word"),
    [(0o333, "directory", "chmod u+rx"), (0o000, "directory", "chmod u+rx"), (0o555, "write", "chmod u+w")],
)
def test_directory_with_the_wrong_mode(unprivileged_setup: DoctorSetup, mode: int, step: str, word: str) -> None:
    setup = unprivileged_setup
    setup.collect.chmod(mode)
    reason = "write-denied" if step == "write" else "permission-denied"
    found = failed(setup.doctor(), step, reason)
    assert f"run `{word} {setup.collect}` on the peer" in found["remedy"]
    assert sorted(os.listdir(setup.collect)) == ["cback.collect", "data"]
    follow(setup, found["remedy"])
    again = setup.doctor()
    assert again["exit"] == 0 or (mode, again["failed"]) == (0, "write")
