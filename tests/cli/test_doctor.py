"""``peerstage doctor`` of a working peer: every step of a stage is reported."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from cli.command import Command
from cli.doctor_setup import STEPS, DoctorSetup, failed
from cli.test_terminal import on_terminal, text_of
from support.keys import make_key


def test_a_working_peer_passes_every_step_and_is_not_changed(setup: DoctorSetup) -> None:
    setup.start()
    before = sorted(os.listdir(setup.collect)), sorted(os.listdir(setup.home / ".ssh"))
    report = setup.doctor()
    assert (report["exit"], report["failed"]) == (0, None)
    assert [one["step"] for one in report["steps"]] == STEPS
    assert {one["state"] for one in report["steps"]} == {"ok"}
    seen = {one["step"]: one["seen"] for one in report["steps"]}
    assert "~/.ssh/config" in seen["configuration"]
    assert seen["name"] == "127.0.0.1"
    assert seen["banner"].startswith("SSH-2.0-OpenSSH")
    assert "ssh-ed25519" in seen["key exchange"]
    assert f"known in {setup.known_hosts}:1" in seen["host key"]
    assert "~/.ssh/id_ed25519" in seen["login"]
    assert seen["directory"] == "2 files, 1000 bytes"
    assert "old by this machine's clock" in seen["indicator"]
    assert before == (sorted(os.listdir(setup.collect)), sorted(os.listdir(setup.home / ".ssh")))


def test_the_plain_form_has_a_line_for_each_step(setup: DoctorSetup) -> None:
    setup.start()
    spec = f"{setup.sshd.user}@db1:{setup.collect}"
    done = setup.command("doctor", spec)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[8:22].strip() for line in done.stdout.splitlines()[:-1]] == STEPS
    assert done.stdout.endswith(f"db1:{setup.collect}: all is well\n")
    setup.known_hosts.unlink()
    found = failed(setup.doctor(), "host key", "host-key-unknown")
    done = setup.command("doctor", spec)
    assert done.returncode == 4
    assert found.pop("reason") == "host-key-unknown"
    for text in (found["seen"], found["cause"], found["remedy"]):
        assert text in done.stdout
    assert done.stdout.endswith("failed: host key\n")
    status, written = on_terminal(setup.command, "doctor", spec)
    assert status == 4
    assert "\x1b[1;31mfailed" in written
    assert found["remedy"] in text_of(written)


def test_every_login_attempt_is_reported(setup: DoctorSetup) -> None:
    setup.start()
    other = make_key(setup.home / "other")
    setup.configure(f"Port {setup.sshd.port}", f"IdentityFile {other}", "IdentityFile ~/.ssh/id_ed25519")
    logins = [(one["state"], one["seen"]) for one in setup.doctor()["steps"] if one["step"] == "login"]
    assert [state for state, _ in logins] == ["tried", "ok"]
    assert "refused" in logins[0][1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--transport", "rcp", "u@h:/x"),
        ("--transport", "scp", "--elevate", "sudo -n sftp-server", "u@h:/x"),
        ("--transport", "guarded", "u@h:/x y"),
    ],
)
def test_options_that_a_stage_refuses_are_wrong_usage(
    command: Command, assert_one_line: Callable[[str], None], arguments: tuple[str, ...]
) -> None:
    done = command("doctor", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr)


@pytest.mark.parametrize("user", ["", "root@"])
def test_a_host_alone_is_checked_up_to_sftp(setup: DoctorSetup, user: str) -> None:
    setup.start()
    setup.configure()
    done = setup.command("doctor", "--json", f"{user}db1:{setup.sshd.port}")
    report = json.loads(done.stdout)
    assert (done.returncode, report["failed"], report["directory"]) == (0, None, None)
    assert (report["peer"], report["user"]) == ("db1", user.rstrip("@") or None)
    assert [step["step"] for step in report["steps"]] == STEPS
    assert [step["state"] for step in report["steps"][8:]] == ["skipped"] * 4
    assert {step["seen"] for step in report["steps"][8:]} == {"no DIR was given"}
    setup.key.unlink()
    failed(
        json.loads(setup.command("doctor", "--json", f"{user}db1:{setup.sshd.port}").stdout), "login", "no-credentials"
    )


def test_a_host_alone_without_sftp_is_checked_up_to_the_login(setup: DoctorSetup) -> None:
    setup.start(subsystem=False)
    done = setup.command("doctor", "db1")
    assert done.returncode == 0
    assert "ok      login" in done.stdout
    assert "skipped SCP           no DIR was given" in done.stdout
    assert done.stdout.endswith("db1: all is well\n")
