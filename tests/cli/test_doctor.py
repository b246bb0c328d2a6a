"""``peerstage doctor`` in front of set-ups that are broken on purpose: it names the step, and what would mend it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
import pytest

from cli.command import Command
from cli.test_terminal import on_terminal, text_of
from peerstage.session.known_hosts import fingerprint
from support.children import status_of
from support.keys import make_key
from support.programs import program
from support.ssh_server import (
    Policy,
    RefusesChannels,
    closes_at_once,
    is_silent_after_kexinit,
    listening,
    made_of_paramiko,
    never_speaks,
    speaks_http,
)
from support.sshd import Sshd, free_port
from support.waiting import wait_until

STEPS = ["configuration", "name", "TCP", "banner", "key exchange", "host key", "login", "SFTP", "directory",
         "indicator", "write"]  # fmt: skip


@dataclass
class Patient:
    """A set-up that works, to be broken: a server, an ssh_config of the user's own, and what leads to it."""

    home: Path
    collect: Path
    start: Callable[..., Sshd]
    command: Command
    sshd: Sshd = field(init=False)

    def healthy(self, **changes: Any) -> Patient:
        self.sshd = self.start(**changes)
        ssh = self.home / ".ssh"
        ssh.mkdir(mode=0o700)
        (ssh / "id_ed25519").touch(0o600)
        (ssh / "id_ed25519").write_bytes(self.sshd.identity.read_bytes())
        (ssh / "known_hosts").write_bytes(self.sshd.known_hosts.read_bytes())
        self.configure(f"Port {self.sshd.port}")
        (self.collect / "cback.collect").touch()
        (self.collect / "data").write_bytes(b"x" * 1000)
        return self

    @property
    def config(self) -> Path:
        return self.home / ".ssh" / "config"

    @property
    def known_hosts(self) -> Path:
        return self.home / ".ssh" / "known_hosts"

    def configure(self, *lines: str) -> None:
        self.config.write_text("Host db1\n HostName 127.0.0.1\n" + "".join(f" {line}\n" for line in lines))

    def doctor(self, *arguments: object, user: str | None = None, directory: object = None) -> dict[str, Any]:
        spec = f"{user or self.sshd.user}@db1:{directory or self.collect}"
        done = self.command("doctor", "--json", *arguments, spec)
        assert done.stderr == ""
        told: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == told["exit"]
        return told


@pytest.fixture
def patient(command: Command, own_sshd: Callable[..., Sshd], own_home: Path, collect: Path) -> Patient:
    return Patient(own_home, collect, own_sshd, command)


def failed(told: dict[str, Any], step: str, reason: str) -> dict[str, str]:
    """Check that *step* failed for *reason*, all before it went well, and all behind it was skipped; return it."""
    assert (told["failed"], told["reason"]) == (step, reason), told
    states = [one["state"] for one in told["steps"]]
    at = states.index("failed")
    assert set(states[:at]) <= {"ok", "tried"}
    assert set(states[at + 1 :]) <= {"skipped"}
    found: dict[str, str] = told["steps"][at]
    assert found["reason"] == reason
    assert found["cause"]
    assert found["mend"]
    assert all(text.isprintable() for text in found.values())
    return found


def state_of(told: dict[str, Any], step: str) -> dict[str, str]:
    return next(one for one in told["steps"] if one["step"] == step)


# --- a way that is well ----------------------------------------------------------------------------------------------


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
    del found["reason"]
    for text in found.values():
        assert text in done.stdout
    assert done.stdout.endswith("failed: host key\n")
    status, written = on_terminal(patient.command, "doctor", spec)
    assert status == 4
    assert "\x1b[1;31mfailed" in written
    assert found["mend"] in text_of(written)


def test_what_a_stage_would_refuse_and_how_old_the_indicator_is_are_told(patient: Patient) -> None:
    patient.healthy()
    (patient.collect / "sub").mkdir()
    os.utime(patient.collect / "cback.collect", (time.time() - 90000,) * 2)
    told = patient.doctor()
    assert told["exit"] == 0
    assert "1 entries would be refused: sub: It is a directory" in state_of(told, "directory")["seen"]
    assert "1 d 1 h" in state_of(told, "indicator")["seen"]
    os.utime(patient.collect / "cback.collect", (time.time() + 90000,) * 2)
    assert "in the future" in state_of(patient.doctor(), "indicator")["seen"]


def test_every_way_to_log_in_that_was_tried_is_told(patient: Patient) -> None:
    patient.healthy()
    other = make_key(patient.home / "other")
    patient.configure(f"Port {patient.sshd.port}", f"IdentityFile {other}", "IdentityFile ~/.ssh/id_ed25519")
    logins = [(one["state"], one["seen"]) for one in patient.doctor()["steps"] if one["step"] == "login"]
    assert [state for state, _ in logins] == ["tried", "ok"]
    assert "refused" in logins[0][1]


def test_scp_is_walked_where_there_is_no_sftp(patient: Patient) -> None:
    patient.healthy(subsystem=False)
    told = patient.doctor()
    assert told["exit"] == 0
    assert state_of(told, "SFTP")["state"] == "tried"
    for step in ("SCP", "directory", "indicator", "write"):
        assert state_of(told, step)["state"] == "ok"
    assert sorted(os.listdir(patient.collect)) == ["cback.collect", "data"]


def test_a_guarded_peer_is_sent_only_the_original_s_command(patient: Patient) -> None:
    patient.healthy(subsystem=False)
    script, log = patient.home / "guard", patient.home / "log"
    script.write_text(f'#!/bin/sh\necho "$SSH_ORIGINAL_COMMAND" >> {log}\nexec $SSH_ORIGINAL_COMMAND\n')
    script.chmod(0o755)
    keys = patient.sshd.home / "authorized_keys"
    keys.write_text(f'command="{script}" {keys.read_text()}')
    told = patient.doctor("--transport", "guarded")
    assert told["exit"] == 0
    assert set(log.read_text().splitlines()) == {f"scp -f {patient.collect}/cback.collect"}
    assert [state_of(told, step)["state"] for step in ("directory", "write")] == ["skipped", "skipped"]


def test_nothing_is_written_over_scp_that_could_not_be_removed(patient: Patient) -> None:
    patient.healthy(subsystem=False)
    script = patient.home / "only-scp"
    script.write_text('#!/bin/sh\ncase "$SSH_ORIGINAL_COMMAND" in scp*) exec $SSH_ORIGINAL_COMMAND;; esac\nexit 3\n')
    script.chmod(0o755)
    keys = patient.sshd.home / "authorized_keys"
    keys.write_text(f'command="{script}" {keys.read_text()}')
    told = patient.doctor("--transport", "scp")
    assert told["exit"] == 0
    assert state_of(told, "write")["state"] == "skipped"
    assert "could not remove" in state_of(told, "write")["seen"]
    assert sorted(os.listdir(patient.collect)) == ["cback.collect", "data"]


def test_rcp_is_not_walked(command: Command, one_line: Callable[[str], None]) -> None:
    done = command("doctor", "--transport", "rcp", "u@h:/x")
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done.stderr)


# --- ways that are broken --------------------------------------------------------------------------------------------


def test_unknown_name(patient: Patient) -> None:
    patient.healthy()
    patient.config.write_text("Host db1\n Port 22\n\n HostName no-such-host.invalid\n")
    found = failed(patient.doctor(), "name", "name-not-resolved")
    assert "no-such-host.invalid" in found["seen"]
    assert f"`HostName no-such-host.invalid` in {patient.config}:4" in found["mend"]
    patient.config.write_text("")
    told = patient.command("doctor", "root@no-such-host.invalid:/x").stdout
    assert "add `HostName ADDRESS` below `Host no-such-host.invalid` in ~/.ssh/config" in told


def test_wrong_port_in_the_configuration(patient: Patient) -> None:
    patient.healthy()
    patient.configure(f"Port {(port := free_port())}")
    found = failed(patient.doctor(), "TCP", "connection-refused")
    assert "Connection refused" in found["seen"]
    assert f"`Port {port}` in {patient.config}:3" in found["mend"]


def test_closed_port_that_nobody_configured(patient: Patient) -> None:
    patient.healthy()
    found = failed(patient.doctor("--port", free_port()), "TCP", "connection-refused")
    assert "--port" in found["mend"]


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
    ("server", "step", "word", "reason"),
    [
        (speaks_http, "banner", "no SSH server", "not-ssh"),
        (never_speaks, "banner", "says nothing", "banner-timeout"),
        (closes_at_once, "banner", "turns this address away", "closed-before-banner"),
        (is_silent_after_kexinit, "key exchange", "MTU", "key-exchange-timeout"),
    ],
)
def test_what_is_no_ssh_server(patient: Patient, server: Any, step: str, word: str, reason: str) -> None:
    patient.healthy()
    with listening(server) as port:
        patient.configure(f"Port {port}", "ConnectTimeout 1")
        found = failed(patient.doctor(), step, reason)
        assert word in found["cause"]
        if step == "banner":
            assert f"`Port {port}` in {patient.config}:3" in found["mend"]


@pytest.mark.parametrize(
    ("extra", "mend"),
    [
        ("KexAlgorithms diffie-hellman-group1-sha1", "KexAlgorithms"),
        ("Ciphers aes128-cbc", "Ciphers"),
        ("Ciphers aes128-ctr\nMACs hmac-sha1", "MACs"),
    ],
)
def test_no_common_algorithm(patient: Patient, extra: str, mend: str) -> None:
    patient.healthy(extra=extra)
    found = failed(patient.doctor(), "key exchange", "no-common-algorithm")
    assert f"`{mend} +" in found["mend"]
    assert "sshd_config" in found["mend"]
    line = re.findall(r"`(\w+ \+\S+)`", found["mend"])[0]
    config = patient.sshd.home / "mended"
    config.write_text(f"HostKey {patient.sshd.home}/host\n{line}\n")
    subprocess.run([program("sshd"), "-t", "-f", str(config)], check=True)


def run_trust(patient: Patient, mend: str) -> None:
    """Run the commands that are named, as somebody would who has compared the fingerprint."""
    for line in re.findall(r"`((?:ssh-keygen|peerstage) .*?)`", mend):
        words = shlex.split(line)
        if words[0] == "peerstage":
            done = patient.command("trust", "--yes", *words[2:])
            assert done.returncode == 0, done.stderr
        else:
            subprocess.run(words, check=True, capture_output=True)


def test_unknown_host_key(patient: Patient) -> None:
    patient.healthy()
    patient.known_hosts.unlink()
    found = failed(patient.doctor(), "host key", "host-key-unknown")
    assert fingerprint(base64.b64decode((patient.sshd.home / "host.pub").read_text().split()[1])) in found["seen"]
    assert f"`peerstage trust --port {patient.sshd.port} db1`" in found["mend"]
    run_trust(patient, found["mend"])
    assert patient.doctor()["exit"] == 0


def test_changed_host_key(patient: Patient) -> None:
    patient.healthy()
    other = (patient.sshd.home / "id.pub").read_text().split()[1]
    patient.known_hosts.write_text(f"# one\n[127.0.0.1]:{patient.sshd.port} ssh-ed25519 {other}\n")
    found = failed(patient.doctor(), "host key", "host-key-changed")
    assert f"{patient.known_hosts}:2" in found["seen"]
    assert f"`ssh-keygen -R '[127.0.0.1]:{patient.sshd.port}'" in found["mend"]
    run_trust(patient, found["mend"])
    assert patient.doctor()["exit"] == 0


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
    assert "evil" not in found["mend"] + found["cause"]
    assert f"{patient.known_hosts}:2" in found["cause"]
    assert "HostCertificate" in found["mend"]


def test_configuration_that_others_can_write(patient: Patient) -> None:
    patient.healthy()
    patient.config.chmod(0o666)
    found = failed(patient.doctor(), "configuration", "insecure-configuration")
    [command] = re.findall("`(.*?)`", found["mend"])
    subprocess.run(command, shell=True, check=True)
    assert patient.doctor()["exit"] == 0


def test_configuration_that_can_not_be_read(patient: Patient) -> None:
    patient.healthy()
    patient.configure("Port many")
    assert f"{patient.config}:3" in failed(patient.doctor(), "configuration", "invalid-configuration")["mend"]


def test_key_that_others_can_read(patient: Patient) -> None:
    patient.healthy()
    key = patient.home / ".ssh" / "id_ed25519"
    key.chmod(0o644)
    found = failed(patient.doctor(), "login", "key-file-permissions")
    assert "`chmod 600 ~/.ssh/id_ed25519`" in found["mend"]
    key.chmod(0o600)
    assert patient.doctor()["exit"] == 0


def test_key_that_is_not_authorized(patient: Patient) -> None:
    patient.healthy()
    keys = patient.sshd.home / "authorized_keys"
    keys.write_text("")
    found = failed(patient.doctor(), "login", "login-refused")
    assert f"~{patient.sshd.user}/.ssh/authorized_keys" in found["mend"]
    [line] = re.findall("append `(.*?)`", found["mend"])
    keys.write_text(line + "\n")
    assert patient.doctor()["exit"] == 0


def test_wrong_user(patient: Patient) -> None:
    patient.healthy()
    found = failed(patient.doctor(user="nobody-of-this-name"), "login", "login-refused")
    assert "nobody-of-this-name" in found["seen"]
    assert "user before the @" in found["mend"]


def test_no_key_at_all(patient: Patient) -> None:
    patient.healthy()
    (patient.home / ".ssh" / "id_ed25519").unlink()
    assert "ssh-keygen -t ed25519" in failed(patient.doctor(), "login", "no-credentials")["mend"]


def test_agent_that_does_not_answer(patient: Patient, tmp_path: Path) -> None:
    patient.healthy()
    (patient.home / ".ssh" / "id_ed25519").unlink()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "agent"))
        silent.listen()
        patient.configure(f"Port {patient.sshd.port}", f"IdentityAgent {tmp_path}/agent")
        found = failed(patient.doctor(), "login", "agent-silent")
    assert "no answer within" in found["cause"]
    assert f"`IdentityAgent {tmp_path}/agent` in {patient.config}:4" in found["mend"]


def test_no_sftp_and_no_scp(patient: Patient) -> None:
    patient.healthy(subsystem=False, extra=f"SetEnv PATH={patient.home}")
    found = failed(patient.doctor(), "SCP", "no-scp")
    assert "`Subsystem sftp internal-sftp` in /etc/ssh/sshd_config" in found["mend"]
    found = failed(patient.doctor("--transport", "sftp"), "SFTP", "no-sftp")
    assert "`Subsystem sftp internal-sftp` in /etc/ssh/sshd_config" in found["mend"]


def test_login_script_that_prints_something(patient: Patient) -> None:
    patient.healthy(sftp="/bin/echo Welcome to db1, dear user, and mind the gap")
    found = failed(patient.doctor(), "SFTP", "text-before-protocol")
    assert "login script" in found["cause"]
    assert ".bashrc" in found["mend"]


def test_server_that_opens_no_channel(patient: Patient) -> None:
    patient.healthy()
    key = paramiko.Ed25519Key.from_private_key_file(str(patient.sshd.home / "host"))
    with listening(made_of_paramiko(RefusesChannels, key=key)) as port:
        beside(patient, port)
        found = failed(patient.doctor("--port", port), "SFTP", "session-refused")
    assert "sshd_config" in found["mend"]


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_missing_directory(patient: Patient, transport: str) -> None:
    patient.healthy()
    missing = patient.collect / "no such"
    found = failed(patient.doctor("--transport", transport, directory=missing), "directory", "not-found")
    assert f"`mkdir -p '{missing}'`" in found["mend"]


def test_directory_that_is_a_file(patient: Patient) -> None:
    patient.healthy()
    failed(patient.doctor(directory=patient.collect / "data"), "directory", "not-a-directory")


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_missing_indicator(patient: Patient, transport: str) -> None:
    patient.healthy()
    (patient.collect / "cback.collect").unlink()
    told = patient.doctor("--transport", transport)
    assert (told["failed"], told["exit"]) == ("indicator", 3)
    assert f"`touch {patient.collect}/cback.collect`" in state_of(told, "indicator")["mend"]
    assert state_of(told, "write")["state"] == "ok", "that does not hang on it"
    assert os.listdir(patient.collect) == ["data"]
    assert patient.doctor("--transport", transport, "--indicator", "data")["exit"] == 0


@pytest.fixture
def unprivileged_patient(
    command: Command, unprivileged_sshd: Sshd, public_path: Path, own_home: Path
) -> Iterator[Patient]:
    """A patient whose login is not root, so that modes mean something."""
    patient = Patient(own_home, public_path / "collect", lambda **changes: unprivileged_sshd, command)
    yield patient.healthy()
    patient.collect.chmod(0o755)


@pytest.mark.parametrize(
    ("mode", "step", "reason", "mend"),
    [
        (0o333, "directory", "permission-denied", "chmod u+rx"),
        (0o000, "directory", "permission-denied", "chmod u+rx"),
        (0o555, "write", "write-denied", "chmod u+w"),
    ],
)
def test_directory_with_the_wrong_mode(
    unprivileged_patient: Patient, mode: int, step: str, reason: str, mend: str
) -> None:
    patient = unprivileged_patient
    patient.collect.chmod(mode)
    found = failed(patient.doctor(), step, reason)
    assert f"`{mend} {patient.collect}`" in found["mend"]
    if step == "write":
        assert sorted(os.listdir(patient.collect)) == ["cback.collect", "data"]


def through(patient: Patient, hop: Sshd, *, known: bool = True) -> None:
    """Reach the patient through *hop*."""
    (hop.home / "authorized_keys").write_bytes((patient.sshd.home / "id.pub").read_bytes())
    patient.config.write_text(
        f"Host db1\n HostName 127.0.0.1\n Port {patient.sshd.port}\n ProxyJump gate\n"
        f"Host gate\n HostName 127.0.0.1\n Port {hop.port}\n User {hop.user}\n"
    )
    if known:
        patient.known_hosts.write_bytes(patient.known_hosts.read_bytes() + hop.known_hosts.read_bytes())


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
    assert "`AllowTcpForwarding yes` in /etc/ssh/sshd_config on gate" in found["mend"]


def test_jump_host_whose_key_is_unknown(patient: Patient, own_sshd: Callable[..., Sshd]) -> None:
    patient.healthy()
    through(patient, own_sshd(), known=False)
    found = failed(patient.doctor(), "jump host", "host-key-unknown")
    assert "Jump host gate" in found["seen"]
    run_trust(patient, found["mend"])
    assert patient.doctor()["exit"] == 0


def test_jump_host_that_is_down(patient: Patient, own_sshd: Callable[..., Sshd]) -> None:
    patient.healthy()
    hop = own_sshd()
    through(patient, hop)
    hop.stop()
    found = failed(patient.doctor(), "jump host", "connection-refused")
    assert "gate" in found["cause"]
    assert f"`ProxyJump gate` in {patient.config}:4" in found["mend"]


def test_proxy_command_that_leads_nowhere(patient: Patient) -> None:
    patient.healthy()
    patient.configure(f"Port {patient.sshd.port}", "ProxyCommand sh -c 'echo no way >&2; exit 1'")
    found = failed(patient.doctor(), "banner", "proxy-command-failed")
    assert "no way" in found["seen"]
    assert "`ProxyCommand sh -c 'echo no way >&2; exit 1'` in " in found["mend"]
    assert f"{patient.config}:4" in found["mend"]


# --- what is written is removed --------------------------------------------------------------------------------------


class WhenCreated(Policy):
    """Serves SFTP by the real program, and does something once, when the trial file is there."""

    directory = Path()
    then: Callable[[paramiko.Channel], object] | None = None

    def serve(self, channel: paramiko.Channel) -> None:
        with subprocess.Popen([self.program()], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            answers = threading.Thread(target=self.answer, args=(channel, server.stdout.fileno()), daemon=True)
            answers.start()
            while data := channel.recv(65536):
                server.stdin.write(data)
                server.stdin.flush()
            server.stdin.close()
            answers.join(10)

    def answer(self, channel: paramiko.Channel, source: int) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(source, 65536):
                then = WhenCreated.then
                if then is not None and list(self.directory.glob(".peerstage-doctor-*")):
                    WhenCreated.then = None
                    then(channel)
                channel.sendall(data)

    @staticmethod
    def program() -> str:
        places = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
        return next(path for path in places if os.path.exists(path))


def pending(pid: int) -> set[int]:
    """Return the signals that were sent to a process and that it has not taken yet."""
    status = status_of(pid)
    bits = int(status["SigPnd"][0], 16) | int(status["ShdPnd"][0], 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}


def beside(patient: Patient, port: int) -> None:
    """Know the server on another port by the same key."""
    key = " ".join((patient.sshd.home / "host.pub").read_text().split()[:2])
    patient.known_hosts.write_text(f"[127.0.0.1]:{port} {key}\n")


@pytest.fixture
def when_created(patient: Patient) -> Iterator[Callable[..., int]]:
    """Starts a server that does something when the trial file is there; returns its port."""
    patient.healthy()
    with contextlib.ExitStack() as stack:

        def start(then: Callable[[paramiko.Channel], object]) -> int:
            WhenCreated.directory, WhenCreated.then = patient.collect, staticmethod(then)
            key = paramiko.Ed25519Key.from_private_key_file(str(patient.sshd.home / "host"))
            port = stack.enter_context(listening(made_of_paramiko(WhenCreated, key=key)))
            beside(patient, port)
            return port

        yield start


def test_a_file_whose_connection_was_lost_is_removed_over_another(
    patient: Patient, when_created: Callable[..., int]
) -> None:
    port = when_created(lambda channel: channel.get_transport().close())
    told = patient.doctor("--port", port)
    assert WhenCreated.then is None
    failed(told, "write", "connection-lost")
    assert sorted(os.listdir(patient.collect)) == ["cback.collect", "data"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_the_file_is_removed(
    patient: Patient, when_created: Callable[..., int], signum: int
) -> None:
    processes: list[subprocess.Popen[str]] = []

    def interrupt(channel: paramiko.Channel) -> None:
        pid = processes[0].pid
        processes[0].send_signal(signum)
        wait_until(lambda: signum not in pending(pid))

    port = when_created(interrupt)
    spec = f"{patient.sshd.user}@db1:{patient.collect}"
    with patient.command.start("doctor", "--port", port, spec) as process:
        processes.append(process)
        process.communicate(timeout=60)
    assert process.returncode == -signum
    assert WhenCreated.then is None
    assert sorted(os.listdir(patient.collect)) == ["cback.collect", "data"]
