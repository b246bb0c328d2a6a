"""Connecting to a real server: host keys, credentials, the caller's connections, forks and interrupts."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import RemotePeer, SSHOptions
from peerstage.errors import ConfigurationError, LoginError
from support.children import run_in_fork
from support.keys import fingerprint_of, make_key, make_key_by_openssh, run_agent
from support.sshd import Sshd


@pytest.fixture
def ready(collect: Path) -> Path:
    (collect / "cback.collect").touch()
    return collect


def peer_of(sshd: Sshd, collect: Path, **options: Any) -> RemotePeer:
    return RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=sshd.options(**options))


def test_pinned_fingerprint_needs_no_known_hosts(sshd: Sshd, ready: Path) -> None:
    shown = fingerprint_of(sshd.home / "host")
    assert peer_of(sshd, ready, known_hosts=(), host_key=shown).checkCollectIndicator()


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_known_key_type_is_requested(own_sshd: Callable[..., Sshd], ready: Path, tmp_path: Path, kind: str) -> None:
    key = make_key(tmp_path / f"host_{kind}", key_type=kind)
    server = own_sshd(extra=f"HostKey {key}")
    key_type, blob = key.with_suffix(".pub").read_text().split()[:2]
    known = f"[127.0.0.1]:{server.port} {key_type} {blob}\n".encode()
    assert peer_of(server, ready, known_hosts=known).checkCollectIndicator()


def test_login_error_lists_every_unusable_key(sshd: Sshd, ready: Path, tmp_path: Path, target: Path) -> None:
    (tmp_path / "nonsense").write_text("nonsense")
    (tmp_path / "nonsense").chmod(0o600)
    make_key(tmp_path / "locked", "secret")
    tried = (make_key(tmp_path / "wrong"), tmp_path / "missing", tmp_path / "nonsense", tmp_path / "locked", tmp_path)
    with pytest.raises(LoginError) as caught:
        peer_of(sshd, ready, identity=tuple(map(str, tried))).stagePeer(str(target))
    text = str(caught.value)
    for path, reason in zip(
        tried, ("refused", "No such file", "not a private key", "passphrase", "regular"), strict=True
    ):
        assert str(path) in text
        assert reason in text


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("passphrase", ["", "open sesame"])
def test_keys_of_every_type_and_passphrase_log_in(
    sshd: Sshd, ready: Path, tmp_path: Path, kind: str, passphrase: str
) -> None:
    key = make_key_by_openssh(tmp_path / "key", passphrase, kind)
    authorized = sshd.home / "authorized_keys"
    before = authorized.read_text()
    authorized.write_text(before + key.with_suffix(".pub").read_text())
    try:
        right = peer_of(sshd, ready, identity=str(key), passphrase=passphrase or None)
        assert right.checkCollectIndicator()
        if passphrase:
            assert not peer_of(sshd, ready, identity=str(key), passphrase="wrong").checkCollectIndicator()
            assert not peer_of(sshd, ready, identity=str(key)).checkCollectIndicator()
    finally:
        authorized.write_text(before)


def test_default_keys_are_tried(sshd: Sshd, ready: Path, own_home: Path) -> None:
    (own_home / ".ssh").mkdir()
    key = own_home / ".ssh" / "id_ed25519"
    key.touch(0o600)
    key.write_bytes(sshd.identity.read_bytes())
    assert peer_of(sshd, ready, identity=None).checkCollectIndicator()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_private_key_that_others_can_read_is_not_used(sshd: Sshd, ready: Path, tmp_path: Path, mode: int) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(sshd.identity.read_bytes())
    key.chmod(mode)
    with pytest.raises(LoginError, match=rf"others can access it \(mode {mode:04o}\).*chmod 600"):
        peer_of(sshd, ready, identity=str(key)).stagePeer(str(tmp_path))
    key.chmod(0o400)
    assert peer_of(sshd, ready, identity=str(key)).checkCollectIndicator()


def test_key_in_an_agent_logs_in(
    sshd: Sshd, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves_nothing: None
) -> None:
    with run_agent(tmp_path / "agent", sshd.identity) as agent:
        assert peer_of(sshd, ready, identity=(), agent=agent).checkCollectIndicator()
        assert not peer_of(sshd, ready, identity=(), agent=False).checkCollectIndicator()
        monkeypatch.setenv("SSH_AUTH_SOCK", agent)
        assert peer_of(sshd, ready, identity=(), agent=None).checkCollectIndicator()


def test_callers_socket_serves_one_session_and_is_closed_with_it(sshd: Sshd, ready: Path, leaves_nothing: None) -> None:
    sock = socket.create_connection((sshd.host, sshd.port))
    with peer_of(sshd, ready, sock=sock) as peer:
        assert peer.checkCollectIndicator()
        peer.writeStageIndicator()
    assert sock.fileno() == -1
    with pytest.raises(ConfigurationError, match="one session"):
        peer.writeStageIndicator()


def test_callers_transport_is_used_and_never_closed(
    sshd: Sshd, ready: Path, target: Path, leaves_nothing: None
) -> None:
    transport = paramiko.Transport((sshd.host, sshd.port))
    try:
        transport.connect(username=sshd.user, pkey=paramiko.Ed25519Key.from_private_key_file(str(sshd.identity)))
        for _ in range(2):
            peer = peer_of(sshd, ready, sock=transport)
            assert peer.checkCollectIndicator()
            assert peer.stagePeer(str(target)) == 1
            assert transport.is_active()
    finally:
        transport.close()
        transport.join(5)


def test_callers_transport_without_login_is_rejected(sshd: Sshd, ready: Path, target: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ConfigurationError, match="not logged in"):
        peer_of(sshd, ready, sock=paramiko.Transport(ours)).stagePeer(str(target))


@pytest.mark.parametrize(
    "options",
    [
        {"port": 0},
        {"port": "22"},
        {"host_key": "yes"},
        {"host_key": b"SHA256:" + b"A" * 43},
        {"host_key": Path("SHA256:key")},
        {"connect_timeout": 0},
        {"connect_timeout": float("inf")},
        {"keepalive_count": -1},
        {"password": b"x"},
        {"jump": ""},
    ],
)
def test_invalid_options_are_value_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SSHOptions"):
        SSHOptions(**options)


def test_callers_transport_is_not_used_in_a_forked_child(sshd: Sshd, ready: Path, target: Path) -> None:
    """The child would reuse the parent's nonces, and has no copy of paramiko's thread."""
    with paramiko.Transport((sshd.host, sshd.port)) as transport:
        transport.connect(username=sshd.user, pkey=paramiko.Ed25519Key(filename=str(sshd.identity)))
        peer = peer_of(sshd, ready, sock=transport)

        def refused() -> None:
            with pytest.raises(ConfigurationError, match="not in this process"):
                peer.stagePeer(str(target))

        run_in_fork(refused)
        with peer:
            assert peer.checkCollectIndicator()
            run_in_fork(refused)
            run_in_fork(lambda: peer.__exit__(None, None, None))
            assert peer.stagePeer(str(target)) == 1


SCRIPT = """
import os, sys
from peerstage import RemotePeer, SSHOptions
port, identity, known_hosts, user, collect, target = sys.argv[1:]
options = SSHOptions(port=int(port), identity=identity, known_hosts=known_hosts, config=(), agent=False)
peer = RemotePeer("127.0.0.1", collect, "/tmp", user, ssh=options, on_progress=lambda progress: print("on", flush=True))
peer.stagePeer(target)
"""


def run_script(sshd: Sshd, collect: Path, target: Path, port: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(port or sshd.port), str(sshd.identity), str(sshd.known_hosts), sshd.user,
         str(collect), str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def test_interrupted_program_leaves_nothing(sshd: Sshd, ready: Path, target: Path) -> None:
    with (ready / "big").open("wb") as file:
        file.truncate(2 << 30)
    with run_script(sshd, ready, target) as program_:
        assert program_.stdout is not None
        assert program_.stdout.readline() == "on\n"
        program_.send_signal(signal.SIGINT)
        _, said = program_.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
    assert list(target.iterdir()) == []


def test_failure_without_logging_prints_only_the_error(sshd: Sshd, ready: Path, target: Path) -> None:
    with run_script(sshd, ready, target, port=1) as program_:
        _, said = program_.communicate(timeout=30)
    lines = said.strip().splitlines()
    assert lines[0].startswith("Traceback")
    assert "ConnectError: 127.0.0.1" in lines[-1]
    assert not [line for line in lines if "paramiko" in line and not line.startswith("  File ")]
