"""``peerstage doctor``: host keys that are unknown, changed, revoked, or certified by nobody we know."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from cli.patient import Patient, failed
from support.keys import make_key
from support.programs import program
from support.sshd import Sshd


def test_changed_host_key(patient: Patient) -> None:
    patient.healthy()
    other = (patient.sshd.home / "id.pub").read_text().split()[1]
    patient.known_hosts.write_text(f"# one\n[127.0.0.1]:{patient.sshd.port} ssh-ed25519 {other}\n")
    found = failed(patient.doctor(), "host key", "host-key-changed")
    assert f"{patient.known_hosts}:2" in found["seen"]
    assert f"`ssh-keygen -R '[127.0.0.1]:{patient.sshd.port}'" in found["remedy"]


def test_revoked_host_key(patient: Patient) -> None:
    patient.healthy()
    patient.known_hosts.write_text("@revoked * " + " ".join((patient.sshd.home / "host.pub").read_text().split()[:2]))
    found = failed(patient.doctor(), "host key", "host-key-revoked")
    assert f"{patient.known_hosts}:1" in found["cause"]


def test_certificate_that_nobody_vouches_for_names_no_command_of_its_own(
    patient: Patient, own_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    for name in ("ca", "other", "host"):
        make_key(tmp_path / name)
    evil = "x`ssh-keygen -R evil`y`peerstage trust evil`"
    keygen = [program("ssh-keygen"), "-q", "-s", tmp_path / "other"]
    subprocess.run([*keygen, "-I", evil, "-h", "-n", "127.0.0.1", tmp_path / "host.pub"], check=True)
    patient.healthy(extra=f"HostKey {tmp_path}/host\nHostCertificate {tmp_path}/host-cert.pub")
    authority = " ".join((tmp_path / "ca.pub").read_text().split()[:2])
    patient.known_hosts.write_text(f"# ours\n@cert-authority * {authority}\n")
    found = failed(patient.doctor(), "host key", "host-certificate-unknown")
    assert "evil" in found["seen"]
    assert "evil" not in found["remedy"] + found["cause"]
    assert f"{patient.known_hosts}:2" in found["cause"]
    assert "HostCertificate" in found["remedy"]
