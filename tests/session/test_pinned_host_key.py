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
from peerstage.session.config import resolve_destination
from peerstage.session.scan import scan
from peerstage.session.watchdog import Watchdog
from support.keys import fingerprint, make_key, public
from support.recording import bytes_after_newkeys, recording_each
from support.sshd import Sshd

KINDS = ("ed25519", "ecdsa", "rsa")


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    return {kind: make_key(tmp_path / kind, kind=kind) for kind in KINDS}


@pytest.fixture
def server(own_sshd: Callable[..., Sshd], keys: dict[str, Path], collect: Path) -> Sshd:
    """A server with a key of each type; which one a client is shown, the client's order decides."""
    (collect / "cback.collect").touch()
    return own_sshd(extra="\n".join(f"HostKey {path}" for path in keys.values()))


def peer_of(server: Sshd, collect: Path, **options: Any) -> RemotePeer:
    return RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=server.options(known_hosts=(), **options))


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_of_any_type_may_be_pinned(
    leaves_nothing: None, server: Sshd, keys: dict[str, Path], collect: Path, target: Path, kind: str
) -> None:
    peer = peer_of(server, collect, host_key=fingerprint(keys[kind]))
    assert peer.stagePeer(str(target)) == 1
    assert peer.last_report is not None
    assert peer.last_report.host_key == fingerprint(keys[kind])


def test_known_hosts_does_not_decide_which_key_is_shown(
    server: Sshd, keys: dict[str, Path], collect: Path, target: Path
) -> None:
    known = f"[127.0.0.1]:{server.port} {public(keys['ecdsa'])}\n".encode()
    options = server.options(known_hosts=known, host_key=fingerprint(keys["rsa"]))
    assert RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=options).stagePeer(str(target)) == 1


def test_no_byte_of_a_login_is_sent_before_the_pinned_key_is_shown(
    server: Sshd, keys: dict[str, Path], collect: Path, target: Path
) -> None:
    with recording_each(server.port) as (port, sent):
        peer = peer_of(server, collect, port=port, host_key=fingerprint(keys["rsa"]))
        assert peer.stagePeer(str(target)) == 1
        assert [bytes_after_newkeys(bytes(one)) for one in sent[:-1]] == [0, 0]
        assert bytes_after_newkeys(bytes(sent[-1])) > 100


def test_a_host_without_the_pinned_key_is_refused_once_it_has_shown_each_of_its_keys(
    leaves_nothing: None, server: Sshd, keys: dict[str, Path], collect: Path, target: Path
) -> None:
    with recording_each(server.port) as (port, sent):
        with pytest.raises(MismatchedHostKey) as caught:
            peer_of(server, collect, port=port, host_key="SHA256:" + "A" * 43).stagePeer(str(target))
        assert caught.value.reason is Reason.HOST_KEY_NOT_PINNED
        assert [bytes_after_newkeys(bytes(one)) for one in sent] == [0, 0, 0], "one connection for each type"
    for kind in KINDS[1:]:
        assert fingerprint(keys[kind]) in str(caught.value)
    assert "Accepted" not in server.log


def test_a_type_that_is_not_to_be_offered_is_not_asked_for(
    server: Sshd, keys: dict[str, Path], collect: Path, target: Path, own_home: Path
) -> None:
    (own_home / "config").write_text("HostKeyAlgorithms -ecdsa*,*rsa*\n")
    with recording_each(server.port) as (port, sent):
        options = {"port": port, "config": str(own_home / "config"), "host_key": fingerprint(keys["rsa"])}
        with pytest.raises(MismatchedHostKey):
            peer_of(server, collect, **options).stagePeer(str(target))
        assert len(sent) == 1


def test_a_connection_that_was_handed_in_serves_for_one_type(
    leaves_nothing: None, server: Sshd, keys: dict[str, Path], collect: Path, target: Path
) -> None:
    with socket.create_connection((server.host, server.port)) as sock:
        peer = peer_of(server, collect, sock=sock, host_key=fingerprint(keys["rsa"]))
        with pytest.raises(MismatchedHostKey, match=r"was not asked for .*rsa-sha2-512"):
            peer.stagePeer(str(target))


def test_a_scan_sees_the_pinned_key_too(server: Sshd, keys: dict[str, Path]) -> None:
    options = server.options(known_hosts=(), host_key=fingerprint(keys["ecdsa"]))
    watchdog = Watchdog(Limits())
    found = scan(resolve_destination(server.host, "me", options), options, limits=Limits(), watchdog=watchdog)
    watchdog.close()
    assert found.verdict is not None
    assert found.verdict.fingerprint == fingerprint(keys["ecdsa"])
