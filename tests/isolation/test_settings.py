"""What goes down to a child: all that it has to know, by value; what can not be sent is refused by its name."""

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
from peerstage.isolation.messages import route_of, settings
from peerstage.transport.choose import Route
from support.children import children_apart


def through_json(route: Route, limits: Limits | None = None, retry: Retry | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(settings(route, limits or Limits(), retry or Retry())))
    return found


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
def test_options_arrive_as_they_are(options: dict[str, Any]) -> None:
    route = Route(
        name="db1", user="backup", ssh=SSHOptions(**options), transport="scp", guarded=True, working_directory="/\udcff"
    )
    assert route_of(through_json(route)) == route


def test_limits_and_retries_arrive_as_they_are() -> None:
    limits, retry = Limits(deadline=7.5, entries=3), Retry(tries=2, delay=0.1)
    said = through_json(Route(name="a", user="b", ssh=SSHOptions()), limits, retry)
    assert Limits(**said["limits"]) == limits
    assert Retry(**said["retry"]) == retry


def test_a_path_means_the_same_wherever_the_child_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ssh = SSHOptions(identity=Path("keys/a"), known_hosts=("k", b"k"), config="~/c")
    found = route_of(through_json(Route(name="a", user="b", ssh=ssh))).ssh
    assert found.identity == str(tmp_path / "keys/a")
    assert found.known_hosts == (str(tmp_path / "k"), b"k")
    assert found.config == "~/c", "whose home that is, is the child's matter"


def test_a_relative_path_where_the_current_directory_is_gone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    peer = RemotePeer("db1", "/collect", "/tmp", "backup", ssh=SSHOptions(identity="keys/a"), isolated=True)
    with pytest.raises(ConfigurationError, match=r"db1: The option identity is the relative path 'keys/a'"):
        peer.stagePeer(str(target))


@pytest.mark.parametrize("option", ["pkey", "sock"])
def test_what_lives_in_this_process_is_refused_by_name(option: str, target: Path, leaves_nothing: None) -> None:
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
        (pid,) = children_apart()
        seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    assert b"start.py" in seen
    assert not any(word in seen for word in (b"hush", b"PRIVATE", b"b3BlbnNzaC1rZXk"))
