"""``@cert-authority``: what a certificate of a host has to be, with OpenSSH's client as the oracle."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerstage import RemotePeer
from peerstage.errors import HostKeyError, MismatchedHostKey, RevokedHostKey, UnknownHostKey
from peerstage.reasons import Reason
from peerstage.session.certificates import Certificate
from support.keys import blob, certify, fingerprint, make_key, public
from support.programs import program
from support.sshd import Sshd

Start = Callable[..., Sshd]


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return make_key(tmp_path / "authority")


def start_certified(own_sshd: Start, key: Path, certificate: Path) -> Sshd:
    """A server that shows *certificate* to whoever takes one; *key* comes before its other host key."""
    return own_sshd(extra=f"HostKey {key}\nHostCertificate {certificate}")


def check(server: Sshd, collect: Path, known_hosts: str, **options: Any) -> None:
    """Reach the server; raise what comes of it."""
    (collect / "cback.collect").touch()
    options = {"known_hosts": known_hosts.encode(), **options}
    peer = RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=server.options(**options))
    target = collect.with_name("target of the check")
    target.mkdir(exist_ok=True)
    assert peer.stagePeer(str(target)) == 1
    assert peer.last_report is not None
    assert (peer.last_report.host_key or "").startswith("SHA256:")


def ssh_says(server: Sshd, known_hosts: str) -> bool:
    """Whether ssh itself takes what the server shows."""
    file = server.home / "asked"
    file.write_text(known_hosts)
    settings = [f"UserKnownHostsFile={file}", "GlobalKnownHostsFile=none", "StrictHostKeyChecking=yes", "BatchMode=yes"]
    settings += [f"IdentityFile={server.identity}", "IdentitiesOnly=yes", f"Port={server.port}", f"User={server.user}"]
    words = [word for setting in settings for word in ("-o", setting)]
    done = subprocess.run([program("ssh"), "-F", "none", *words, server.host, "true"], capture_output=True, timeout=30)
    return done.returncode == 0


def trusting(server: Sshd, authority: Path, name: str | None = None) -> str:
    return f"@cert-authority {name or f'[127.0.0.1]:{server.port}'} {public(authority)}\n"


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_certificate_of_a_known_authority_is_trusted_whatever_its_type(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path, kind: str
) -> None:
    key = make_key(tmp_path / "key", kind=kind)
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    check(server, collect, trusting(server, authority))
    assert ssh_says(server, trusting(server, authority))


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_an_authority_may_have_a_key_of_any_type_that_is_strong_enough(
    own_sshd: Start, collect: Path, tmp_path: Path, kind: str
) -> None:
    key, authority = make_key(tmp_path / "key"), make_key(tmp_path / "authority", kind=kind)
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    check(server, collect, trusting(server, authority))


@pytest.mark.parametrize("place", ["*", "127.0.0.1", "[127.0.0.1]:*", "127.0.0.*,!127.0.0.2"])
def test_an_authority_is_known_for_hosts_by_the_same_patterns_as_keys(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path, place: str
) -> None:
    key = make_key(tmp_path / "key")
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    check(server, collect, trusting(server, authority, place))
    assert ssh_says(server, trusting(server, authority, place))


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize(
    ("principal", "holds"), [("127.*", True), ("*", True), ("127.0.0.?", True), ("128.*", False), ("127.0.0.1,x", True)]
)
def test_a_principal_may_hold_wildcards_as_for_ssh_from_10_3_on(
    authority: Path, tmp_path: Path, principal: str, holds: bool
) -> None:
    certificate = certify(make_key(tmp_path / "key"), authority, principal, host=True)
    assert (Certificate.parse(blob(certificate)).why_not("127.0.0.1", 1e9) is None) is holds


@pytest.mark.parametrize(("principal", "holds"), [("localhost", True), ("LOCALHOST", False), ("localhost.", False)])
def test_a_principal_is_held_against_the_name_in_lower_case_as_by_ssh(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path, principal: str, holds: bool
) -> None:
    key = make_key(tmp_path / "key")
    server = start_certified(own_sshd, key, certify(key, authority, principal, host=True))
    for name in ("localhost", "LocalHost"):
        server.host = name
        known = trusting(server, authority, "*")
        assert ssh_says(server, known) is holds
        if holds:
            check(server, collect, known)
            continue
        with pytest.raises(MismatchedHostKey, match=f"it is for {principal}"):
            check(server, collect, known)


def test_a_host_that_is_known_by_itself_is_reached_although_its_authority_is_revoked(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "key")
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    revoked = f"{trusting(server, authority)}@revoked * {public(authority)}\n"
    check(server, collect, f"{revoked}[127.0.0.1]:{server.port} {public(key)}\n")


#: What a certificate may have wrong: what it is made with, what the error says of it, and whether ssh 9.2 minds.
WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...], str, bool]] = {
    "expired": ({"validity": "20200101:20200102"}, ("127.0.0.1",), "expired", True),
    "not valid yet": ({"validity": "20990101:20990102"}, ("127.0.0.1",), "not valid yet", True),
    "for another host": ({}, ("db2.example.com", "db3"), "it is for db2.example.com, db3", True),
    "for nobody": ({}, (), "names no principals", False),
    "with an option that nobody knows": (
        {"options": ("critical:eat@example.com=cake",)},
        ("127.0.0.1",),
        "critical options",
        True,
    ),
    "of a user": ({"host": False}, ("127.0.0.1",), "not a host's", True),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_certificate_that_does_not_hold_is_refused(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path, wrong: str
) -> None:
    how, principals, words, ssh_minds = WRONG[wrong]
    key = make_key(tmp_path / "key")
    certificate = certify(key, authority, *principals, **{"host": True, **how})
    if wrong == "of a user":  # sshd itself refuses to show it: hold the rule itself against it
        assert words in (Certificate.parse(blob(certificate)).why_not("127.0.0.1", 1e9) or "")
        return
    server = start_certified(own_sshd, key, certificate)
    known = trusting(server, authority)
    with pytest.raises(MismatchedHostKey, match=words) as caught:
        check(server, collect, known)
    assert fingerprint(key) in str(caught.value)
    assert "known_hosts data:1" in str(caught.value)
    assert "Accepted" not in server.log
    assert ssh_says(server, known) is not ssh_minds
    check(server, collect, f"{known}[127.0.0.1]:{server.port} {public(key)}\n")


@pytest.mark.parametrize(("authority_bits", "key_bits"), [(1024, 2048), (2048, 1024)])
def test_rsa_keys_of_fewer_than_2048_bits_are_refused(
    own_sshd: Start, collect: Path, tmp_path: Path, authority_bits: int, key_bits: int
) -> None:
    authority = make_key(tmp_path / "authority", kind="rsa", bits=authority_bits)
    key = make_key(tmp_path / "key", kind="rsa", bits=key_bits)
    certificate = certify(key, authority, "127.0.0.1", host=True)
    assert "fewer than 2048 bits" in (Certificate.parse(blob(certificate)).why_not("127.0.0.1", 1e9) or "")


@pytest.mark.usefixtures("openssh")
def test_an_authority_that_signs_by_sha_1_is_refused(tmp_path: Path) -> None:
    authority, key = make_key(tmp_path / "authority", kind="rsa"), make_key(tmp_path / "key")
    certificate = certify(key, authority, "127.0.0.1", host=True, algorithm="ssh-rsa")
    assert "signs by ssh-rsa" in (Certificate.parse(blob(certificate)).why_not("127.0.0.1", 1e9) or "")


@pytest.mark.usefixtures("openssh")
def test_every_bit_of_a_certificate_is_signed(tmp_path: Path) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    good = blob(certify(key, authority, "127.0.0.1", host=True))
    assert Certificate.parse(good).why_not("127.0.0.1", 1e9) is None
    for at in range(0, len(good), 7):
        bad = bytearray(good)
        bad[at] ^= 0x10
        try:
            why = Certificate.parse(bytes(bad)).why_not("127.0.0.1", 1e9)
        except ValueError:
            continue
        assert why is not None or Certificate.parse(bytes(bad)).authority != Certificate.parse(good).authority


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_every_byte_of_a_signature_counts(tmp_path: Path, kind: str) -> None:
    authority, key = make_key(tmp_path / "authority", kind=kind), make_key(tmp_path / "key")
    good = blob(certify(key, authority, "127.0.0.1", host=True))
    for at in range(len(Certificate.parse(good).signed), len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x10
        try:
            why = Certificate.parse(bytes(bad)).why_not("127.0.0.1", 1e9)
        except ValueError:
            continue
        assert why is not None, f"byte {at} of {len(good)}"


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("cut", [0, 3, 40, 100, -1])
def test_a_certificate_that_is_cut_off_is_none(tmp_path: Path, cut: int) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    good = blob(certify(key, authority, "127.0.0.1", host=True))
    with pytest.raises(ValueError, match=r"cut off|no type"):
        Certificate.parse(good[:cut])
    with pytest.raises(ValueError, match="follows"):
        Certificate.parse(good + b"x")


def test_an_authority_nobody_knows_is_unknown_and_what_is_known_is_named(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path
) -> None:
    key, other = make_key(tmp_path / "key"), make_key(tmp_path / "other")
    server = start_certified(own_sshd, key, certify(key, other, "127.0.0.1", host=True))
    with pytest.raises(UnknownHostKey, match="no authority for it here") as caught:
        check(server, collect, trusting(server, authority))
    assert caught.value.reason is Reason.HOST_CERTIFICATE_UNKNOWN
    for one in (key, other, authority):
        assert fingerprint(one) in str(caught.value)
    assert not ssh_says(server, trusting(server, authority))


@pytest.mark.parametrize("revoked", ["authority", "key"])
def test_what_is_revoked_is_refused_though_the_certificate_holds(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path, revoked: str
) -> None:
    key = make_key(tmp_path / "key")
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    stolen = {"authority": authority, "key": key}[revoked]
    known = f"{trusting(server, authority)}@revoked * {public(stolen)}\n"
    with pytest.raises(RevokedHostKey, match="known_hosts data:2") as caught:
        check(server, collect, known)
    assert caught.value.location == ("known_hosts data", 2)
    assert fingerprint(stolen) in str(caught.value)
    assert "Accepted" not in server.log
    assert not ssh_says(server, known)


def test_a_host_whose_key_is_known_by_itself_is_not_asked_for_a_certificate(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "key")
    server = start_certified(own_sshd, key, certify(key, authority, "127.0.0.1", host=True))
    check(server, collect, f"[127.0.0.1]:{server.port} {public(key)}\n")
    check(server, collect, "", host_key=fingerprint(key))
    with pytest.raises(MismatchedHostKey, match="must have"):
        check(server, collect, trusting(server, authority), host_key=fingerprint(authority))


def test_a_changed_key_behind_a_certificate_of_nobody_is_a_changed_key(
    own_sshd: Start, collect: Path, authority: Path, tmp_path: Path
) -> None:
    key, other = make_key(tmp_path / "key"), make_key(tmp_path / "other")
    server = start_certified(own_sshd, key, certify(key, other, "127.0.0.1", host=True))
    known = f"{trusting(server, authority)}[127.0.0.1]:{server.port} {public(other)}\n"
    with pytest.raises(HostKeyError, match=r"known by SHA256:.*known_hosts data:2"):
        check(server, collect, known)
