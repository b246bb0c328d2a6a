"""``@cert-authority``: verification of host certificates, with ssh as the oracle."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import RemotePeer
from peerstage.errors import HostKeyError, MismatchedHostKey, RevokedHostKey, UnknownHostKey
from peerstage.reasons import Reason
from peerstage.ssh.data_types import pack_string
from peerstage.ssh.keys.certificates import Certificate
from support.keys import certify, fingerprint_of, make_key, public_key, read_blob
from support.programs import require_program
from support.sshd import Sshd

Start = Callable[..., Sshd]


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return make_key(tmp_path / "authority")


def start_certified(own_sshd: Start, key: Path, certificate: Path) -> Sshd:
    """Start a server that presents *certificate* to clients that ask for one, and else *key*."""
    return own_sshd(extra=f"HostKey {key}\nHostCertificate {certificate}")


def check(server: Sshd, collect: Path, known_hosts: str, **options: Any) -> None:
    """Stage from the server, which verifies its host key."""
    (collect / "cback.collect").touch()
    options = {"known_hosts": known_hosts.encode(), **options}
    peer = RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=server.options(**options))
    target = collect.with_name("target of the check")
    target.mkdir(exist_ok=True)
    assert peer.stagePeer(str(target)) == 1
    assert peer.last_report is not None
    assert (peer.last_report.host_key or "").startswith("SHA256:")


def ssh_accepts(server: Sshd, known_hosts: str) -> bool:
    """Return whether ssh accepts the host key or certificate of the server."""
    file = server.home / "asked"
    file.write_text(known_hosts)
    settings = [f"UserKnownHostsFile={file}", "GlobalKnownHostsFile=none", "StrictHostKeyChecking=yes", "BatchMode=yes"]
    settings += [f"IdentityFile={server.identity}", "IdentitiesOnly=yes", f"Port={server.port}", f"User={server.user}"]
    words = [word for setting in settings for word in ("-o", setting)]
    done = subprocess.run(
        [require_program("ssh"), "-F", "none", *words, server.host, "true"], capture_output=True, timeout=30
    )
    return done.returncode == 0


def cert_authority_line(server: Sshd, authority: Path, name: str | None = None) -> str:
    return f"@cert-authority {name or f'[127.0.0.1]:{server.port}'} {public_key(authority)}\n"


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_certificate_of_a_known_authority_is_trusted(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path, kind: str
) -> None:
    key = make_key(tmp_path / "key", key_type=kind)
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    check(server, collect, cert_authority_line(server, authority))
    assert ssh_accepts(server, cert_authority_line(server, authority))


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_authority_may_have_a_key_of_any_supported_type(
    own_sshd: Start, collect: Path, tmp_path: Path, kind: str
) -> None:
    key, authority = make_key(tmp_path / "key"), make_key(tmp_path / "authority", key_type=kind)
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    check(server, collect, cert_authority_line(server, authority))


@pytest.mark.parametrize("names", ["*", "127.0.0.1", "[127.0.0.1]:*", "127.0.0.*,!127.0.0.2"])
def test_authority_line_may_hold_patterns(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path, names: str
) -> None:
    key = make_key(tmp_path / "key")
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    check(server, collect, cert_authority_line(server, authority, names))
    assert ssh_accepts(server, cert_authority_line(server, authority, names))


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize(
    ("principal", "is_valid"),
    [("127.*", True), ("*", True), ("127.0.0.?", True), ("128.*", False), ("127.0.0.1,x", True)],
)
def test_principal_may_hold_wildcards_as_in_ssh_since_10_3(
    authority: Path, tmp_path: Path, principal: str, is_valid: bool
) -> None:
    certificate = certify(make_key(tmp_path / "key"), authority, principal, host=True)
    assert (Certificate.parse(read_blob(certificate)).validation_error("127.0.0.1", 1e9) is None) is is_valid


@pytest.mark.parametrize(("principal", "is_valid"), [("localhost", True), ("LOCALHOST", False), ("localhost.", False)])
def test_principal_is_compared_with_the_lower_case_name_as_in_ssh(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path, principal: str, is_valid: bool
) -> None:
    key = make_key(tmp_path / "key")
    server = start_certified(own_sshd, key, certify(key, authority, principal, host=True))
    for name in ("localhost", "LocalHost"):
        server.host = name
        known = cert_authority_line(server, authority, "*")
        assert ssh_accepts(server, known) is is_valid
        if is_valid:
            check(server, collect, known)
            continue
        with pytest.raises(MismatchedHostKey, match=f"it is for {principal}"):
            check(server, collect, known)


def test_host_with_a_known_key_is_trusted_although_its_authority_is_revoked(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "key")
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    revoked = f"{cert_authority_line(server, authority)}@revoked * {public_key(authority)}\n"
    check(server, collect, f"{revoked}[127.0.0.1]:{server.port} {public_key(key)}\n")


#: Invalid certificates: arguments of `certify`, principals, words of the error, and whether ssh 9.2 rejects them.
INVALID: dict[str, tuple[dict[str, Any], tuple[str, ...], str, bool]] = {
    "expired": ({"validity": "20200101:20200102"}, ("127.0.0.1",), "expired", True),
    "not valid yet": ({"validity": "20990101:20990102"}, ("127.0.0.1",), "not valid yet", True),
    "for another host": ({}, ("db2.example.com", "db3"), "it is for db2.example.com, db3", True),
    "without principals": ({}, (), "lists no principals", False),
    "with an unknown critical option": (
        {"options": ("critical:eat@example.com=cake",)},
        ("127.0.0.1",),
        "critical options",
        True,
    ),
    "for a user": ({"host": False}, ("127.0.0.1",), "not a host certificate", True),
}


@pytest.mark.parametrize("problem", INVALID)
def test_invalid_certificate_is_refused(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path, problem: str
) -> None:
    how, principals, words, ssh_rejects = INVALID[problem]
    key = make_key(tmp_path / "key")
    certificate = certify(key, authority, *principals, **{"host": True, **how})
    if problem == "for a user":  # sshd refuses to present it
        assert words in (Certificate.parse(read_blob(certificate)).validation_error("127.0.0.1", 1e9) or "")
        return
    server = start_certified(own_sshd, key, certificate)
    known = cert_authority_line(server, authority)
    with pytest.raises(MismatchedHostKey, match=words) as caught:
        check(server, collect, known)
    assert fingerprint_of(key) in str(caught.value)
    assert "known_hosts data:1" in str(caught.value)
    assert "Accepted" not in server.log
    assert ssh_accepts(server, known) is not ssh_rejects
    check(server, collect, f"{known}[127.0.0.1]:{server.port} {public_key(key)}\n")


@pytest.mark.parametrize(("authority_bits", "key_bits"), [(1024, 2048), (2048, 1024)])
def test_rsa_keys_of_fewer_than_2048_bits_are_refused(
    own_sshd: Start, collect: Path, tmp_path: Path, authority_bits: int, key_bits: int
) -> None:
    authority = make_key(tmp_path / "authority", key_type="rsa", bits=authority_bits)
    key = make_key(tmp_path / "key", key_type="rsa", bits=key_bits)
    certificate = certify(key, authority, "127.0.0.1", host=True)
    assert "fewer than 2048 bits" in (
        Certificate.parse(read_blob(certificate)).validation_error("127.0.0.1", 1e9) or ""
    )


@pytest.mark.usefixtures("openssh")
def test_certificate_is_valid_from_its_start_until_just_before_its_end(authority: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    certificate = Certificate.parse(read_blob(certify(key, authority, "db1", host=True, validity="20200101:20200102")))
    start, end = certificate.valid_after, certificate.valid_before
    assert [certificate.validation_error("db1", now) for now in (start, end - 1)] == [None, None]
    assert "not valid yet" in (certificate.validation_error("db1", start - 1) or "")
    assert "expired" in (certificate.validation_error("db1", end) or "")


@pytest.mark.usefixtures("openssh")
def test_signature_with_sha_1_is_refused(tmp_path: Path) -> None:
    authority, key = make_key(tmp_path / "authority", key_type="rsa"), make_key(tmp_path / "key")
    certificate = certify(key, authority, "127.0.0.1", host=True, algorithm="ssh-rsa")
    assert "signs by ssh-rsa" in (Certificate.parse(read_blob(certificate)).validation_error("127.0.0.1", 1e9) or "")


@pytest.mark.usefixtures("openssh")
def test_authority_that_is_itself_a_certificate_is_refused(tmp_path: Path) -> None:
    root, authority = make_key(tmp_path / "root"), make_key(tmp_path / "authority", key_type="rsa")
    good = Certificate.parse(read_blob(certify(make_key(tmp_path / "key"), authority, "db1", host=True)))
    chained = pack_string(read_blob(certify(authority, root, "db1", host=True)))
    signed_data = good.signed_data.removesuffix(pack_string(good.authority)) + chained
    signature = paramiko.PKey.from_path(authority).sign_ssh_data(signed_data, "rsa-sha2-256").asbytes()
    certificate = Certificate.parse(signed_data + pack_string(signature))
    assert "not accepted" in (certificate.validation_error("db1", 1e9) or "")


@pytest.mark.usefixtures("openssh")
def test_certificate_with_more_than_256_principals_is_malformed(authority: Path, tmp_path: Path) -> None:
    good = read_blob(certify(make_key(tmp_path / "key"), authority, "db1", host=True))
    many = good.replace(pack_string(pack_string(b"db1")), pack_string(256 * pack_string(b"db1")))
    assert len(Certificate.parse(many).principals) == 256
    with pytest.raises(ValueError, match="more than 256 principals"):
        Certificate.parse(good.replace(pack_string(pack_string(b"db1")), pack_string(257 * pack_string(b"db1"))))


@pytest.mark.usefixtures("openssh")
def test_every_bit_of_a_certificate_is_signed(tmp_path: Path) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    good = read_blob(certify(key, authority, "127.0.0.1", host=True))
    assert Certificate.parse(good).validation_error("127.0.0.1", 1e9) is None
    for at in range(0, len(good), 7):
        bad = bytearray(good)
        bad[at] ^= 0x10
        try:
            error = Certificate.parse(bytes(bad)).validation_error("127.0.0.1", 1e9)
        except ValueError:
            continue
        assert error is not None or Certificate.parse(bytes(bad)).authority != Certificate.parse(good).authority


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_every_byte_of_a_signature_is_verified(tmp_path: Path, kind: str) -> None:
    authority, key = make_key(tmp_path / "authority", key_type=kind), make_key(tmp_path / "key")
    good = read_blob(certify(key, authority, "127.0.0.1", host=True))
    for at in range(len(Certificate.parse(good).signed_data), len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x10
        try:
            error = Certificate.parse(bytes(bad)).validation_error("127.0.0.1", 1e9)
        except ValueError:
            continue
        assert error is not None, f"byte {at} of {len(good)}"


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("cut", [0, 3, 40, 100, -1])
def test_truncated_or_extended_certificate_is_malformed(tmp_path: Path, cut: int) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    good = read_blob(certify(key, authority, "127.0.0.1", host=True))
    with pytest.raises(ValueError, match=r"ends within|not a supported type"):
        Certificate.parse(good[:cut])
    with pytest.raises(ValueError, match="follow"):
        Certificate.parse(good + b"x")


def test_error_about_an_unknown_authority_names_the_known_ones(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path
) -> None:
    key, other = make_key(tmp_path / "key"), make_key(tmp_path / "other")
    server = start_certified(own_sshd, key, certify(key, other, "127.0.0.1", host=True))
    with pytest.raises(UnknownHostKey, match="not a known authority") as caught:
        check(server, collect, cert_authority_line(server, authority))
    assert caught.value.reason is Reason.HOST_CERTIFICATE_UNKNOWN
    for one in (key, other, authority):
        assert fingerprint_of(one) in str(caught.value)
    assert not ssh_accepts(server, cert_authority_line(server, authority))


@pytest.mark.parametrize("revoked", ["authority", "key"])
def test_revoked_key_or_authority_is_refused_with_a_valid_certificate(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path, revoked: str
) -> None:
    key = make_key(tmp_path / "key")
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    revoked_key = {"authority": authority, "key": key}[revoked]
    known = f"{cert_authority_line(server, authority)}@revoked * {public_key(revoked_key)}\n"
    with pytest.raises(RevokedHostKey, match="known_hosts data:2") as caught:
        check(server, collect, known)
    assert caught.value.location == ("known_hosts data", 2)
    assert fingerprint_of(revoked_key) in str(caught.value)
    assert "Accepted" not in server.log
    assert not ssh_accepts(server, known)


def test_certificate_is_not_asked_for_if_the_plain_key_is_known(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "key")
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    check(server, collect, f"[127.0.0.1]:{server.port} {public_key(key)}\n")
    check(server, collect, "", host_key=fingerprint_of(key))
    with pytest.raises(MismatchedHostKey, match="pinned fingerprint is"):
        check(server, collect, cert_authority_line(server, authority), host_key=fingerprint_of(authority))


def test_changed_key_with_a_certificate_of_an_unknown_authority_is_a_changed_key(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path
) -> None:
    key, other = make_key(tmp_path / "key"), make_key(tmp_path / "other")
    server = start_certified(own_sshd, key, certify(key, other, "127.0.0.1", host=True))
    known = f"{cert_authority_line(server, authority)}[127.0.0.1]:{server.port} {public_key(other)}\n"
    with pytest.raises(HostKeyError, match=r"the known key of \S+ is SHA256:.*known_hosts data:2"):
        check(server, collect, known)
