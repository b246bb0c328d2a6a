"""``peerstage doctor`` in front of a peer that is well: every step that a stage takes is told."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from cli.command import Command
from cli.patient import STEPS, Patient, failed
from cli.test_terminal import on_terminal, text_of
from support.keys import make_key


def test_a_healthy_peer_is_found_healthy_and_is_left_as_it_was(patient: Patient) -> None:
    patient.healthy()
    before = sorted(os.listdir(patient.collect)), sorted(os.listdir(patient.home / ".ssh"))
    told = patient.doctor()
    assert (told["exit"], told["failed"]) == (0, None)
    assert [one["step"] for one in told["steps"]] == STEPS
    assert {one["state"] for one in told["steps"]} == {"ok"}
    seen = {one["step"]: one["seen"] for one in told["steps"]}
    assert "~/.ssh/config" in seen["configuration"]
    assert seen["name"] == "127.0.0.1"
    assert seen["banner"].startswith("SSH-2.0-OpenSSH")
    assert "ssh-ed25519" in seen["key exchange"]
    assert f"known in {patient.known_hosts}:1" in seen["host key"]
    assert "~/.ssh/id_ed25519" in seen["login"]
    assert seen["directory"] == "2 files, 1000 bytes"
    assert "old by this machine's clock" in seen["indicator"]
    assert before == (sorted(os.listdir(patient.collect)), sorted(os.listdir(patient.home / ".ssh")))


def test_the_plain_form_says_the_same_a_line_a_step(patient: Patient) -> None:
    patient.healthy()
    spec = f"{patient.sshd.user}@db1:{patient.collect}"
    done = patient.command("doctor", spec)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[8:22].strip() for line in done.stdout.splitlines()[:-1]] == STEPS
    assert done.stdout.endswith(f"db1:{patient.collect}: all is well\n")
    patient.known_hosts.unlink()
    found = failed(patient.doctor(), "host key", "host-key-unknown")
    done = patient.command("doctor", spec)
    assert done.returncode == 4
    assert found.pop("reason") == "host-key-unknown"
    for text in (found["seen"], found["cause"], found["remedy"]):
        assert text in done.stdout
    assert done.stdout.endswith("failed: host key\n")
    status, written = on_terminal(patient.command, "doctor", spec)
    assert status == 4
    assert "\x1b[1;31mfailed" in written
    assert found["remedy"] in text_of(written)


def test_every_way_to_log_in_that_was_tried_is_told(patient: Patient) -> None:
    patient.healthy()
    other = make_key(patient.home / "other")
    patient.configure(f"Port {patient.sshd.port}", f"IdentityFile {other}", "IdentityFile ~/.ssh/id_ed25519")
    logins = [(one["state"], one["seen"]) for one in patient.doctor()["steps"] if one["step"] == "login"]
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
def test_what_no_stage_would_begin_is_wrong_usage(
    command: Command, one_line: Callable[[str], None], arguments: tuple[str, ...]
) -> None:
    done = command("doctor", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done.stderr)
