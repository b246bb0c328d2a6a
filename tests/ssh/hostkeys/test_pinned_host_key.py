"""A pinned fingerprint (`SSHOptions(host_key="SHA256:...")`) of a host that has several keys."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerstage import Limits, RemotePeer
from peerstage.errors import MismatchedHostKey
from peerstage.reasons import Reason
from peerstage.ssh.config.resolve import resolve_destination
from peerstage.ssh.keyscan import scan_host_key
from peerstage.watchdog import Watchdog
from support.keys import fingerprint_of, make_key, public_key
from support.recording import count_bytes_after_newkeys, record_connections
from support.sshd import Sshd

KEY_TYPES = ("ed25519", "ecdsa", "rsa")


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    return {key_type: make_key(tmp_path / key_type, key_type=key_type) for key_type in KEY_TYPES}


@pytest.fixture
def server(own_sshd: Callable[..., Sshd], keys: dict[str, Path], collect: Path) -> Sshd:
    """Start a server with a key of each type; the client's order decides which one it presents."""
    (collect / "cback.collect").touch()
    return own_sshd(extra="\n".join(f"HostKey {path}" for path in keys.values()))


def peer_of(server: Sshd, collect: Path, **options: Any) -> RemotePeer:
    return RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=server.options(known_hosts=(), **options))


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_key_of_any_type_may_be_pinned(
    leaves_nothing: None, server: Sshd, keys: dict[str, Path], collect: Path, target: Path, key_type: str
) -> None:
    peer = peer_of(server, collect, host_key=fingerprint_of(keys[key_type]))
    assert peer.stagePeer(str(target)) == 1
    assert peer.last_report is not None
    assert peer.last_report.host_key == fingerprint_of(keys[key_type])


def test_known_hosts_does_not_affect_the_order_of_types(
    server: Sshd, keys: dict[str, Path], collect: Path, target: Path
) -> None:
    known = f"[127.0.0.1]:{server.port} {public_key(keys['ecdsa'])}\n".encode()
    options = server.options(known_hosts=known, host_key=fingerprint_of(keys["rsa"]))
    assert RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=options).stagePeer(str(target)) == 1


def test_authentication_starts_only_after_the_pinned_key_was_presented(
    server: Sshd, keys: dict[str, Path], collect: Path, target: Path
) -> None:
    with record_connections(server.port) as (port, sent):
        peer = peer_of(server, collect, port=port, host_key=fingerprint_of(keys["rsa"]))
        assert peer.stagePeer(str(target)) == 1
        assert [count_bytes_after_newkeys(bytes(one)) for one in sent[:-1]] == [0, 0]
        assert count_bytes_after_newkeys(bytes(sent[-1])) > 100


def test_host_without_the_pinned_key_is_refused_after_presenting_each_of_its_keys(
    leaves_nothing: None, server: Sshd, keys: dict[str, Path], collect: Path, target: Path
) -> None:
    with record_connections(server.port) as (port, sent):
        with pytest.raises(MismatchedHostKey) as caught:
            peer_of(server, collect, port=port, host_key="SHA256:" + "A" * 43).stagePeer(str(target))
        assert caught.value.reason is Reason.HOST_KEY_NOT_PINNED
        assert [count_bytes_after_newkeys(bytes(one)) for one in sent] == [0, 0, 0], "one connection for each type"
    for key_type in KEY_TYPES[1:]:
        assert fingerprint_of(keys[key_type]) in str(caught.value)
    assert "Accepted" not in server.log


def test_excluded_algorithm_is_not_asked_for(
    server: Sshd, keys: dict[str, Path], collect: Path, target: Path, own_home: Path
) -> None:
    (own_home / "config").write_text("HostKeyAlgorithms -ecdsa*,*rsa*\n")
    with record_connections(server.port) as (port, sent):
        options = {"port": port, "config": str(own_home / "config"), "host_key": fingerprint_of(keys["rsa"])}
        with pytest.raises(MismatchedHostKey):
            peer_of(server, collect, **options).stagePeer(str(target))
        assert len(sent) == 1


def test_socket_of_the_caller_serves_for_one_type(
    leaves_nothing: None, server: Sshd, keys: dict[str, Path], collect: Path, target: Path
) -> None:
    with socket.create_connection((server.host, server.port)) as sock:
        peer = peer_of(server, collect, sock=sock, host_key=fingerprint_of(keys["rsa"]))
        with pytest.raises(MismatchedHostKey, match=r"was not asked for .*rsa-sha2-512"):
            peer.stagePeer(str(target))


def test_scan_finds_the_pinned_key(server: Sshd, keys: dict[str, Path]) -> None:
    options = server.options(known_hosts=(), host_key=fingerprint_of(keys["ecdsa"]))
    watchdog = Watchdog(Limits())
    found = scan_host_key(resolve_destination(server.host, "me", options), options, watchdog=watchdog)
    watchdog.close()
    assert found.trusted is not None
    assert found.trusted.fingerprint == fingerprint_of(keys["ecdsa"])
