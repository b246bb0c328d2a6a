"""``peerstage doctor``: what keeps us from the peer, from the configuration to the key exchange."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable

import pytest

from cli.following import follow
from cli.patient import Patient, failed, state_of, through
from support.programs import program
from support.ssh_server import (
    is_silent_after_kexinit,
    listening,
)
from support.sshd import Sshd


def test_unknown_name(patient: Patient) -> None:
    patient.healthy()
    patient.config.write_text("Host db1\n Port 22\n\n HostName no-such-host.invalid\n")
    found = failed(patient.doctor(), "name", "name-not-resolved")
    assert "no-such-host.invalid" in found["seen"]
    assert f"`HostName no-such-host.invalid` in {patient.config}:4" in found["remedy"]
    patient.config.write_text("")
    told = patient.command("doctor", "root@no-such-host.invalid:/x").stdout
    assert "add `HostName ADDRESS` below `Host no-such-host.invalid` in ~/.ssh/config" in told


def test_packets_that_are_swallowed(patient: Patient) -> None:
    patient.healthy()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        found = failed(
            patient.doctor("--port", full.getsockname()[1], "--connect-timeout", "1"), "TCP", "connect-timeout"
        )
        for sock in waiting:
            sock.close()
    assert "no answer in time" in found["seen"]
    assert "firewall" in found["cause"]


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ("KexAlgorithms diffie-hellman-group1-sha1", "KexAlgorithms"),
        ("Ciphers aes128-cbc", "Ciphers"),
        ("Ciphers aes128-ctr\nMACs hmac-sha1", "MACs"),
    ],
)
def test_no_common_algorithm(patient: Patient, extra: str, word: str) -> None:
    patient.healthy(extra=extra)
    found = failed(patient.doctor(), "key exchange", "no-common-algorithm")
    assert f"`{word} +" in found["remedy"]
    assert "sshd_config" in found["remedy"]
    line = re.findall(r"`(\w+ \+\S+)`", found["remedy"])[0]
    config = patient.sshd.home / "sshd_config2"
    config.write_text(f"HostKey {patient.sshd.home}/host\n{line}\n")
    subprocess.run([program("sshd"), "-t", "-f", str(config)], check=True)


def test_jump_host_that_lets_us_through(patient: Patient, own_sshd: Callable[..., Sshd]) -> None:
    patient.healthy()
    through(patient, own_sshd())
    told = patient.doctor()
    assert told["exit"] == 0
    assert state_of(told, "jump host")["seen"] == "gate"


def test_jump_host_that_forwards_nothing(patient: Patient, own_sshd: Callable[..., Sshd]) -> None:
    patient.healthy()
    through(patient, own_sshd(extra="AllowTcpForwarding no"))
    found = failed(patient.doctor(), "TCP", "forwarding-refused")
    assert "`AllowTcpForwarding yes` in /etc/ssh/sshd_config on gate" in found["remedy"]


def test_jump_host_whose_key_is_unknown(patient: Patient, own_sshd: Callable[..., Sshd]) -> None:
    patient.healthy()
    through(patient, own_sshd(), known=False)
    found = failed(patient.doctor(), "jump host", "host-key-unknown")
    assert "Jump host gate" in found["seen"]
    follow(patient, found["remedy"])
    assert patient.doctor()["exit"] == 0


def test_jump_host_that_is_down(patient: Patient, own_sshd: Callable[..., Sshd]) -> None:
    patient.healthy()
    hop = own_sshd()
    through(patient, hop)
    hop.stop()
    found = failed(patient.doctor(), "jump host", "connection-refused")
    assert "gate" in found["cause"]
    assert f"`Port {hop.port}` in {patient.config}:7" in found["remedy"]
    assert f"`ProxyJump gate` in {patient.config}:4" in found["remedy"]


def test_jump_host_that_does_not_have_the_key(patient: Patient, own_sshd: Callable[..., Sshd]) -> None:
    patient.healthy()
    hop = own_sshd()
    through(patient, hop)
    keys = hop.home / "authorized_keys"
    keys.write_text("")
    found = failed(patient.doctor(), "jump host", "login-refused")
    [line] = re.findall("append `(.*?)` to ~.*? on the jump host gate", found["remedy"])
    assert f"correct `User {hop.user}` in {patient.config}:8" in found["remedy"]
    keys.write_text(f"{line}\n")
    assert patient.doctor()["exit"] == 0


def test_server_that_hangs_in_the_key_exchange(patient: Patient) -> None:
    patient.healthy()
    with listening(is_silent_after_kexinit) as port:
        patient.configure(f"Port {port}", "ConnectTimeout 1")
        found = failed(patient.doctor(), "key exchange", "key-exchange-timeout")
    assert "MTU" in found["cause"]
    assert "ort" not in found["remedy"], "the port is right: an SSH server has answered there"
