"""Set-ups broken on this machine: following the message of a verb literally makes the peer work again.

Keys, agents, users, host keys, configuration.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.command import Command
from cli.peer_setup import PeerSetup, commands_in, correct_line, replaced
from peerstage import RemotePeer, SSHOptions
from peerstage.errors import LoginError
from peerstage.reasons import Reason
from support.agents import serve_agent
from support.keys import certify, fingerprint_of, make_key, public_key, run_agent
from support.logins import start_certified_server
from support.ssh_server import listening, sends_nothing, stops_after_kexinit
from support.sshd import Sshd, free_port

Start = Callable[..., Sshd]


@pytest.fixture
def setup(own_home: Path, collect: Path, target: Path, sshd: Sshd, command: Command) -> PeerSetup:
    return PeerSetup(own_home, collect, target, sshd, command)


@pytest.fixture
def own_setup(own_home: Path, collect: Path, target: Path, own_sshd: Start, command: Command) -> PeerSetup:
    return PeerSetup(own_home, collect, target, own_sshd(), command)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_that_the_peer_refuses_is_to_be_authorized(own_setup: PeerSetup) -> None:
    setup = own_setup
    setup.options = ["-i", str(make_key(setup.home / "other key"))]
    message = setup.fails("login-refused")
    assert f"~{setup.user}/.ssh/authorized_keys on the peer" in message
    setup.authorize(setup.follow(message))
    setup.works()


def test_another_user_is_an_alternative_to_a_key_that_the_peer_refuses(setup: PeerSetup) -> None:
    right, setup.user = setup.user, "nosuch"
    assert "or log in as another user than nosuch" in setup.fails("login-refused")
    setup.user = right
    setup.works()


def test_a_missing_key_file_is_corrected_in_its_option(setup: PeerSetup) -> None:
    setup.options = ["-i", str(setup.home / "nokey")]
    message = setup.fails("key-file-missing")
    found = re.search(r"Correct the path (\S+) \(--identity\)", message)
    assert found is not None, message
    assert "authorized_keys" not in message
    setup.options = replaced(setup.options, found[1], setup.key)
    setup.works()


@pytest.mark.parametrize("named", [True, False])
def test_a_missing_key_file_is_corrected_in_its_line(setup: PeerSetup, named: bool) -> None:
    setup.configure(f"Port {setup.sshd.port}", "IdentityFile ~/nokey")
    if named:
        setup.options = ["-F", str(setup.config.rename(setup.home / "special"))]
    message = setup.fails("key-file-missing")
    assert f"Correct the path {setup.home}/nokey (IdentityFile in " in message
    correct_line(message, f"IdentityFile {setup.key}")
    setup.works()


def test_the_mode_of_a_key_that_others_can_read_is_the_only_advice(setup: PeerSetup) -> None:
    setup.key.chmod(0o644)
    message = setup.fails("key-file-permissions")
    assert message.endswith(f"Run `chmod 600 {setup.key}`.")
    setup.follow(message)
    setup.works()


def test_a_public_key_given_as_identity_is_replaced_by_the_private_one(setup: PeerSetup) -> None:
    given = shutil.copy(setup.sshd.home / "id.pub", f"{setup.key}.pub")
    setup.options = ["-i", given]
    found = re.search(r"Name (\S+) instead of (\S+) \(--identity\)", setup.fails("public-key-only"))
    assert found is not None
    setup.options = replaced(setup.options, found[2], found[1])
    setup.works()


def test_a_key_with_a_passphrase_is_added_to_an_agent(own_setup: PeerSetup, openssh: None) -> None:
    setup = own_setup
    make_key(setup.key, "secret")
    setup.authorize(public_key(setup.key) + "\n")
    message = setup.fails("passphrase-missing")
    assert "authorized_keys" not in message
    setup.answer_passphrases("secret")
    with new_agent(setup, message):
        setup.works()


def test_a_wrong_passphrase_is_tested_and_corrected(own_setup: PeerSetup, openssh: None) -> None:
    setup = own_setup
    make_key(setup.key, "secret")
    setup.authorize(public_key(setup.key) + "\n")

    def stage(passphrase: str) -> int:
        ssh = SSHOptions(passphrase=passphrase, config=str(setup.config))
        return RemotePeer("db1", str(setup.collect), "/tmp", setup.user, ssh=ssh).stagePeer(str(setup.target))

    with pytest.raises(LoginError) as caught:
        stage("wrong")
    assert caught.value.reason is Reason.PASSPHRASE_WRONG
    setup.answer_passphrases("secret")
    assert setup.follow(str(caught.value)).split()[:2] == public_key(setup.key).split()
    assert stage("secret") == 2


def test_without_a_key_a_new_one_is_generated_and_authorized(own_setup: PeerSetup, openssh: None) -> None:
    setup = own_setup
    setup.key.unlink()
    message = setup.fails("no-credentials")
    assert f"append ~/.ssh/id_ed25519.pub to ~{setup.user}/.ssh/authorized_keys on the peer" in message
    setup.follow(message)
    setup.authorize(Path(f"{setup.key}.pub").read_text())
    setup.works()


def test_a_refused_certificate_is_not_added_to_authorized_keys(
    own_home: Path, collect: Path, target: Path, own_sshd: Start, command: Command, tmp_path: Path
) -> None:
    trusted, other = (make_key(tmp_path / name / "authority") for name in ("trusted", "other"))
    setup = PeerSetup(own_home, collect, target, start_certified_server(own_sshd, trusted), command)
    certify(make_key(setup.key), other, setup.user)
    message = setup.fails("login-refused")
    assert "Check that the peer trusts the certificate's authority (TrustedUserCAKeys)" in message
    assert "authorized_keys" not in message
    trusted.with_name("trusted").write_text(public_key(other) + "\n")
    setup.works()


# --- agents ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_agent(setup: PeerSetup, message: str, **values: object) -> Iterator[None]:
    """Run the commands in *message*, which start an agent and print its socket; end the agent after the block."""
    report = setup.follow(f"{message} `echo $SSH_AUTH_SOCK $SSH_AGENT_PID`", **values)
    sock, pid = report.splitlines()[-1].split()
    try:
        setup.command.environment["SSH_AUTH_SOCK"] = sock
        yield
    finally:
        os.kill(int(pid), signal.SIGTERM)


def test_an_agent_whose_socket_is_gone_is_replaced(setup: PeerSetup, openssh: None) -> None:
    key = setup.hide_key()
    setup.command.environment["SSH_AUTH_SOCK"] = str(setup.home / "gone")
    message = setup.fails("agent-unavailable")
    assert "authorized_keys" not in message
    with new_agent(setup, message, FILE=key):
        setup.works()


@contextlib.contextmanager
def ended_agent(setup: PeerSetup, message: str, path: Path, key: Path) -> Iterator[None]:
    """Run the commands in *message*, which start an agent at *path*; end it after the block."""
    report = setup.follow(message, FILE=key)
    try:
        assert path.is_socket()
        yield
    finally:
        os.kill(int(re.findall(r"SSH_AGENT_PID=(\d+)", report)[0]), signal.SIGTERM)


def test_an_agent_that_the_configuration_names_is_started_there(setup: PeerSetup, openssh: None) -> None:
    key, path = setup.hide_key(), setup.home / "agent"
    setup.configure(f"Port {setup.sshd.port}", f"IdentityAgent {path}")
    message = setup.fails("agent-unavailable")
    assert f"or correct IdentityAgent in {setup.config}:4" in message
    with ended_agent(setup, message, path, key):
        setup.works()


def test_an_agent_that_hangs_is_restarted(setup: PeerSetup, openssh: None, patience: None) -> None:
    key, path = setup.hide_key(), setup.home / "agent"
    setup.configure(f"Port {setup.sshd.port}", f"IdentityAgent {path}")
    with serve_agent(path, sends_nothing):
        message = setup.fails("agent-silent")
        assert "authorized_keys" not in message
        with ended_agent(setup, message, path, key):
            setup.works()


def test_an_agent_without_keys_is_given_one(setup: PeerSetup, openssh: None) -> None:
    key = setup.hide_key()
    with run_agent(setup.home / "agent") as sock:
        setup.command.environment["SSH_AUTH_SOCK"] = sock
        message = setup.fails("agent-empty")
        assert "it holds no keys" in message
        setup.follow(message, FILE=key)
        setup.works()


# --- host keys -------------------------------------------------------------------------------------------------------


def trust(setup: PeerSetup, message: str) -> None:
    """Run the commands in *message*, as a person would after comparing the fingerprint."""
    for words in map(shlex.split, commands_in(message)):
        if words[0] == "ssh-keygen":
            subprocess.run(words, check=True, capture_output=True)
        elif words[:2] == ["peerstage", "trust"]:
            assert setup.command("trust", "--yes", *words[2:]).returncode == 0


def test_a_host_key_that_changed_is_removed_and_trusted(setup: PeerSetup, openssh: None) -> None:
    setup.known_hosts.write_text(f"[127.0.0.1]:{setup.sshd.port} {public_key(setup.sshd.home / 'id')}\n")
    trust(setup, setup.fails("host-key-changed"))
    setup.works()


def test_a_host_key_that_is_unknown_is_trusted(setup: PeerSetup, openssh: None) -> None:
    setup.known_hosts.unlink()
    message = setup.fails("host-key-unknown")
    trust(setup, message)
    setup.works()


def test_dev_null_is_not_proposed_as_known_hosts_file(setup: PeerSetup, openssh: None) -> None:
    setup.configure(f"Port {setup.sshd.port}", "UserKnownHostsFile /dev/null", "GlobalKnownHostsFile none")
    message = setup.fails("host-key-unknown")
    assert "add them to a known_hosts file, and name that file by UserKnownHostsFile or --known-hosts" in message
    mine = setup.home / "mine"
    scan = next(command for command in commands_in(message) if "|" not in command)
    mine.write_text(setup.follow(f"`{scan}`"))
    setup.options = ["--known-hosts", str(mine)]
    setup.works()


def test_a_wrong_pinned_fingerprint_is_compared_on_the_host_and_corrected(setup: PeerSetup) -> None:
    wrong, right = "SHA256:" + "A" * 43, fingerprint_of(setup.sshd.home / "host")
    setup.options = ["--host-key", wrong]
    message = setup.fails("host-key-not-pinned")
    assert right in message
    assert "correct the pinned fingerprint (--host-key)" in message
    setup.options = replaced(setup.options, wrong, right)
    setup.works()


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason", "corrected"),
    [
        ("HostNam 127.0.0.1", "unknown-keyword", "HostName 127.0.0.1"),
        ("CanonicalizeHostname yes", "unsupported-keyword", None),
        ("ConnectTimeout soon", "invalid-configuration", "ConnectTimeout 9"),
    ],
)
def test_an_unsupported_line_is_corrected_or_removed(
    setup: PeerSetup, line: str, reason: str, corrected: str | None
) -> None:
    setup.configure(f"Port {setup.sshd.port}", line)
    message = setup.fails(reason, status=2)
    assert f"{setup.config}:4: " in message
    assert line.split()[0] in message or line.split()[1] in message
    assert "Correct or remove the line" in message
    correct_line(message, corrected)
    setup.works()


def test_an_ignored_misspelled_keyword_of_a_system_file_is_reported(
    setup: PeerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.ssh.config.read_config._VENDOR_DIRECTORY", str(setup.home))
    setup.config.write_text(f"Host db1\n HostNam 127.0.0.1\n Port {setup.sshd.port}\n")
    setup.fails("name-not-resolved")
    _, _, err = setup.run("check")
    assert f"{setup.config}:2: HostNam: unknown keyword. Did you mean HostName?" in err
    correct_line(err, "HostName 127.0.0.1")
    setup.works()


def test_write_permission_of_others_is_removed_from_a_configuration_file(setup: PeerSetup) -> None:
    setup.config.chmod(0o666)
    setup.follow(setup.fails("insecure-configuration", status=2))
    setup.works()


def test_a_missing_configuration_file_is_reported_with_its_option(setup: PeerSetup) -> None:
    setup.options = ["-F", str(setup.home / "none")]
    assert "Correct --config" in setup.fails("configuration-unreadable", status=2)
    setup.options = replaced(setup.options, str(setup.home / "none"), setup.config)
    setup.works()


# --- what answers there ----------------------------------------------------------------------------------------------


def test_a_closed_port_is_named(setup: PeerSetup) -> None:
    port = str(free_port())
    setup.options = ["--port", port]
    assert (
        f"127.0.0.1 port {port}: Connection refused. Check that the host is up, that sshd listens on this port"
        in setup.fails("connection-refused")
    )
    setup.options = replaced(setup.options, port, setup.sshd.port)
    setup.works()


def test_a_server_that_hangs_in_the_key_exchange_is_not_on_the_wrong_port(setup: PeerSetup, patience: None) -> None:
    with listening(stops_after_kexinit) as port:
        setup.options = ["--port", str(port), "--connect-timeout", "1"]
        message = setup.fails("key-exchange-timeout")
    assert "Check its log" in message
    assert "port" not in message
