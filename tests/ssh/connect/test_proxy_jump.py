"""ProxyJump: each jump host has its own configuration, credentials and host key."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerstage import RemotePeer, Retry, SSHOptions
from peerstage.errors import ConfigurationError, ConnectError, ConnectionLost, LoginError, StageError, UnknownHostKey
from peerstage.reasons import Reason
from peerstage.ssh.config.proxy_jump import Hop, parse_jump
from peerstage.ssh.config.resolve import resolve_destination
from support.sshd import KillsSessions, Sshd

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "hops"),
    [
        ("none", ()),
        ("bastion", (Hop("bastion", None, None),)),
        ("me@bastion:2222", (Hop("bastion", "me", 2222),)),
        ("ssh://me@bastion:2222", (Hop("bastion", "me", 2222),)),
        ("[2001:db8::1]:22", (Hop("2001:db8::1", None, 22),)),
        ("a,b@c,d:1", (Hop("a", None, None), Hop("c", "b", None), Hop("d", None, 1))),
        ("me@corp.example@bastion", (Hop("bastion", "me@corp.example", None),)),
        ("first.last@example.com", (Hop("example.com", "first.last", None),)),
    ],
)
def test_proxy_jump_value_is_parsed_as_ssh_does(text: str, hops: tuple[Hop, ...]) -> None:
    assert parse_jump(text) == hops
    assert not hops or parse_jump(",".join(str(hop) for hop in hops)) == hops


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "a,,b", "a b", "a:0", "a:99999", "a:ssh", "-oX=y", "a@", "@a", ",".join("a" * 9)),
        *("$(id)", "`id`", "a;b", "a|b", "a&b", "'a'", "a\\b", "$(id)@a", "-u@a", "a;b@a", "`id`@a", "u\\@a"),
    ],
)
def test_invalid_proxy_jump_is_rejected_before_connecting(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"host|hops"):
        parse_jump(text)
    if text:
        with pytest.raises(ConfigurationError, match="jump"):
            resolve_destination("db1", "backup", SSHOptions(jump=text, config=()))


def known(*servers: Sshd) -> bytes:
    return b"".join(server.known_hosts.read_bytes() for server in servers)


def behind(server: Sshd, *hops: Sshd, collect: Path, **options: Any) -> RemotePeer:
    """Return a peer behind *hops*, all of which accept the same key."""
    for hop in hops:
        (hop.home / "authorized_keys").write_bytes((server.home / "id.pub").read_bytes())
    values = {
        "known_hosts": known(server, *hops),
        "jump": ",".join(f"{h.user}@{h.host}:{h.port}" for h in hops),
        **options,
    }
    return RemotePeer(
        server.host, str(collect), "/tmp", server.user, ssh=server.options(**values), retry=Retry(tries=1)
    )


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_peer_is_staged_through_jump_hosts(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path, count: int, transport: str
) -> None:
    server, *hops = (own_sshd() for _ in range(count + 1))
    data = os.urandom(20 * MIB)
    (collect / "big").write_bytes(data)
    for number in range(500):
        (collect / f"{number}").write_bytes(b"%d" % number)
    peer = behind(server, *hops, collect=collect)
    peer.transport = transport
    with peer:
        assert peer.stagePeer(str(target)) == 501
        peer.writeStageIndicator()
    assert (target / "big").read_bytes() == data
    assert (collect / "cback.stage").exists()
    for hop in hops:
        assert hop.log.count("Accepted publickey") == 1
        assert "Starting session" not in hop.log, "no command runs on a jump host"


def test_jump_host_has_its_own_configuration(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path, own_home: Path
) -> None:
    server, hop = own_sshd(), own_sshd()
    ssh = own_home / ".ssh"
    ssh.mkdir(mode=0o700)
    (ssh / "config").write_text(
        f"Host db1\n HostName 127.0.0.1\n Port {server.port}\n IdentityFile {server.home}/id\n ProxyJump gate\n"
        f"Host gate\n HostName 127.0.0.1\n Port {hop.port}\n User {hop.user}\n IdentityFile {hop.home}/id\n"
    )
    (ssh / "known_hosts").write_bytes(known(server, hop))
    (collect / "a").write_bytes(b"a")
    peer = RemotePeer("db1", str(collect), "/tmp", server.user)
    assert peer.stagePeer(str(target)) == 1
    assert hop.log.count("Accepted publickey") == 1
    (ssh / "config").write_text("Host *\n ProxyJump gate\n" + (ssh / "config").read_text())
    with pytest.raises(ConfigurationError, match="jumps through itself"):
        peer.stagePeer(str(target))
    assert (
        RemotePeer("db1", str(collect), "/tmp", server.user, ssh=SSHOptions(jump="none")).stagePeer(str(target)) == 1
    ), "an option outranks the configuration"


def test_host_key_of_a_jump_host_is_verified(own_sshd: Callable[..., Sshd], collect: Path, target: Path) -> None:
    server, hop = own_sshd(), own_sshd()
    (collect / "a").touch()
    peer = behind(server, hop, collect=collect, known_hosts=known(server))
    with pytest.raises(UnknownHostKey, match="Jump host") as caught:
        peer.stagePeer(str(target))
    assert caught.value.hop == f"{hop.user}@{hop.host}:{hop.port}"
    assert "Accepted" not in hop.log
    peer = behind(server, hop, collect=collect, known_hosts=known(hop))
    with pytest.raises(UnknownHostKey) as caught:
        peer.stagePeer(str(target))
    assert "Jump host" not in str(caught.value)
    assert caught.value.hop == ""
    assert "Accepted" not in server.log


@pytest.mark.parametrize(
    ("extra", "kind", "words", "reason"),
    [
        ("AllowTcpForwarding no", ConnectError, "AllowTcpForwarding", Reason.FORWARDING_REFUSED),
        ("DenyUsers *", LoginError, "Jump host", Reason.LOGIN_REFUSED),
    ],
)
def test_jump_host_that_refuses_is_reported(
    leaves_nothing: None,
    own_sshd: Callable[..., Sshd],
    collect: Path,
    target: Path,
    extra: str,
    kind: type[StageError],
    words: str,
    reason: Reason,
) -> None:
    server, hop = own_sshd(), own_sshd(extra=extra)
    with pytest.raises(kind, match=words) as caught:
        behind(server, hop, collect=collect).stagePeer(str(target))
    assert caught.value.reason is reason


def test_peer_that_is_down_behind_a_jump_host_is_reported(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    server, hop = own_sshd(), own_sshd()
    peer = behind(server, hop, collect=collect)
    server.stop()
    with pytest.raises(ConnectError, match=f"cannot connect to 127.0.0.1 port {server.port}") as caught:
        peer.stagePeer(str(target))
    assert caught.value.reason is Reason.HOP_CANNOT_CONNECT


def test_lost_jump_host_ends_the_run_at_once(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path
) -> None:
    server, hop = own_sshd(), own_sshd()
    with (collect / "big").open("wb") as file:
        file.truncate(200 * MIB)
    peer = behind(server, hop, collect=collect)
    peer.on_progress = kill_once = KillsSessions(hop, after=10 * MIB)
    with pytest.raises(ConnectionLost):
        peer.stagePeer(str(target))
    assert kill_once.killed_at is not None
    assert time.monotonic() - kill_once.killed_at < 3, "at once, on a busy machine"
    assert list(target.iterdir()) == []
