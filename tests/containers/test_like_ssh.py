"""Reaching peers as ssh does, in containers: certificates of hosts and users, two bastions in a row, MaxAuthTries."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerstage.errors import HostKeyError, LoginError, MismatchedHostKey, RevokedHostKey, StageError, UnknownHostKey
from peerstage.testing.contract import landed
from support.containers import Bench, BenchPeer, Files
from support.keys import certify, fingerprint, make_key, public, running_agent
from support.programs import program


@pytest.fixture
def certs(bench: Bench) -> BenchPeer:
    peer = bench.peer("certs")
    peer.container.fill(Files(a=b"a", **{"cback.collect": b""}))
    return peer


@pytest.fixture
def show(bench: Bench) -> Iterator[Callable[..., None]]:
    """Has the peer show another certificate, until the test ends."""
    host, authority = bench.home / "keys" / "host_certs", bench.home / "ca"
    certificate = host.with_name("host_certs-cert.pub")
    before = certificate.read_bytes()
    container = bench.container("certs")

    def reload() -> None:
        certificate.chmod(0o644)
        container.reload()

    def change(*principals: str, **how: Any) -> None:
        certify(host, authority, *principals, host=True, **how)
        reload()

    yield change
    certificate.write_bytes(before)
    reload()


def ssh_gets_in(peer: BenchPeer, *more: str) -> bool:
    """Whether ssh itself does."""
    command = [program("ssh"), *more, *peer.ssh_arguments(), f"{peer.user}@{peer.host}", "true"]
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60).returncode == 0


HOSTS: dict[str, tuple[tuple[str, ...], dict[str, Any], type[HostKeyError] | None]] = {
    "valid": (("127.0.0.1",), {"validity": "-1h:+1h"}, None),
    "for several hosts": (("db1", "127.0.0.1"), {}, None),
    "expired": (("127.0.0.1",), {"validity": "-2h:-1h"}, MismatchedHostKey),
    "not valid yet": (("127.0.0.1",), {"validity": "+1h:+2h"}, MismatchedHostKey),
    "for another host": (("db1.example.com",), {}, MismatchedHostKey),
}


@pytest.mark.kind("certs")
@pytest.mark.parametrize("case", HOSTS)
def test_a_host_s_certificate_holds_or_it_is_refused_as_ssh_refuses_it(
    certs: BenchPeer, show: Callable[..., None], target: Path, case: str
) -> None:
    principals, how, refused = HOSTS[case]
    show(*principals, **how)
    assert ssh_gets_in(certs) is (refused is None)
    remote = certs.remote()
    if refused is None:
        assert remote.stagePeer(str(target)) == 2
        return
    with pytest.raises(refused, match="known_hosts_certs:1"):
        remote.stagePeer(str(target))
    assert landed(target) == {}


@pytest.mark.kind("certs")
@pytest.mark.parametrize("revoked", ["ca", "keys/host_certs"])
def test_a_host_whose_key_or_authority_is_revoked_is_refused(certs: BenchPeer, target: Path, revoked: str) -> None:
    known = certs.known_hosts.read_text() + f"@revoked * {public(certs.bench.home / revoked)}\n"
    with pytest.raises(RevokedHostKey):
        certs.remote(ssh=certs.options(known_hosts=known.encode())).stagePeer(str(target))
    assert landed(target) == {}


USERS: dict[str, tuple[str | None, dict[str, Any], bool]] = {
    "valid": (None, {"validity": "-1h:+1h"}, True),
    "expired": (None, {"validity": "-2h:-1h"}, False),
    "not valid yet": (None, {"validity": "+1h:+2h"}, False),
    "of somebody else": ("root", {}, False),
    "revoked": (None, {}, False),
}


@pytest.mark.kind("certs")
@pytest.mark.parametrize("case", USERS)
@pytest.mark.parametrize("found", ["beside the key", "named"])
def test_a_user_s_certificate_lets_in_or_the_error_names_it(
    certs: BenchPeer, target: Path, tmp_path: Path, case: str, found: str
) -> None:
    principal, how, lets_in = USERS[case]
    for name in ("id", "id.pub"):
        shutil.copy(certs.bench.home / name, tmp_path)
    certificate = certify(tmp_path / "id", certs.bench.home / "ca", principal or certs.user, **how)
    if case == "revoked":
        revoked = certificate.read_text()
        certs.container.execute("sh", "-c", "cat >/etc/ssh/revoked", stdin=revoked.encode())
    named: dict[str, Any] = {"certificate": None}
    if found == "named":
        named = {"certificate": str(certificate.rename(tmp_path / "elsewhere.pub"))}
    try:
        remote = certs.remote(ssh=certs.options(identity=str(tmp_path / "id"), **named))
        if lets_in:
            assert remote.stagePeer(str(target)) == 2
            return
        with pytest.raises(LoginError) as caught:
            remote.stagePeer(str(target))
    finally:
        certs.container.execute("truncate", "-s", "0", "/etc/ssh/revoked")
    assert ("elsewhere.pub" if found == "named" else "id-cert.pub") in str(caught.value)
    assert f"ssh-ed25519-cert-v01@openssh.com {fingerprint(tmp_path / 'id')}" in str(caught.value)
    assert landed(target) == {}


@pytest.mark.kind("limited")
def test_an_agent_of_ten_keys_uses_up_three_tries_as_for_ssh(bench: Bench, target: Path, tmp_path: Path) -> None:
    peer = bench.peer("limited")
    peer.container.fill(Files(a=b"a"))
    keys = [make_key(tmp_path / f"key{number}") for number in range(10)]
    config = tmp_path / "config"
    with running_agent(tmp_path / "agent", *keys) as agent:
        for only, gets_in in (("no", False), ("yes", True)):
            config.write_text(
                f"IdentityFile {peer.identity}\nIdentitiesOnly {only}\nIdentityAgent {agent}\n"
                f"UserKnownHostsFile {peer.known_hosts}\nPort {peer.port}\nBatchMode yes\n"
            )
            asked = [program("ssh"), "-F", str(config), f"{peer.user}@{peer.host}", "true"]
            assert (subprocess.run(asked, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0) is gets_in
            remote = peer.remote(ssh=peer.options(identity=None, agent=None, config=str(config)))
            if gets_in:
                assert remote.stagePeer(str(target)) == 1
            else:
                with pytest.raises(LoginError, match=r"MaxAuthTries is used up.*IdentitiesOnly") as caught:
                    remote.stagePeer(str(target))
                assert f"{fingerprint(keys[0])}): refused" in str(caught.value)


@pytest.mark.kind("far")
@pytest.mark.parametrize("unknown", ["bastion", "gate", "far"])
def test_each_of_two_bastions_and_the_peer_is_refused_by_its_own_host_key(
    bench: Bench, target: Path, unknown: str
) -> None:
    peer = bench.peer("far")
    peer.container.fill(Files(a=b"a"))
    places = dict(zip((*(service for service, _, _ in peer.hops), "far"), range(3), strict=True))
    lines = peer.known_hosts.read_text().splitlines(keepends=True)
    kept = [line for line in lines if public(bench.home / "keys" / f"host_{unknown}") not in line]
    assert len(kept) == 2
    with pytest.raises(StageError) as caught:
        peer.remote(ssh=peer.options(known_hosts="".join(kept).encode())).stagePeer(str(target))
    assert isinstance(caught.value, UnknownHostKey)
    assert ("Jump host" in str(caught.value)) is (places[unknown] < 2)
    assert ssh_gets_in(peer)
