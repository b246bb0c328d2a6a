"""Settings reach a child by value; an option that cannot be sent is rejected by its name."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import Limits, RemotePeer, Retry, SSHOptions
from peerstage.errors import ConfigurationError
from peerstage.isolation.protocol.jobs import decode_transport_options, encode_settings
from peerstage.transport.factory import TransportOptions
from support.children import isolated_children


def through_json(options: TransportOptions, limits: Limits | None = None, retry: Retry | None = None) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(encode_settings(options, limits or Limits(), retry or Retry())))
    return settings


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"port": 2222, "identity": "/keys/a", "known_hosts": ("/k", b"data\xff"), "config": (), "agent": False},
        {"identity": ("/a", "~/b"), "passphrase": "p\u2603", "password": "\xff", "pkey": b"\0\xffkey"},
        {"config": "/c", "host_key": "SHA256:x", "jump": "a,b", "connect_timeout": 1.5, "keepalive_interval": 0},
        {"keepalive_count": 0, "agent": "/agent.sock", "known_hosts": b""},
    ],
)
def test_options_arrive_unchanged(options: dict[str, Any]) -> None:
    options = TransportOptions(
        name="db1", user="backup", ssh=SSHOptions(**options), transport="scp", guarded=True, working_directory="/\udcff"
    )
    assert decode_transport_options(through_json(options)) == options


def test_limits_and_retries_arrive_unchanged() -> None:
    limits, retry = Limits(deadline=7.5, entries=3), Retry(tries=2, delay=0.1, jitter=0.5)
    settings = through_json(TransportOptions(name="a", user="b", ssh=SSHOptions()), limits, retry)
    assert Limits(**settings["limits"]) == limits
    assert Retry(**settings["retry"]) == retry


def test_a_relative_path_is_sent_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ssh = SSHOptions(identity=Path("keys/a"), known_hosts=("k", b"k"), config="~/c")
    sent = decode_transport_options(through_json(TransportOptions(name="a", user="b", ssh=ssh))).ssh
    assert sent.identity == str(tmp_path / "keys/a")
    assert sent.known_hosts == (str(tmp_path / "k"), b"k")
    assert sent.config == "~/c", "the child expands it to the home directory of its own user"


def test_a_relative_path_is_rejected_if_the_current_directory_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    peer = RemotePeer("db1", "/collect", "/tmp", "backup", ssh=SSHOptions(identity="keys/a"), isolated=True)
    with pytest.raises(ConfigurationError, match=r"db1: The option identity is the relative path 'keys/a'"):
        peer.stagePeer(str(target))


@pytest.mark.parametrize("option", ["pkey", "sock"])
def test_an_object_of_this_process_is_rejected(option: str, target: Path, leaves_nothing: None) -> None:
    key = paramiko.ECDSAKey.generate()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ssh = SSHOptions(**{option: key if option == "pkey" else ours})  # type: ignore[arg-type]
        peer = RemotePeer("db1", "/collect", "/tmp", "backup", ssh=ssh, isolated=True)
        with pytest.raises(ConfigurationError, match=rf"db1: SSHOptions\({option}=") as caught:
            peer.stagePeer(str(target))
        assert not peer.checkCollectIndicator()
    assert "PRIVATE" not in str(caught.value)


def test_secrets_are_neither_in_the_arguments_nor_in_the_environment(peer: RemotePeer, collect: Path) -> None:
    key = io.StringIO()
    paramiko.ECDSAKey.generate().write_private_key(key)
    (collect / "cback.collect").touch()
    identity = str(peer.ssh.identity)
    peer.ssh = SSHOptions(
        port=peer.ssh.port,
        pkey=Path(identity).read_bytes(),
        known_hosts=peer.ssh.known_hosts,
        config=(),
        password="hush-password",
        passphrase="hush-passphrase",
    )
    peer.isolated = True
    with peer:
        assert peer.checkCollectIndicator()
        (pid,) = isolated_children()
        seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    assert b"bootstrap.py" in seen
    assert not any(word in seen for word in (b"hush", b"PRIVATE", b"b3BlbnNzaC1rZXk"))
