"""``peerstage doctor``: host keys that are unknown, changed, revoked, or certified by an unknown authority."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from cli.doctor_setup import DoctorSetup, failed
from support.keys import make_key
from support.programs import require_program
from support.sshd import Sshd


def test_changed_host_key(setup: DoctorSetup) -> None:
    setup.start()
    other = (setup.sshd.home / "id.pub").read_text().split()[1]
    setup.known_hosts.write_text(f"# one\n[127.0.0.1]:{setup.sshd.port} ssh-ed25519 {other}\n")
    found = failed(setup.doctor(), "host key", "host-key-changed")
    assert f"{setup.known_hosts}:2" in found["seen"]
    assert f"`ssh-keygen -R '[127.0.0.1]:{setup.sshd.port}'" in found["remedy"]


def test_revoked_host_key(setup: DoctorSetup) -> None:
    setup.start()
    setup.known_hosts.write_text("@revoked * " + " ".join((setup.sshd.home / "host.pub").read_text().split()[:2]))
    found = failed(setup.doctor(), "host key", "host-key-revoked")
    assert f"{setup.known_hosts}:1" in found["cause"]


def test_text_in_an_untrusted_certificate_never_becomes_a_command(
    setup: DoctorSetup, own_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    for name in ("ca", "other", "host"):
        make_key(tmp_path / name)
    evil = "x`ssh-keygen -R evil`y`peerstage trust evil`"
    keygen = [require_program("ssh-keygen"), "-q", "-s", tmp_path / "other"]
    subprocess.run([*keygen, "-I", evil, "-h", "-n", "127.0.0.1", tmp_path / "host.pub"], check=True)
    setup.start(extra=f"HostKey {tmp_path}/host\nHostCertificate {tmp_path}/host-cert.pub")
    authority = " ".join((tmp_path / "ca.pub").read_text().split()[:2])
    setup.known_hosts.write_text(f"# ours\n@cert-authority * {authority}\n")
    found = failed(setup.doctor(), "host key", "host-certificate-unknown")
    assert "evil" in found["seen"]
    assert "evil" not in found["remedy"] + found["cause"]
    assert f"{setup.known_hosts}:2" in found["cause"]
    assert "HostCertificate" in found["remedy"]
