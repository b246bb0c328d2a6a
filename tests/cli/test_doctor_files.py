"""``peerstage doctor``: transports, directories, files and indicators of a peer that lets us in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import paramiko
import pytest

from cli.following import follow
from cli.patient import Patient, beside, failed, state_of
from support.ssh_server import (
    RefusesChannels,
    listening,
    made_of_paramiko,
)


def test_what_a_stage_would_refuse_and_how_old_the_indicator_is_are_told(patient: Patient) -> None:
    patient.healthy()
    (patient.collect / "sub").mkdir()
    os.utime(patient.collect / "cback.collect", (time.time() - 90000,) * 2)
    told = patient.doctor()
    assert (told["failed"], told["exit"]) == ("files", 5), "as a stage would end"
    assert "1 entries would not be staged: sub: It is a directory" in state_of(told, "files")["seen"]
    assert "1 d 1 h" in state_of(told, "indicator")["seen"]
    os.utime(patient.collect / "cback.collect", (time.time() + 90000,) * 2)
    assert "in the future" in state_of(patient.doctor(), "indicator")["seen"]


def test_scp_is_walked_where_there_is_no_sftp(patient: Patient) -> None:
    patient.healthy(subsystem=False)
    told = patient.doctor()
    assert told["exit"] == 0
    assert state_of(told, "SFTP")["state"] == "tried"
    for step in ("SCP", "directory", "files", "indicator", "write"):
        assert state_of(told, step)["state"] == "ok"
    assert state_of(told, "directory")["seen"] == "2 files, 1000 bytes"
    assert sorted(os.listdir(patient.collect)) == ["cback.collect", "data"]


def test_a_guarded_peer_is_sent_only_the_original_s_command(patient: Patient) -> None:
    patient.healthy(subsystem=False)
    patient.guard()
    told = patient.doctor("--transport", "guarded")
    assert told["exit"] == 0
    assert patient.asked == [f"scp -f {patient.collect}/*", f"scp -f {patient.collect}/cback.collect"]
    assert [state_of(told, step)["state"] for step in ("directory", "files", "write")] == ["ok", "ok", "skipped"]


def test_a_guarded_peer_that_a_stage_can_stage_is_well(patient: Patient, target: Path) -> None:
    patient.healthy()
    patient.guard()
    assert patient.stage(target).returncode == 0
    told = patient.doctor()
    assert (told["exit"], told["failed"]) == (0, None)
    assert [state_of(told, step)["state"] for step in ("SFTP", "SCP", "directory", "files")] == ["tried", *["ok"] * 3]
    assert "--transport guarded" in state_of(told, "write")["seen"]


@pytest.mark.parametrize("transport", ["auto", "guarded"])
def test_an_empty_directory_of_a_guarded_peer_is_no_refused_session(patient: Patient, transport: str) -> None:
    patient.healthy()
    patient.guard()
    for path in patient.collect.iterdir():
        path.unlink()
    told = patient.doctor("--transport", transport)
    assert (told["failed"], told["exit"]) == ("files", 5)
    assert state_of(told, "SCP")["state"] == "ok"


def test_files_that_cannot_be_read_are_named_and_the_walk_goes_on(unprivileged_patient: Patient) -> None:
    patient = unprivileged_patient
    for name in ("one", "two"):
        (patient.collect / name).write_bytes(b"secret")
        (patient.collect / name).chmod(0)
    for transport in ("sftp", "scp"):
        told = patient.doctor("--transport", transport)
        assert (told["failed"], told["exit"]) == ("files", 5)
        found = state_of(told, "files")
        assert found["reason"] == "incomplete-stage"
        assert "2 entries would not be staged: one: " in found["seen"]
        assert "two: " in found["seen"]
        assert [state_of(told, step)["state"] for step in ("indicator", "write")] == ["ok", "ok"]
    follow(patient, found["remedy"])
    assert patient.doctor()["exit"] == 0


def test_some_files_that_cannot_be_read_and_something_that_is_none(unprivileged_patient: Patient) -> None:
    patient = unprivileged_patient
    (patient.collect / "data").chmod(0)
    (patient.collect / "sub").mkdir()
    found = state_of(patient.doctor("--transport", "scp"), "files")
    assert "sub: The entry is not a regular file; " in found["cause"]
    follow(patient, found["remedy"], ELSEWHERE=str(patient.home))
    assert patient.doctor()["exit"] == 0


def test_over_scp_a_file_of_any_size_is_opened_and_not_sent(patient: Patient) -> None:
    patient.healthy()
    with (patient.collect / "huge").open("wb") as file:
        file.truncate(1 << 40)
    told = patient.doctor("--transport", "scp")
    assert told["exit"] == 0
    assert state_of(told, "files")["seen"] == "3 of 3 files were opened on the peer"


def test_nothing_is_written_over_scp_that_could_not_be_removed(patient: Patient) -> None:
    patient.healthy(subsystem=False)
    patient.force('case "$SSH_ORIGINAL_COMMAND" in scp*) exec $SSH_ORIGINAL_COMMAND;; esac\nexit 3')
    told = patient.doctor("--transport", "scp")
    assert told["exit"] == 0
    assert state_of(told, "write")["state"] == "skipped"
    assert "could not remove" in state_of(told, "write")["seen"]
    assert sorted(os.listdir(patient.collect)) == ["cback.collect", "data"]


def test_server_that_opens_no_channel(patient: Patient) -> None:
    patient.healthy()
    key = paramiko.Ed25519Key.from_private_key_file(str(patient.sshd.home / "host"))
    with listening(made_of_paramiko(RefusesChannels, key=key)) as port:
        beside(patient, port)
        found = failed(patient.doctor("--port", port), "SFTP", "session-refused")
    assert "sshd_config" in found["remedy"]


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_missing_indicator(patient: Patient, transport: str) -> None:
    patient.healthy()
    (patient.collect / "cback.collect").unlink()
    told = patient.doctor("--transport", transport)
    assert (told["failed"], told["exit"]) == ("indicator", 3)
    assert f"`touch {patient.collect}/cback.collect`" in state_of(told, "indicator")["remedy"]
    assert state_of(told, "write")["state"] == "ok", "that does not hang on it"
    assert os.listdir(patient.collect) == ["data"]
    assert patient.doctor("--transport", transport, "--indicator", "data")["exit"] == 0


@pytest.mark.parametrize(
    ("mode", "step", "word"),
    [(0o333, "directory", "chmod u+rx"), (0o000, "directory", "chmod u+rx"), (0o555, "write", "chmod u+w")],
)
def test_directory_with_the_wrong_mode(unprivileged_patient: Patient, mode: int, step: str, word: str) -> None:
    patient = unprivileged_patient
    patient.collect.chmod(mode)
    reason = "write-denied" if step == "write" else "permission-denied"
    found = failed(patient.doctor(), step, reason)
    assert f"run `{word} {patient.collect}` on the peer" in found["remedy"]
    assert sorted(os.listdir(patient.collect)) == ["cback.collect", "data"]
    follow(patient, found["remedy"])
    again = patient.doctor()
    assert again["exit"] == 0 or (mode, again["failed"]) == (0, "write")
