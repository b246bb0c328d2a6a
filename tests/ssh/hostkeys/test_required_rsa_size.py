"""RequiredRSASize: smaller host keys are refused, and smaller user keys not offered, as in ssh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import RemotePeer
from peerstage.cli.diagnosis import Diagnosis
from peerstage.cli.remedies import find_remedy
from peerstage.errors import LoginError, MismatchedHostKey, StageError
from peerstage.records import Limits
from peerstage.watchdog import Watchdog
from support.keys import certify, fingerprint_of, make_key, public_key
from support.recording import count_bytes_after_newkeys, record_connection
from support.sshd import Sshd


def stage(server: Sshd, config: Path, setting: str, tmp_path: Path, **options: object) -> StageError | None:
    config.write_text(setting + "\n")
    collect, target = tmp_path / "collect", tmp_path / "target"
    for path in (collect, target):
        path.mkdir(exist_ok=True)
    (collect / "file").touch()
    ssh = server.options(config=str(config), **options)
    try:
        RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=ssh).stagePeer(str(target))
    except StageError as exc:
        return exc
    return None


@pytest.mark.parametrize("trust", ["known", "pinned", "certified"])
def test_nothing_is_sent_after_a_host_key_that_is_too_small(
    own_sshd: Callable[..., Sshd], own_home: Path, tmp_path: Path, trust: str
) -> None:
    key = make_key(tmp_path / "rsa", key_type="rsa", bits=2048)
    extra, known = f"HostKey {key}\nHostKeyAlgorithms rsa-sha2-512", f"* {public_key(key)}\n".encode()
    if trust == "certified":
        authority = make_key(tmp_path / "authority")
        extra += f"-cert-v01@openssh.com\nHostCertificate {certify(key, authority, '127.0.0.1', host=True)}"
        known = f"@cert-authority * {public_key(authority)}\n".encode()
    server = own_sshd(extra=extra)
    assert stage(server, own_home / "c", "RequiredRSASize 2048", tmp_path, known_hosts=known) is None
    with record_connection(server.port) as (port, sent):
        more = {"host_key": fingerprint_of(key)} if trust == "pinned" else {}
        error = stage(server, own_home / "c", "RequiredRSASize 3072", tmp_path, port=port, known_hosts=known, **more)
    assert isinstance(error, MismatchedHostKey)
    assert "of 2048 bits, and RequiredRSASize is 3072" in str(error)
    assert count_bytes_after_newkeys(bytes(sent)) == 0
    diagnosis = Diagnosis(server.host, server.user, server.options(known_hosts=known), Watchdog(Limits()))
    assert find_remedy(error, diagnosis).cause == "the RSA key of the peer is too small (RequiredRSASize)"


@pytest.mark.parametrize("certified", [False, True], ids=["key", "certificate"])
def test_user_key_that_is_too_small_is_not_offered(
    own_sshd: Callable[..., Sshd], own_home: Path, tmp_path: Path, certified: bool
) -> None:
    key, authority = make_key(tmp_path / "rsa", key_type="rsa", bits=2048), make_key(tmp_path / "authority")
    server = own_sshd()
    (server.home / "authorized_keys").write_text(
        f"cert-authority {public_key(authority)}\n" if certified else public_key(key) + "\n"
    )
    options = {"identity": str(key)}
    if certified:
        options["certificate"] = str(certify(key, authority, server.user))
    assert stage(server, own_home / "c", "RequiredRSASize 2048", tmp_path, **options) is None
    error = stage(server, own_home / "c", "RequiredRSASize 2049", tmp_path, **options)
    assert isinstance(error, LoginError)
    assert "it has 2048 bits, and RequiredRSASize is 2049" in str(error)
    assert "refused;" not in str(error)
