"""``peerstage doctor``: failures from the configuration to the key exchange."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable

import pytest

from cli.doctor_setup import DoctorSetup, failed, state_of, through
from cli.follow_remedy import follow
from support.programs import require_program
from support.ssh_server import (
    listening,
    stops_after_kexinit,
)
from support.sshd import Sshd


def test_unknown_name(setup: DoctorSetup) -> None:
    setup.start()
    setup.config.write_text("Host db1\n Port 22\n\n HostName no-such-host.invalid\n")
    found = failed(setup.doctor(), "name", "name-not-resolved")
    assert "no-such-host.invalid" in found["seen"]
    assert f"`HostName no-such-host.invalid` in {setup.config}:4" in found["remedy"]
    setup.config.write_text("")
    report = setup.command("doctor", "root@no-such-host.invalid:/x").stdout
    assert "add `HostName ADDRESS` below `Host no-such-host.invalid` in ~/.ssh/config" in report


def test_a_firewall_that_drops_packets(setup: DoctorSetup) -> None:
    setup.start()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        found = failed(
            setup.doctor("--port", full.getsockname()[1], "--connect-timeout", "1"), "TCP", "connect-timeout"
        )
        for sock in waiting:
            sock.close()
    assert "Connection timed out" in found["seen"]
    assert "firewall" in found["cause"]


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ("KexAlgorithms diffie-hellman-group1-sha1", "KexAlgorithms"),
        ("Ciphers aes128-cbc", "Ciphers"),
        ("Ciphers aes128-ctr\nMACs hmac-sha1", "MACs"),
    ],
)
def test_no_common_algorithm(setup: DoctorSetup, extra: str, word: str) -> None:
    setup.start(extra=extra)
    found = failed(setup.doctor(), "key exchange", "no-common-algorithm")
    assert f"`{word} +" in found["remedy"]
    assert "sshd_config" in found["remedy"]
    line = re.findall(r"`(\w+ \+\S+)`", found["remedy"])[0]
    config = setup.sshd.home / "sshd_config2"
    config.write_text(f"HostKey {setup.sshd.home}/host\n{line}\n")
    subprocess.run([require_program("sshd"), "-t", "-f", str(config)], check=True)


def test_jump_host_that_forwards(setup: DoctorSetup, own_sshd: Callable[..., Sshd]) -> None:
    setup.start()
    through(setup, own_sshd())
    report = setup.doctor()
    assert report["exit"] == 0
    assert state_of(report, "jump host")["seen"] == "gate"


def test_jump_host_that_forwards_nothing(setup: DoctorSetup, own_sshd: Callable[..., Sshd]) -> None:
    setup.start()
    through(setup, own_sshd(extra="AllowTcpForwarding no"))
    found = failed(setup.doctor(), "TCP", "forwarding-refused")
    assert "`AllowTcpForwarding yes` in /etc/ssh/sshd_config on the jump host gate" in found["remedy"]


def test_jump_host_whose_key_is_unknown(setup: DoctorSetup, own_sshd: Callable[..., Sshd]) -> None:
    setup.start()
    through(setup, own_sshd(), known=False)
    found = failed(setup.doctor(), "jump host", "host-key-unknown")
    assert "Jump host gate" in found["seen"]
    follow(setup, found["remedy"])
    assert setup.doctor()["exit"] == 0


def test_jump_host_that_is_down(setup: DoctorSetup, own_sshd: Callable[..., Sshd]) -> None:
    setup.start()
    hop = own_sshd()
    through(setup, hop)
    hop.stop()
    found = failed(setup.doctor(), "jump host", "connection-refused")
    assert "gate" in found["cause"]
    assert f"`Port {hop.port}` in {setup.config}:7" in found["remedy"]
    assert f"`ProxyJump gate` in {setup.config}:4" in found["remedy"]


def test_jump_host_that_does_not_have_the_key(setup: DoctorSetup, own_sshd: Callable[..., Sshd]) -> None:
    setup.start()
    hop = own_sshd()
    through(setup, hop)
    keys = hop.home / "authorized_keys"
    keys.write_text("")
    found = failed(setup.doctor(), "jump host", "login-refused")
    [line] = re.findall("append `(.*?)` to ~.*? on the jump host gate", found["remedy"])
    assert f"correct `User {hop.user}` in {setup.config}:8" in found["remedy"]
    keys.write_text(f"{line}\n")
    assert setup.doctor()["exit"] == 0


def test_server_that_hangs_in_the_key_exchange(setup: DoctorSetup) -> None:
    setup.start()
    with listening(stops_after_kexinit) as port:
        setup.configure(f"Port {port}", "ConnectTimeout 1")
        found = failed(setup.doctor(), "key exchange", "key-exchange-timeout")
    assert "MTU" in found["cause"]
    assert "ort" not in found["remedy"], "the port is right: an SSH server has answered there"
