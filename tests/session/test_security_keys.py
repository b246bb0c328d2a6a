"""FIDO keys of users, hosts and authorities: OpenSSH verifies what the token of software signs, and is the oracle."""

from __future__ import annotations

import base64
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from paramiko.message import Message

from peerstage.errors import ChangedHostKey, HostKeyError, LoginError, MismatchedHostKey, UnknownHostKey
from peerstage.session.certificates import Certificate
from peerstage.session.security_keys import SecurityKey
from support.agents import SoftwareToken, string, token_agent
from support.keys import blob, certify, fingerprint, make_key, public, running_agent
from support.logins import certified_server, configure, log_in, offered_to, run_ssh, ssh_offers
from support.programs import program
from support.sshd import Sshd

Start = Callable[..., Sshd]
KINDS = pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])


def line_of(token: SoftwareToken) -> str:
    """Return type and key as authorized_keys and known_hosts hold them."""
    return f"{token.kind.decode()} {base64.b64encode(token.blob).decode()}"


def write_public(path: Path, token: SoftwareToken) -> Path:
    """Write a token's public key beside the private one that there is not; return that one's path."""
    Path(f"{path}.pub").write_text(line_of(token) + "\n")
    return path


def certify_by(agent: str, token: SoftwareToken, key: Path, *principals: str, host: bool = False) -> Path:
    """Have ssh-keygen certify the public key beside *key* by a token that an agent has."""
    authority = write_public(key.with_name("authority"), token)
    command = [program("ssh-keygen"), "-q", "-U", "-s", f"{authority}.pub", "-I", "it", "-n", ",".join(principals)]
    environment = {**os.environ, "SSH_AUTH_SOCK": agent}
    subprocess.run([*command, *(["-h"] if host else []), f"{key}.pub"], check=True, env=environment)
    return key.with_name(f"{key.name}-cert.pub")


def both_log_in(ssh: Path, server: Sshd, target: Path) -> bool:
    """Return whether ssh and we are let in; they are to agree."""
    by_ssh = run_ssh(ssh, server).returncode == 0
    if by_ssh:
        log_in(server, target)
        return True
    with pytest.raises((LoginError, HostKeyError)):
        log_in(server, target)
    return False


# Users.


@KINDS
@pytest.mark.parametrize("application", [b"ssh:", b"ssh:backup"])
def test_a_key_on_a_token_logs_in_through_the_agent(
    ssh: Path,
    own_sshd: Start,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    application: bytes,
) -> None:
    server, token = own_sshd(), SoftwareToken(kind, application)
    (server.home / "authorized_keys").write_text(line_of(token))
    configure(ssh, server)
    with token_agent(tmp_path / "agent", token) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        assert both_log_in(ssh, server, target)
        configure(ssh, server, "IdentitiesOnly yes", f"IdentityFile {write_public(ssh / 'id_sk', token)}")
        assert both_log_in(ssh, server, target)
        configure(ssh, server, "PubkeyAcceptedAlgorithms -sk-*")
        assert not both_log_in(ssh, server, target)


@KINDS
def test_a_certificate_for_a_key_on_a_token_logs_in(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    authority, token = make_key(tmp_path / "authority"), SoftwareToken(kind)
    server = certified_server(own_sshd, authority)
    key = write_public(ssh / "id_sk", token)
    certificate = certify(key, authority, server.user)
    with token_agent(tmp_path / "agent", token) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        for line in (f"IdentityFile {key}", f"CertificateFile {certificate}"):
            configure(ssh, server, line)
            assert both_log_in(ssh, server, target)
    assert "SK-CERT" in offered_to(server)[-1]


@KINDS
def test_a_user_s_certificate_may_be_signed_by_a_token(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, kind: str
) -> None:
    token, key = SoftwareToken(kind), make_key(ssh / "key")
    server = certified_server(own_sshd, write_public(tmp_path / "authority", token))
    with token_agent(tmp_path / "agent", token) as path:
        certify_by(path, token, key, server.user)
    configure(ssh, server, f"IdentityFile {key}")
    assert both_log_in(ssh, server, target)


@KINDS
def test_a_token_is_not_asked_to_sign_for_a_server_that_does_not_know_its_key(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    server, token = own_sshd(), SoftwareToken(kind)
    configure(ssh, server, f"IdentityFile {server.identity}")
    with token_agent(tmp_path / "agent", token) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        log_in(server, target)
        ours = offered_to(server)
        assert ours[0].startswith(f"{kind.upper()}-SK ")
        assert ours == ssh_offers(ssh, server)
    assert token.signatures == 0


@KINDS
def test_a_token_that_nobody_touches_is_refused_as_for_ssh(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    server, token = own_sshd(), SoftwareToken(kind, flags=0)
    (server.home / "authorized_keys").write_text(line_of(token))
    configure(ssh, server)
    with token_agent(tmp_path / "agent", token) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        assert not both_log_in(ssh, server, target)
        (server.home / "authorized_keys").write_text(f"no-touch-required {line_of(token)}")
        assert both_log_in(ssh, server, target)


def test_a_token_that_does_not_sign_is_named_and_the_next_key_has_its_turn(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, token, other = own_sshd(), SoftwareToken("ed25519"), SoftwareToken("ecdsa")
    (server.home / "authorized_keys").write_text(f"{line_of(token)}\n{line_of(other)}")
    configure(ssh, server)
    with token_agent(tmp_path / "agent", other, also=(token.blob,)) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        log_in(server, target)
    refused = r"agent key 'token' \(sk-ssh-ed25519@openssh.com SHA256:\S+\): the agent refuses"
    with token_agent(tmp_path / "refuses", also=(token.blob,)) as path, pytest.raises(LoginError, match=refused):
        log_in(server, target, agent=path)


# Hosts.


def certified_host(own_sshd: Start, tmp_path: Path, token: SoftwareToken) -> tuple[Sshd, Path]:
    """A server whose key a token has certified; and that key."""
    key = make_key(tmp_path / "key")
    with token_agent(tmp_path / "agent", token) as path:
        certificate = certify_by(path, token, key, "127.0.0.1", host=True)
    return own_sshd(extra=f"HostKey {key}\nHostCertificate {certificate}"), key


@KINDS
@pytest.mark.parametrize("flags", [1, 5, 0], ids=["touched", "verified", "nobody there"])
def test_a_host_s_certificate_may_be_signed_by_a_token(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, kind: str, flags: int
) -> None:
    token = SoftwareToken(kind, flags=flags)
    server, _ = certified_host(own_sshd, tmp_path, token)
    configure(ssh, server, f"IdentityFile {server.identity}", "StrictHostKeyChecking yes", "GlobalKnownHostsFile none")
    server.known_hosts.write_text(f"@cert-authority * {line_of(token)}\n")
    assert trusted_by_both(ssh, server, target)
    server.known_hosts.write_text(f"@cert-authority * {line_of(SoftwareToken(kind))}\n")
    assert not trusted_by_both(ssh, server, target)


def trusted_by_both(ssh: Path, server: Sshd, target: Path) -> bool:
    """Return whether ssh and we reach a host whose keys known_hosts has; they are to agree."""
    command = [program("ssh"), "-F", str(ssh / "config"), "-o", "BatchMode=yes", "-l", server.user, server.host, "true"]
    by_ssh = subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    if by_ssh:
        log_in(server, target)
        return True
    with pytest.raises(HostKeyError):
        log_in(server, target)
    return False


@KINDS
@pytest.mark.parametrize("taken", ["sk-*", "ssh-ed25519", "-sk-*"])
def test_an_authority_signs_by_what_is_configured(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, kind: str, taken: str
) -> None:
    token = SoftwareToken(kind)
    server, _ = certified_host(own_sshd, tmp_path, token)
    server.known_hosts.write_text(f"@cert-authority * {line_of(token)}\n")
    lines = [f"IdentityFile {server.identity}", "StrictHostKeyChecking yes", "GlobalKnownHostsFile none"]
    name = token.kind.decode()
    configure(ssh, server, *lines, f"CASignatureAlgorithms {name if taken == 'sk-*' else taken}")
    assert trusted_by_both(ssh, server, target) is (taken == "sk-*")
    if taken != "sk-*":
        with pytest.raises(MismatchedHostKey, match=f"its authority signs by {name}, which is not accepted"):
            log_in(server, target)


@pytest.mark.usefixtures("openssh")
@KINDS
def test_every_byte_of_a_token_s_signature_counts(tmp_path: Path, kind: str) -> None:
    token, key = SoftwareToken(kind), make_key(tmp_path / "key")
    with token_agent(tmp_path / "agent", token) as path:
        good = blob(certify_by(path, token, key, "127.0.0.1", host=True))
    assert Certificate.parse(good).why_not("127.0.0.1", 1e9) is None
    signed = len(Certificate.parse(good).signed)
    for bad in [good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :] for at in range(signed, len(good))]:
        try:
            assert Certificate.parse(bad).why_not("127.0.0.1", 1e9) is not None
        except ValueError:
            continue
    longer = good[:signed] + string(Certificate.parse(good).signature + b"\0")
    assert Certificate.parse(longer).why_not("127.0.0.1", 1e9) is not None


@KINDS
def test_what_is_no_key_of_a_token_verifies_nothing(kind: str) -> None:
    token = SoftwareToken(kind)
    good = token.sign(b"data")
    assert SecurityKey(token.blob).verify_ssh_sig(b"data", Message(good))
    assert not SecurityKey(SoftwareToken(kind).blob).verify_ssh_sig(b"data", Message(good))
    assert not SecurityKey(SoftwareToken(kind, b"ssh:x").blob).verify_ssh_sig(b"data", Message(good))
    for at in range(len(good)):
        assert not SecurityKey(token.blob).verify_ssh_sig(b"data", Message(good[:at]))
    for wrong in (token.blob[:-1], token.blob + string(b"x"), b"", string(b"ssh-ed25519"), string(token.kind)):
        with pytest.raises(ValueError, match=r"."):
            SecurityKey(wrong)


def host_on_a_token(own_sshd: Start, tmp_path: Path, token: SoftwareToken, agent: str, extra: str = "") -> Sshd:
    """A server whose one key a token has; its other key is offered to nobody."""
    key = write_public(tmp_path / "host_sk", token)
    server = own_sshd(extra=f"HostKeyAgent {agent}\nHostKey {key}.pub\nHostKeyAlgorithms {extra}{token.kind.decode()}")
    server.known_hosts.write_text(f"[{server.host}]:{server.port} {line_of(token)}\n")
    return server


@KINDS
def test_a_host_whose_key_is_on_a_token_is_known_by_it(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, kind: str
) -> None:
    token = SoftwareToken(kind)
    with token_agent(tmp_path / "agent", token) as path:
        server = host_on_a_token(own_sshd, tmp_path, token, path)
        configure(ssh, server, f"IdentityFile {server.identity}", "StrictHostKeyChecking yes")
        assert trusted_by_both(ssh, server, target)
        signatures = token.signatures
        assert signatures > 1
        other = SoftwareToken(kind)
        for line, error in (
            (f"[{server.host}]:{server.port} {line_of(other)}", ChangedHostKey),
            (f"[{server.host}]:{server.port} {public(server.identity)}", MismatchedHostKey),
            ("", UnknownHostKey),
        ):
            server.known_hosts.write_text(f"{line}\n")
            assert not trusted_by_both(ssh, server, target)
            with pytest.raises(error, match=f"the {token.kind.decode()} key SHA256:"):
                log_in(server, target)
        log_in(server, target, host_key=re.findall(r"SHA256:\S+", offered_host(server, token))[0])


def offered_host(server: Sshd, token: SoftwareToken) -> str:
    """Return the fingerprint of a host's key on a token, as ssh-keygen shows it."""
    path = write_public(server.home / "host_sk", token)
    return fingerprint(path)


# Files.


def test_the_file_of_a_key_on_a_token_says_where_the_key_is(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path
) -> None:
    server, token = own_sshd(), SoftwareToken("ed25519")
    (server.home / "authorized_keys").write_text(f"{line_of(token)}\n{public(server.identity)}")
    handle = token.blob + b"\x01" + string(b"handle") + string(b"")
    private = b"\0\0\0\1\0\0\0\1" + handle + string(b"comment")
    private += bytes(range(1, 1 + -len(private) % 8))
    fields = [b"none", b"none", b""]
    data = b"openssh-key-v1\0" + b"".join(map(string, fields)) + b"\0\0\0\1" + string(token.blob) + string(private)
    text = base64.encodebytes(data).decode()
    key = ssh / "id_ed25519_sk"
    key.write_text(f"-----BEGIN OPENSSH PRIVATE KEY-----\n{text}-----END OPENSSH PRIVATE KEY-----\n")
    key.chmod(0o600)
    shown = subprocess.run([program("ssh-keygen"), "-y", "-f", str(key)], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(line_of(token))
    configure(ssh, server)
    with pytest.raises(
        LoginError, match=rf"id_ed25519_sk: it is on a FIDO token.* Run .*`ssh-add {re.escape(str(key))}`"
    ):
        log_in(server, target)
    configure(ssh, server, "IdentitiesOnly yes")
    with token_agent(tmp_path / "agent", SoftwareToken("ecdsa"), token) as path:
        log_in(server, target, agent=path)
        assert {one.split()[0] for one in offered_to(server)} == {"ED25519-SK"}


@pytest.mark.parametrize("curve", ["secp256k1", "brainpoolP256r1", "secp224r1"])
def test_a_curve_that_ssh_does_not_know_is_that_key_s_problem(
    ssh: Path, own_sshd: Start, target: Path, curve: str
) -> None:
    server, strange = own_sshd(), ssh / "strange"
    command = ["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", str(strange)]
    subprocess.run(command, check=True, capture_output=True)
    strange.chmod(0o600)
    configure(ssh, server, f"IdentityFile {strange}", f"IdentityFile {server.identity}")
    assert both_log_in(ssh, server, target)
    with pytest.raises(LoginError, match=r"strange: keys of this kind are not supported"):
        log_in(server, target, identity=str(strange))


def test_an_agent_that_has_only_ordinary_keys_is_not_asked_twice(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path
) -> None:
    server = own_sshd()
    configure(ssh, server)
    with running_agent(tmp_path / "agent", server.identity) as path:
        log_in(server, target, agent=path)
    assert len(offered_to(server)) == 1, "a question costs a round trip"
