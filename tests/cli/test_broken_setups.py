"""Set-ups that are broken on this side: the message of a verb names the next step, and that step, carried out to the
letter, makes the peer work: keys, agents, users, host keys, configuration."""

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
from cli.setups import Setup, commands_in, correct_line, replaced
from peerstage import RemotePeer, SSHOptions
from peerstage.errors import LoginError
from peerstage.reasons import Reason
from support.agents import agent_that
from support.keys import certify, fingerprint, make_key, public, running_agent
from support.logins import certified_server
from support.ssh_server import is_silent_after_kexinit, listening, never_speaks
from support.sshd import Sshd, free_port

Start = Callable[..., Sshd]


@pytest.fixture
def setup(own_home: Path, collect: Path, target: Path, sshd: Sshd, command: Command) -> Setup:
    return Setup(own_home, collect, target, sshd, command)


@pytest.fixture
def own_setup(own_home: Path, collect: Path, target: Path, own_sshd: Start, command: Command) -> Setup:
    return Setup(own_home, collect, target, own_sshd(), command)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_that_the_peer_refuses_is_to_be_authorized(own_setup: Setup) -> None:
    setup = own_setup
    setup.options = ["-i", str(make_key(setup.home / "other key"))]
    said = setup.fails("login-refused")
    assert f"authorized_keys of {setup.user}" in said
    setup.authorize(setup.follow(said))
    setup.works()


def test_a_user_that_is_wrong_is_to_be_checked_first(setup: Setup) -> None:
    right, setup.user = setup.user, "nosuch"
    assert "Check that nosuch is the right user" in setup.fails("login-refused")
    setup.user = right
    setup.works()


def test_a_key_file_that_an_option_names_and_that_is_missing_is_corrected_there(setup: Setup) -> None:
    setup.options = ["-i", str(setup.home / "nokey")]
    said = setup.fails("key-file-missing")
    found = re.search(r"Correct the path (\S+) \(the option identity\)", said)
    assert found is not None, said
    assert "authorized_keys" not in said
    setup.options = replaced(setup.options, found[1], setup.key)
    setup.works()


@pytest.mark.parametrize("named", [True, False])
def test_a_key_file_that_a_line_names_and_that_is_missing_is_corrected_in_that_line(setup: Setup, named: bool) -> None:
    setup.configure(f"Port {setup.sshd.port}", "IdentityFile ~/nokey")
    if named:
        setup.options = ["-F", str(setup.config.rename(setup.home / "special"))]
    said = setup.fails("key-file-missing")
    assert f"Correct the path {setup.home}/nokey (IdentityFile in " in said
    correct_line(said, f"IdentityFile {setup.key}")
    setup.works()


def test_a_key_that_others_can_read_is_closed_to_them_and_no_more_is_said(setup: Setup) -> None:
    setup.key.chmod(0o644)
    said = setup.fails("key-file-permissions")
    assert said.endswith(f"Run `chmod 600 {setup.key}`.")
    setup.follow(said)
    setup.works()


def test_a_public_key_that_is_given_as_identity_is_replaced_by_the_private_one(setup: Setup) -> None:
    given = shutil.copy(setup.sshd.home / "id.pub", f"{setup.key}.pub")
    setup.options = ["-i", given]
    found = re.search(r"Name (\S+) instead of (\S+) \(the option identity\)", setup.fails("public-key-only"))
    assert found is not None
    setup.options = replaced(setup.options, found[2], found[1])
    setup.works()


def test_a_key_with_a_passphrase_is_added_to_an_agent(own_setup: Setup, openssh: None) -> None:
    setup = own_setup
    make_key(setup.key, "secret")
    setup.authorize(public(setup.key) + "\n")
    said = setup.fails("passphrase-missing")
    assert "authorized_keys" not in said
    setup.answer_passphrases("secret")
    with new_agent(setup, said):
        setup.works()


def test_a_passphrase_that_is_wrong_is_tried_by_hand_and_corrected(own_setup: Setup, openssh: None) -> None:
    setup = own_setup
    make_key(setup.key, "secret")
    setup.authorize(public(setup.key) + "\n")

    def stage(passphrase: str) -> int:
        ssh = SSHOptions(passphrase=passphrase, config=str(setup.config))
        return RemotePeer("db1", str(setup.collect), "/tmp", setup.user, ssh=ssh).stagePeer(str(setup.target))

    with pytest.raises(LoginError) as caught:
        stage("wrong")
    assert caught.value.reason is Reason.PASSPHRASE_WRONG
    setup.answer_passphrases("secret")
    assert setup.follow(str(caught.value)).split()[:2] == public(setup.key).split()
    assert stage("secret") == 2


def test_without_any_key_one_is_made_and_authorized(own_setup: Setup, openssh: None) -> None:
    setup = own_setup
    setup.key.unlink()
    key = setup.home / "new"
    said = setup.fails("no-credentials")
    assert "append FILE.pub to authorized_keys of " in said
    setup.follow(said, FILE=key)
    setup.authorize(Path(f"{key}.pub").read_text())
    setup.options = ["-i", str(key)]
    setup.works()


def test_a_certificate_is_no_matter_of_authorized_keys(
    own_home: Path, collect: Path, target: Path, own_sshd: Start, command: Command, tmp_path: Path
) -> None:
    trusted, other = (make_key(tmp_path / name / "authority") for name in ("trusted", "other"))
    setup = Setup(own_home, collect, target, certified_server(own_sshd, trusted), command)
    certify(make_key(setup.key), other, setup.user)
    said = setup.fails("login-refused")
    assert "Check that the peer trusts the certificate's authority (TrustedUserCAKeys)" in said
    assert "authorized_keys" not in said
    trusted.with_name("trusted").write_text(public(other) + "\n")
    setup.works()


# --- agents ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_agent(setup: Setup, said: str, **values: object) -> Iterator[None]:
    """Carry out what *said* names, which starts an agent and tells whoever runs it where; end that afterwards."""
    told = setup.follow(f"{said} `echo $SSH_AUTH_SOCK $SSH_AGENT_PID`", **values)
    sock, pid = told.splitlines()[-1].split()
    try:
        setup.command.environment["SSH_AUTH_SOCK"] = sock
        yield
    finally:
        os.kill(int(pid), signal.SIGTERM)


def test_an_agent_whose_socket_is_gone_is_replaced(setup: Setup, openssh: None) -> None:
    key = setup.hide_key()
    setup.command.environment["SSH_AUTH_SOCK"] = str(setup.home / "gone")
    said = setup.fails("agent-unavailable")
    assert "authorized_keys" not in said
    with new_agent(setup, said, FILE=key):
        setup.works()


@contextlib.contextmanager
def ended_agent(setup: Setup, said: str, path: Path, key: Path) -> Iterator[None]:
    """Carry out what *said* names, which starts an agent at *path*; end that afterwards."""
    told = setup.follow(said, FILE=key)
    try:
        assert path.is_socket()
        yield
    finally:
        os.kill(int(re.findall(r"SSH_AGENT_PID=(\d+)", told)[0]), signal.SIGTERM)


def test_an_agent_that_the_configuration_names_is_started_there(setup: Setup, openssh: None) -> None:
    key, path = setup.hide_key(), setup.home / "agent"
    setup.configure(f"Port {setup.sshd.port}", f"IdentityAgent {path}")
    said = setup.fails("agent-unavailable")
    assert f"or correct IdentityAgent in {setup.config}:4" in said
    with ended_agent(setup, said, path, key):
        setup.works()


def test_an_agent_that_hangs_is_restarted(setup: Setup, openssh: None, patience: None) -> None:
    key, path = setup.hide_key(), setup.home / "agent"
    setup.configure(f"Port {setup.sshd.port}", f"IdentityAgent {path}")
    with agent_that(path, never_speaks):
        said = setup.fails("agent-silent")
        assert "authorized_keys" not in said
        with ended_agent(setup, said, path, key):
            setup.works()


def test_an_agent_without_keys_is_given_one(setup: Setup, openssh: None) -> None:
    key = setup.hide_key()
    with running_agent(setup.home / "agent") as sock:
        setup.command.environment["SSH_AUTH_SOCK"] = sock
        said = setup.fails("agent-empty")
        assert "it holds no keys" in said
        setup.follow(said, FILE=key)
        setup.works()


# --- host keys -------------------------------------------------------------------------------------------------------


def trust(setup: Setup, said: str) -> None:
    """Run the commands that *said* names, as somebody would who has compared the fingerprint."""
    for words in map(shlex.split, commands_in(said)):
        if words[0] == "ssh-keygen":
            subprocess.run(words, check=True, capture_output=True)
        elif words[:2] == ["peerstage", "trust"]:
            assert setup.command("trust", "--yes", *words[2:]).returncode == 0


def test_a_host_key_that_changed_is_removed_and_trusted(setup: Setup, openssh: None) -> None:
    setup.known_hosts.write_text(f"[127.0.0.1]:{setup.sshd.port} {public(setup.sshd.home / 'id')}\n")
    trust(setup, setup.fails("host-key-changed"))
    setup.works()


def test_a_host_key_that_is_unknown_is_trusted(setup: Setup, openssh: None) -> None:
    setup.known_hosts.unlink()
    said = setup.fails("host-key-unknown")
    trust(setup, said)
    setup.works()


def test_known_hosts_that_keep_nothing_are_not_proposed(setup: Setup, openssh: None) -> None:
    setup.configure(f"Port {setup.sshd.port}", "UserKnownHostsFile /dev/null", "GlobalKnownHostsFile none")
    said = setup.fails("host-key-unknown")
    assert "add them to a known_hosts file, and name that by UserKnownHostsFile or the option known hosts" in said
    mine = setup.home / "mine"
    scan = next(command for command in commands_in(said) if "|" not in command)
    mine.write_text(setup.follow(f"`{scan}`"))
    setup.options = ["--known-hosts", str(mine)]
    setup.works()


def test_a_pinned_fingerprint_that_is_wrong_is_compared_on_the_host_and_corrected(setup: Setup) -> None:
    wrong, right = "SHA256:" + "A" * 43, fingerprint(setup.sshd.home / "host")
    setup.options = ["--host-key", wrong]
    said = setup.fails("host-key-not-pinned")
    assert right in said
    assert "correct the pinned one (the option host key)" in said
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
def test_a_line_that_is_not_honoured_is_corrected_or_removed(
    setup: Setup, line: str, reason: str, corrected: str | None
) -> None:
    setup.configure(f"Port {setup.sshd.port}", line)
    said = setup.fails(reason, status=2)
    assert f"{setup.config}:4: " in said
    assert line.split()[0] in said or line.split()[1] in said
    assert "Correct or remove that line" in said
    correct_line(said, corrected)
    setup.works()


def test_a_keyword_that_is_misspelled_in_a_system_file_is_named_though_it_is_ignored(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.session.ssh_config._SYSTEM", str(setup.home))
    setup.config.write_text(f"Host db1\n HostNam 127.0.0.1\n Port {setup.sshd.port}\n")
    setup.fails("name-not-resolved")
    _, _, err = setup.run("check")
    assert f"{setup.config}:2: HostNam: unknown keyword. Did you mean HostName?" in err
    correct_line(err, "HostName 127.0.0.1")
    setup.works()


def test_a_configuration_that_others_can_write_is_closed_to_them(setup: Setup) -> None:
    setup.config.chmod(0o666)
    setup.follow(setup.fails("insecure-configuration", status=2))
    setup.works()


def test_a_configuration_that_is_not_there_is_named_with_its_option(setup: Setup) -> None:
    setup.options = ["-F", str(setup.home / "none")]
    assert "Correct the option config" in setup.fails("configuration-unreadable", status=2)
    setup.options = replaced(setup.options, str(setup.home / "none"), setup.config)
    setup.works()


# --- what answers there ----------------------------------------------------------------------------------------------


def test_a_port_that_nobody_listens_on_is_named(setup: Setup) -> None:
    port = str(free_port())
    setup.options = ["--port", port]
    assert f"127.0.0.1 port {port}: Connection refused. Is the peer up, is that its port" in setup.fails(
        "connection-refused"
    )
    setup.options = replaced(setup.options, port, setup.sshd.port)
    setup.works()


def test_a_server_that_stops_answering_is_not_asked_whether_that_is_its_port(setup: Setup, patience: None) -> None:
    with listening(is_silent_after_kexinit) as port:
        setup.options = ["--port", str(port), "--connect-timeout", "1"]
        said = setup.fails("key-exchange-timeout")
    assert "See its log" in said
    assert "port" not in said
