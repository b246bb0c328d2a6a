"""FIDO keys of users, hosts and authorities: tokens in software, with OpenSSH as the oracle."""

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
from peerstage.ssh.keys.certificates import Certificate
from peerstage.ssh.keys.public_keys import PublicKey, fingerprint
from support.agents import SoftwareToken, pack_string, serve_token_agent
from support.keys import certify, make_key, public_key, read_blob, run_agent, run_ssh_keygen
from support.logins import (
    configure,
    find_keys_offered_by_ssh,
    find_offered_keys,
    log_in,
    run_ssh,
    start_certified_server,
)
from support.programs import require_program
from support.sshd import Sshd

Start = Callable[..., Sshd]
KEY_TYPES = pytest.mark.parametrize("key_type", ["ed25519", "ecdsa"])


def format_line(token: SoftwareToken) -> str:
    """Return the public key as a line of authorized_keys or known_hosts has it."""
    return f"{token.key_type.decode()} {base64.b64encode(token.blob).decode()}"


def write_public(path: Path, token: SoftwareToken) -> Path:
    """Write a token's public key; return the path that its private key would have."""
    Path(f"{path}.pub").write_text(format_line(token) + "\n")
    return path


def certify_with_token(agent: str, token: SoftwareToken, key: Path, *principals: str, host: bool = False) -> Path:
    """Have ssh-keygen certify the public key beside *key* with a token that an agent holds."""
    authority = write_public(key.with_name("authority"), token)
    command = [require_program("ssh-keygen"), "-qUs", f"{authority}.pub", "-I", "it", "-n", ",".join(principals)]
    environment = {**os.environ, "SSH_AUTH_SOCK": agent}
    subprocess.run([*command, *(["-h"] if host else []), f"{key}.pub"], check=True, env=environment)
    return key.with_name(f"{key.name}-cert.pub")


def can_log_in(ssh: Path, server: Sshd, target: Path) -> bool:
    """Return whether the login succeeds, which must be the same for ssh and peerstage."""
    ssh_succeeds = run_ssh(ssh, server).returncode == 0
    if ssh_succeeds:
        log_in(server, target)
        return True
    with pytest.raises((LoginError, HostKeyError)):
        log_in(server, target)
    return False


# Users.


@KEY_TYPES
@pytest.mark.parametrize("application", [b"ssh:", b"ssh:backup"])
def test_key_on_a_token_logs_in_through_the_agent(
    ssh: Path,
    own_sshd: Start,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key_type: str,
    application: bytes,
) -> None:
    server, token = own_sshd(), SoftwareToken(key_type, application)
    (server.home / "authorized_keys").write_text(format_line(token))
    configure(ssh, server)
    with serve_token_agent(tmp_path / "agent", token) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        assert can_log_in(ssh, server, target)
        configure(ssh, server, "IdentitiesOnly yes", f"IdentityFile {write_public(ssh / 'id_sk', token)}")
        assert can_log_in(ssh, server, target)
        configure(ssh, server, "PubkeyAcceptedAlgorithms -sk-*")
        assert not can_log_in(ssh, server, target)


@KEY_TYPES
def test_certificate_of_a_key_on_a_token_logs_in(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_type: str
) -> None:
    authority, token = make_key(tmp_path / "authority"), SoftwareToken(key_type)
    server = start_certified_server(own_sshd, authority)
    key = write_public(ssh / "id_sk", token)
    certificate = certify(key, authority, server.user)
    with serve_token_agent(tmp_path / "agent", token) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        for line in (f"IdentityFile {key}", f"CertificateFile {certificate}"):
            configure(ssh, server, line)
            assert can_log_in(ssh, server, target)
    assert "SK-CERT" in find_offered_keys(server)[-1]


@KEY_TYPES
def test_user_certificate_may_be_signed_by_a_token(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, key_type: str
) -> None:
    token, key = SoftwareToken(key_type), make_key(ssh / "key")
    server = start_certified_server(own_sshd, write_public(tmp_path / "authority", token))
    with serve_token_agent(tmp_path / "agent", token) as path:
        certify_with_token(path, token, key, server.user)
    configure(ssh, server, f"IdentityFile {key}")
    assert can_log_in(ssh, server, target)


@KEY_TYPES
def test_token_does_not_sign_for_a_server_that_does_not_accept_its_key(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_type: str
) -> None:
    server, token = own_sshd(), SoftwareToken(key_type)
    configure(ssh, server, f"IdentityFile {server.identity}")
    with serve_token_agent(tmp_path / "agent", token) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        log_in(server, target)
        ours = find_offered_keys(server)
        assert ours[0].startswith(f"{key_type.upper()}-SK ")
        assert ours == find_keys_offered_by_ssh(ssh, server)
    assert token.signatures == 0


@KEY_TYPES
def test_signature_without_user_presence_is_refused_as_for_ssh(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_type: str
) -> None:
    server, token = own_sshd(), SoftwareToken(key_type, flags=0)
    (server.home / "authorized_keys").write_text(format_line(token))
    configure(ssh, server)
    with serve_token_agent(tmp_path / "agent", token) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        assert not can_log_in(ssh, server, target)
        (server.home / "authorized_keys").write_text(f"no-touch-required {format_line(token)}")
        assert can_log_in(ssh, server, target)


def test_token_that_does_not_sign_is_reported_and_the_next_key_is_tried(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, token, other = own_sshd(), SoftwareToken("ed25519"), SoftwareToken("ecdsa")
    (server.home / "authorized_keys").write_text(f"{format_line(token)}\n{format_line(other)}")
    configure(ssh, server)
    with serve_token_agent(tmp_path / "agent", other, also=(token.blob,)) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        log_in(server, target)
    refused = r"agent key 'token' \(sk-ssh-ed25519@openssh.com SHA256:\S+\): the agent refuses"
    with serve_token_agent(tmp_path / "refuses", also=(token.blob,)) as path, pytest.raises(LoginError, match=refused):
        log_in(server, target, agent=path)


# Hosts.


def start_certified_host(own_sshd: Start, tmp_path: Path, token: SoftwareToken) -> tuple[Sshd, Path]:
    """Start a server with a host key that a token has certified; return both."""
    key = make_key(tmp_path / "key")
    with serve_token_agent(tmp_path / "agent", token) as path:
        certificate = certify_with_token(path, token, key, "127.0.0.1", host=True)
    return own_sshd(extra=f"HostKey {key}\nHostCertificate {certificate}"), key


@KEY_TYPES
@pytest.mark.parametrize("flags", [1, 5, 0], ids=["user present", "user verified", "no user"])
def test_host_certificate_may_be_signed_by_a_token(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, key_type: str, flags: int
) -> None:
    token = SoftwareToken(key_type, flags=flags)
    server, _ = start_certified_host(own_sshd, tmp_path, token)
    configure(ssh, server, f"IdentityFile {server.identity}", "StrictHostKeyChecking yes", "GlobalKnownHostsFile none")
    server.known_hosts.write_text(f"@cert-authority * {format_line(token)}\n")
    assert is_trusted(ssh, server, target)
    server.known_hosts.write_text(f"@cert-authority * {format_line(SoftwareToken(key_type))}\n")
    assert not is_trusted(ssh, server, target)


def is_trusted(ssh: Path, server: Sshd, target: Path) -> bool:
    """Return whether the host key is trusted, which must be the same for ssh and peerstage."""
    config = str(ssh / "config")
    command = [require_program("ssh"), "-F", config, "-oBatchMode=yes", "-l", server.user, server.host, "true"]
    ssh_succeeds = subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    if ssh_succeeds:
        log_in(server, target)
        return True
    with pytest.raises(HostKeyError):
        log_in(server, target)
    return False


@KEY_TYPES
@pytest.mark.parametrize("accepted", ["sk-*", "ssh-ed25519", "-sk-*"])
def test_ca_signature_algorithms_apply_to_tokens(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, key_type: str, accepted: str
) -> None:
    token = SoftwareToken(key_type)
    server, _ = start_certified_host(own_sshd, tmp_path, token)
    server.known_hosts.write_text(f"@cert-authority * {format_line(token)}\n")
    lines = [f"IdentityFile {server.identity}", "StrictHostKeyChecking yes", "GlobalKnownHostsFile none"]
    name = token.key_type.decode()
    configure(ssh, server, *lines, f"CASignatureAlgorithms {name if accepted == 'sk-*' else accepted}")
    assert is_trusted(ssh, server, target) is (accepted == "sk-*")
    if accepted != "sk-*":
        with pytest.raises(MismatchedHostKey, match=f"its authority signs by {name}, which is not accepted"):
            log_in(server, target)


@pytest.mark.usefixtures("openssh")
@KEY_TYPES
def test_every_byte_of_a_token_signature_is_verified(tmp_path: Path, key_type: str) -> None:
    token, key = SoftwareToken(key_type), make_key(tmp_path / "key")
    with serve_token_agent(tmp_path / "agent", token) as path:
        good = read_blob(certify_with_token(path, token, key, "127.0.0.1", host=True))
    assert Certificate.parse(good).validation_error("127.0.0.1", 1e9) is None
    signed = len(Certificate.parse(good).signed_data)
    for bad in [good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :] for at in range(signed, len(good))]:
        try:
            assert Certificate.parse(bad).validation_error("127.0.0.1", 1e9) is not None
        except ValueError:
            continue
    longer = good[:signed] + pack_string(Certificate.parse(good).signature + b"\0")
    assert Certificate.parse(longer).validation_error("127.0.0.1", 1e9) is not None


@KEY_TYPES
def test_signature_verifies_only_with_its_own_key_and_application(key_type: str) -> None:
    token = SoftwareToken(key_type)
    good = token.sign(b"data")
    assert PublicKey(token.blob).verify_ssh_sig(b"data", Message(good))
    assert not PublicKey(SoftwareToken(key_type).blob).verify_ssh_sig(b"data", Message(good))
    assert not PublicKey(SoftwareToken(key_type, b"ssh:x").blob).verify_ssh_sig(b"data", Message(good))
    for at in range(len(good)):
        assert not PublicKey(token.blob).verify_ssh_sig(b"data", Message(good[:at]))
    short = (b"", pack_string(b"ssh-ed25519"), pack_string(token.key_type))
    for wrong in (token.blob[:-1], token.blob + pack_string(b"x"), *short):
        with pytest.raises(ValueError, match=r"."):
            PublicKey(wrong)


def start_host_on_token(own_sshd: Start, tmp_path: Path, token: SoftwareToken, agent: str, extra: str = "") -> Sshd:
    """Start a server whose only offered host key is on a token."""
    key = write_public(tmp_path / "host_sk", token)
    server = own_sshd(
        extra=f"HostKeyAgent {agent}\nHostKey {key}.pub\nHostKeyAlgorithms {extra}{token.key_type.decode()}"
    )
    server.known_hosts.write_text(f"[{server.host}]:{server.port} {format_line(token)}\n")
    return server


@KEY_TYPES
def test_host_key_on_a_token_is_verified(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, key_type: str
) -> None:
    token = SoftwareToken(key_type)
    with serve_token_agent(tmp_path / "agent", token) as path:
        server = start_host_on_token(own_sshd, tmp_path, token, path)
        configure(ssh, server, f"IdentityFile {server.identity}", "StrictHostKeyChecking yes")
        assert is_trusted(ssh, server, target)
        signatures = token.signatures
        assert signatures > 1
        other = SoftwareToken(key_type)
        for line, error in (
            (f"[{server.host}]:{server.port} {format_line(other)}", ChangedHostKey),
            (f"[{server.host}]:{server.port} {public_key(server.identity)}", MismatchedHostKey),
            ("", UnknownHostKey),
        ):
            server.known_hosts.write_text(f"{line}\n")
            assert not is_trusted(ssh, server, target)
            with pytest.raises(error, match=f"the {token.key_type.decode()} key SHA256:"):
                log_in(server, target)
        log_in(server, target, host_key=fingerprint(token.blob))


# Files.


def test_key_file_of_a_token_is_reported_as_such(ssh: Path, own_sshd: Start, target: Path, tmp_path: Path) -> None:
    server, token = own_sshd(), SoftwareToken("ed25519")
    (server.home / "authorized_keys").write_text(f"{format_line(token)}\n{public_key(server.identity)}")
    handle = token.blob + b"\x01" + pack_string(b"handle") + pack_string(b"")
    private = b"\0\0\0\1\0\0\0\1" + handle + pack_string(b"comment")
    private += bytes(range(1, 1 + -len(private) % 8))
    encryption = b"".join(map(pack_string, [b"none", b"none", b""]))
    data = b"openssh-key-v1\0" + encryption + b"\0\0\0\1" + pack_string(token.blob) + pack_string(private)
    text = base64.encodebytes(data).decode()
    key = ssh / "id_ed25519_sk"
    key.write_text(f"-----BEGIN OPENSSH PRIVATE KEY-----\n{text}-----END OPENSSH PRIVATE KEY-----\n")
    key.chmod(0o600)
    assert run_ssh_keygen("-y", "-f", key).startswith(format_line(token))
    configure(ssh, server)
    with pytest.raises(
        LoginError, match=rf"id_ed25519_sk: it is on a FIDO token.* Run .*`ssh-add {re.escape(str(key))}`"
    ):
        log_in(server, target)
    configure(ssh, server, "IdentitiesOnly yes")
    with serve_token_agent(tmp_path / "agent", SoftwareToken("ecdsa"), token) as path:
        log_in(server, target, agent=path)
        assert {key.split()[0] for key in find_offered_keys(server)} == {"ED25519-SK"}


@pytest.mark.parametrize("curve", ["secp256k1", "brainpoolP256r1", "secp224r1"])
def test_key_on_an_unsupported_curve_does_not_affect_the_others(
    ssh: Path, own_sshd: Start, target: Path, curve: str
) -> None:
    server, strange = own_sshd(), ssh / "strange"
    command = ["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", str(strange)]
    subprocess.run(command, check=True, capture_output=True)
    strange.chmod(0o600)
    configure(ssh, server, f"IdentityFile {strange}", f"IdentityFile {server.identity}")
    assert can_log_in(ssh, server, target)
    with pytest.raises(LoginError, match=r"strange: keys of this kind are not supported"):
        log_in(server, target, identity=str(strange))


def test_ordinary_agent_key_is_offered_with_its_signature_at_once(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path
) -> None:
    server = own_sshd()
    configure(ssh, server)
    with run_agent(tmp_path / "agent", server.identity) as path:
        log_in(server, target, agent=path)
    assert len(find_offered_keys(server)) == 1, "a probe costs a round trip"
