"""peerstage decides as ssh does: host and user certificates, two jump hosts in a row, MaxAuthTries."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerstage.errors import HostKeyError, LoginError, MismatchedHostKey, RevokedHostKey, StageError, UnknownHostKey
from peerstage.testing.contract import files_in
from support.containers import Bench, BenchPeer, FileTree
from support.keys import certify, fingerprint_of, make_key, public_key, run_agent
from support.programs import require_program


@pytest.fixture
def certs(bench: Bench) -> BenchPeer:
    peer = bench.peer("certs")
    peer.container.fill(FileTree(a=b"a", **{"cback.collect": b""}))
    return peer


@pytest.fixture
def present_certificate(bench: Bench) -> Iterator[Callable[..., None]]:
    """Have the peer present another host certificate until the test ends."""
    host, authority = bench.home / "keys" / "host_certs", bench.home / "ca"
    certificate = host.with_name("host_certs-cert.pub")
    original = certificate.read_bytes()
    container = bench.container("certs")

    def reload() -> None:
        certificate.chmod(0o644)
        container.reload()

    def present(*principals: str, **options: Any) -> None:
        certify(host, authority, *principals, host=True, **options)
        reload()

    yield present
    certificate.write_bytes(original)
    reload()


def ssh_logs_in(peer: BenchPeer, *options: str) -> bool:
    """Return whether OpenSSH's ssh logs in."""
    command = [require_program("ssh"), *options, *peer.ssh_arguments(), f"{peer.user}@{peer.host}", "true"]
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60).returncode == 0


HOST_CERTIFICATES: dict[str, tuple[tuple[str, ...], dict[str, Any], type[HostKeyError] | None]] = {
    "valid": (("127.0.0.1",), {"validity": "-1h:+1h"}, None),
    "for several hosts": (("db1", "127.0.0.1"), {}, None),
    "expired": (("127.0.0.1",), {"validity": "-2h:-1h"}, MismatchedHostKey),
    "not valid yet": (("127.0.0.1",), {"validity": "+1h:+2h"}, MismatchedHostKey),
    "for another host": (("db1.example.com",), {}, MismatchedHostKey),
}


@pytest.mark.kind("certs")
@pytest.mark.parametrize("case", HOST_CERTIFICATES)
def test_a_host_certificate_is_accepted_or_rejected_as_by_ssh(
    certs: BenchPeer, present_certificate: Callable[..., None], target: Path, case: str
) -> None:
    principals, options, error = HOST_CERTIFICATES[case]
    present_certificate(*principals, **options)
    assert ssh_logs_in(certs) is (error is None)
    remote = certs.remote()
    if error is None:
        assert remote.stagePeer(str(target)) == 2
        return
    with pytest.raises(error, match="known_hosts_certs:1"):
        remote.stagePeer(str(target))
    assert files_in(target) == {}


@pytest.mark.kind("certs")
@pytest.mark.parametrize("revoked", ["ca", "keys/host_certs"])
def test_a_revoked_host_key_or_authority_is_rejected(certs: BenchPeer, target: Path, revoked: str) -> None:
    known = certs.known_hosts.read_text() + f"@revoked * {public_key(certs.bench.home / revoked)}\n"
    with pytest.raises(RevokedHostKey):
        certs.remote(ssh=certs.options(known_hosts=known.encode())).stagePeer(str(target))
    assert files_in(target) == {}


USER_CERTIFICATES: dict[str, tuple[str | None, dict[str, Any], bool]] = {
    "valid": (None, {"validity": "-1h:+1h"}, True),
    "expired": (None, {"validity": "-2h:-1h"}, False),
    "not valid yet": (None, {"validity": "+1h:+2h"}, False),
    "for another user": ("root", {}, False),
    "revoked": (None, {}, False),
}


@pytest.mark.kind("certs")
@pytest.mark.parametrize("case", USER_CERTIFICATES)
@pytest.mark.parametrize("source", ["beside the key", "option"])
def test_a_user_certificate_logs_in_or_the_error_names_it(
    certs: BenchPeer, target: Path, tmp_path: Path, case: str, source: str
) -> None:
    principal, options, is_accepted = USER_CERTIFICATES[case]
    for name in ("id", "id.pub"):
        shutil.copy(certs.bench.home / name, tmp_path)
    certificate = certify(tmp_path / "id", certs.bench.home / "ca", principal or certs.user, **options)
    if case == "revoked":
        revoked = certificate.read_text()
        certs.container.execute("sh", "-c", "cat >/etc/ssh/revoked", stdin=revoked.encode())
    certificate_option: dict[str, Any] = {"certificate": None}
    if source == "option":
        certificate_option = {"certificate": str(certificate.rename(tmp_path / "elsewhere.pub"))}
    try:
        remote = certs.remote(ssh=certs.options(identity=str(tmp_path / "id"), **certificate_option))
        if is_accepted:
            assert remote.stagePeer(str(target)) == 2
            return
        with pytest.raises(LoginError) as caught:
            remote.stagePeer(str(target))
    finally:
        certs.container.execute("truncate", "-s", "0", "/etc/ssh/revoked")
    assert ("elsewhere.pub" if source == "option" else "id-cert.pub") in str(caught.value)
    assert f"ssh-ed25519-cert-v01@openssh.com {fingerprint_of(tmp_path / 'id')}" in str(caught.value)
    assert files_in(target) == {}


@pytest.mark.kind("limited")
def test_an_agent_with_ten_keys_exceeds_maxauthtries_as_with_ssh(bench: Bench, target: Path, tmp_path: Path) -> None:
    peer = bench.peer("limited")
    peer.container.fill(FileTree(a=b"a"))
    keys = [make_key(tmp_path / f"key{number}") for number in range(10)]
    config = tmp_path / "config"
    with run_agent(tmp_path / "agent", *keys) as agent:
        for identities_only, is_accepted in (("no", False), ("yes", True)):
            config.write_text(
                f"IdentityFile {peer.identity}\nIdentitiesOnly {identities_only}\nIdentityAgent {agent}\n"
                f"UserKnownHostsFile {peer.known_hosts}\nPort {peer.port}\nBatchMode yes\n"
            )
            command = [require_program("ssh"), "-F", str(config), f"{peer.user}@{peer.host}", "true"]
            assert (
                subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
            ) is is_accepted
            remote = peer.remote(ssh=peer.options(identity=None, agent=None, config=str(config)))
            if is_accepted:
                assert remote.stagePeer(str(target)) == 1
            else:
                with pytest.raises(LoginError, match=r"MaxAuthTries is used up.*IdentitiesOnly") as caught:
                    remote.stagePeer(str(target))
                assert f"{fingerprint_of(keys[0])}): refused" in str(caught.value)


@pytest.mark.kind("far")
@pytest.mark.parametrize("unknown", ["bastion", "gate", "far"])
def test_an_unknown_key_of_a_jump_host_or_the_peer_is_rejected(bench: Bench, target: Path, unknown: str) -> None:
    peer = bench.peer("far")
    peer.container.fill(FileTree(a=b"a"))
    jump_hosts = [service for service, _, _ in peer.hops]
    lines = peer.known_hosts.read_text().splitlines(keepends=True)
    kept = [line for line in lines if public_key(bench.home / "keys" / f"host_{unknown}") not in line]
    assert len(kept) == 2
    with pytest.raises(StageError) as caught:
        peer.remote(ssh=peer.options(known_hosts="".join(kept).encode())).stagePeer(str(target))
    assert isinstance(caught.value, UnknownHostKey)
    assert ("Jump host" in str(caught.value)) is (unknown in jump_hosts)
    assert ssh_logs_in(peer)
