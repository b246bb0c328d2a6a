"""The credentials that are offered, and their order: sshd logs them, and ``ssh -v`` is the oracle."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from peerstage import SSHOptions
from peerstage.errors import LoginError
from peerstage.reasons import Reason
from support.agents import agent_packet, pack_string, serve_agent
from support.keys import certify, fingerprint_of, make_key, run_agent
from support.logins import configure, find_keys_offered_by_ssh, find_offered_keys, log_in, start_certified_server
from support.sshd import Sshd

Start = Callable[..., Sshd]


#: Lines of the configuration, and the keys of the agent; names are of files in ~/.ssh. The server accepts none.
ORDERS: dict[str, tuple[list[str], list[str]]] = {
    "files in their order": (["IdentityFile one", "IdentityFile two"], []),
    "a file with a certificate beside it": (["IdentityFile certified", "IdentityFile two"], []),
    "an explicit certificate and its key": (["IdentityFile certified", "CertificateFile certified-cert.pub"], []),
    "an agent before files": (["IdentityFile one"], ["two", "three"]),
    "first the agent's keys that files name": (["IdentityFile three", "IdentityFile one"], ["two", "three"]),
    "only those that files name": (["IdentitiesOnly yes", "IdentityFile three", "IdentityFile one"], ["two", "three"]),
    "a certificate of the agent": (["IdentityFile one"], ["certified", "two"]),
    "a certificate and an agent": (["IdentityFile one", "CertificateFile certified-cert.pub"], ["two", "certified"]),
    "no agent": (["IdentityAgent none", "IdentityFile one"], ["two"]),
    "accepted types only": (["PubkeyAcceptedAlgorithms ssh-ed25519", "IdentityFile rsa", "IdentityFile certified"], []),
    "public keys whose private keys the agent holds": (
        ["IdentitiesOnly yes", "IdentityFile three.pub", "IdentityFile two.pub"],
        ["one", "two", "three"],
    ),
    "a file twice": (["IdentityFile one", "IdentityFile one"], []),
}


@pytest.mark.parametrize("order", ORDERS)
def test_keys_are_offered_in_the_order_of_ssh(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    lines, keys = ORDERS[order]
    authority = make_key(tmp_path / "authority")
    for name in ("one", "two", "three", "certified"):
        make_key(ssh / name)
    certify(ssh / "certified", authority, "somebody")
    make_key(ssh / "rsa", key_type="rsa")
    server = own_sshd(extra="MaxAuthTries 20\nLogLevel VERBOSE")
    (server.home / "authorized_keys").write_text("")
    configure(ssh, server, *(re.sub(r"File ", f"File {ssh}/", line) for line in lines))
    with run_agent(tmp_path / "agent", *(ssh / key for key in keys)) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        with pytest.raises(LoginError):
            log_in(server, target)
        assert find_offered_keys(server) == find_keys_offered_by_ssh(ssh, server)


def test_explicit_identity_is_offered_before_the_agent(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path
) -> None:
    server = own_sshd(extra="MaxAuthTries 3\nLogLevel VERBOSE")
    configure(ssh, server)
    with run_agent(tmp_path / "agent", *(make_key(tmp_path / f"key{number}") for number in range(10))) as path:
        log_in(server, target, identity=str(server.identity), agent=path)
    assert find_offered_keys(server) == [f"ED25519 {fingerprint_of(server.identity)}"]


# MaxAuthTries.


def test_agent_of_ten_keys_uses_up_max_auth_tries_and_the_error_lists_the_attempts(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path
) -> None:
    server = own_sshd(extra="MaxAuthTries 3")
    keys = [make_key(tmp_path / f"key{number}") for number in range(10)]
    configure(ssh, server, f"IdentityFile {server.identity}")
    with run_agent(tmp_path / "agent", *keys) as path:
        with pytest.raises(LoginError, match=r"MaxAuthTries is used up.*IdentitiesOnly") as caught:
            log_in(server, target, agent=path)
        for key in keys[:2]:
            assert f"{fingerprint_of(key)}): refused" in str(caught.value)
        assert fingerprint_of(server.identity) not in str(caught.value), "it was not offered"
        assert caught.value.reason is Reason.TOO_MANY_LOGIN_ATTEMPTS
        assert [(one.reason, one.key_type, one.path) for one in caught.value.attempts] == [
            (Reason.LOGIN_REFUSED, "ssh-ed25519", ""),
            (Reason.LOGIN_REFUSED, "ssh-ed25519", ""),
            (Reason.TOO_MANY_LOGIN_ATTEMPTS, "ssh-ed25519", ""),
        ]
        configure(ssh, server, f"IdentityFile {server.identity}", "IdentitiesOnly yes")
        log_in(server, target, agent=path)


# Certificates.


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("found", ["beside the key", "named by an option", "named by the configuration", "in an agent"])
def test_certificate_logs_in(own_sshd: Start, ssh: Path, target: Path, tmp_path: Path, kind: str, found: str) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key", key_type=kind)
    server = start_certified_server(own_sshd, authority)
    certificate = certify(key, authority, server.user)
    configure(ssh, server)
    if found == "beside the key":
        log_in(server, target, identity=str(key), agent=False)
        return
    if found == "in an agent":
        with run_agent(tmp_path / "agent", key) as path:
            log_in(server, target, identity=(), agent=path)
        return
    elsewhere = certificate.rename(tmp_path / "elsewhere")
    with pytest.raises(LoginError, match="key"):
        log_in(server, target, identity=str(key), agent=False)
    if found == "named by an option":
        log_in(server, target, identity=str(key), certificate=str(elsewhere), agent=False)
        log_in(server, target, pkey=key.read_bytes(), certificate=str(elsewhere))
    else:
        configure(ssh, server, f"CertificateFile {elsewhere}", f"IdentityFile {key}")
        log_in(server, target)


def test_explicit_certificate_logs_in_with_a_key_that_only_the_agent_holds(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path
) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    server = start_certified_server(own_sshd, authority)
    configure(ssh, server)
    with run_agent(tmp_path / "agent", key) as path:
        certificate = certify(key, authority, server.user)
        key.unlink()
        log_in(server, target, identity=(), certificate=str(certificate), agent=path)


@pytest.mark.parametrize(
    ("how", "principal", "reason"),
    [
        ({"validity": "20200101:20200102"}, None, r"to 2020-01-02.*refused"),
        ({}, "somebody-else", "refused"),
        ({"host": True}, None, "not a user certificate"),
    ],
    ids=["expired", "for another user", "for a host"],
)
def test_unusable_certificate_is_reported_with_its_problem(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path, how: dict[str, Any], principal: str | None, reason: str
) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    server = start_certified_server(own_sshd, authority)
    certificate = certify(key, authority, principal or server.user, **how)
    configure(ssh, server)
    with pytest.raises(LoginError, match=f"key-cert.pub.*{reason}"):
        log_in(server, target, identity=str(key), certificate=str(certificate), agent=False)


def test_certificate_without_its_key_and_invalid_certificate_files_are_reported(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path
) -> None:
    server, authority, key = own_sshd(), make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    certificate = certify(key, authority, server.user)
    configure(
        ssh, server, f"CertificateFile {certificate}", f"CertificateFile {ssh}/config", "CertificateFile /missing"
    )
    with pytest.raises(LoginError) as caught:
        log_in(server, target, identity=str(authority), agent=False)
    for text in (
        "no private key was found for this certificate",
        "config: no public key or certificate",
        "/missing: No such file",
        f"{fingerprint_of(authority)}): refused",
    ):
        assert text in str(caught.value)
    assert caught.value.reason is Reason.LOGIN_REFUSED
    assert [(one.reason, one.path) for one in caught.value.attempts] == [
        (Reason.PUBLIC_KEY_ONLY, str(certificate)),
        (Reason.CERTIFICATE_INVALID, f"{ssh}/config"),
        (Reason.KEY_FILE_MISSING, "/missing"),
        (Reason.LOGIN_REFUSED, str(authority)),
    ]


def test_certificate_of_another_key_beside_a_key_is_ignored(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path
) -> None:
    server, key = own_sshd(), make_key(tmp_path / "key")
    certificate = certify(make_key(tmp_path / "other"), make_key(tmp_path / "authority"), server.user)
    certificate.rename(tmp_path / "key-cert.pub")
    configure(ssh, server)
    with pytest.raises(LoginError) as caught:
        log_in(server, target, identity=str(key), agent=False)
    assert [attempt.path for attempt in caught.value.attempts] == [str(key)]


def test_certificate_is_not_signed_with_a_key_that_it_does_not_certify(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path
) -> None:
    server, other = own_sshd(), tmp_path / "other"
    certificate = certify(make_key(tmp_path / "key"), make_key(tmp_path / "authority"), server.user)
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    other.touch(mode=0o600)
    other.write_bytes(pem)  # a format without a readable public key
    configure(ssh, server, f"CertificateFile {certificate}")
    with pytest.raises(LoginError, match="no private key was found for this certificate"):
        log_in(server, target, identity=str(other), agent=False)
    assert not any("CERT" in offered for offered in find_offered_keys(server))


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("key.pub", "it is a public key, and no agent has the private one", Reason.PUBLIC_KEY_ONLY),
        ("fifo", "not a regular file", Reason.KEY_FILE_UNREADABLE),
        (".", "not a regular file", Reason.KEY_FILE_UNREADABLE),
        ("huge", "larger than 1048576 bytes", Reason.KEY_FILE_UNREADABLE),
        ("missing", "No such file", Reason.KEY_FILE_MISSING),
        ("empty", "not a private key", Reason.KEY_INVALID),
        ("a\0b", r"invalid path \(embedded null byte\)", Reason.KEY_FILE_UNREADABLE),
        ("a\ud800", "invalid path .*surrogates", Reason.KEY_FILE_UNREADABLE),
    ],
)
def test_identity_that_is_not_a_private_key_is_reported_with_its_problem(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path, name: str, words: str, reason: Reason
) -> None:
    server = own_sshd()
    configure(ssh, server)
    make_key(tmp_path / "key")
    os.mkfifo(tmp_path / "fifo")
    for path, size in ((tmp_path / "empty", 0), (tmp_path / "huge", 1 << 40)):
        path.touch(mode=0o600)
        os.truncate(path, size)
    with pytest.raises(LoginError, match=words) as caught:
        log_in(server, target, identity=f"{tmp_path}/{name}")
    assert str(caught.value).isprintable()
    assert caught.value.reason is reason
    assert [(one.reason, one.path) for one in caught.value.attempts] == [(reason, f"{tmp_path}/{name}")]
    log_in(server, target, identity=(f"{tmp_path}/{name}", str(server.identity)))


def test_unencodable_secrets_are_rejected_at_once_and_not_quoted() -> None:
    for name in ("password", "passphrase"):
        with pytest.raises(ValueError, match=f"{name} must be text") as caught:
            SSHOptions(**{name: "sesame\udcff"})
        assert "sesame" not in str(caught.value)


# Misbehaving agents.


def replies(*pieces: bytes) -> Callable[[socket.socket], object]:
    """Answer each request with the next piece, then stay silent."""

    def answer(conn: socket.socket) -> None:
        for piece in pieces:
            conn.recv(65536)
            conn.sendall(piece)
        while conn.recv(65536):
            pass

    return answer


KEY = pack_string(b"ssh-ed25519") + pack_string(os.urandom(32))
KEY_LISTED = agent_packet(b"\x0c" + (1).to_bytes(4, "big") + pack_string(KEY) + pack_string(b"mine\x1b[2J"))

#: Invalid and unsupported keys of an agent: each is skipped, without an effect on the others.
INVALID_KEYS = {
    "nothing": b"",
    "less than a type": b"\0\0",
    "a truncated type": b"\0\0\0\xffssh-ed25519",
    "an RSA key without a modulus": pack_string(b"ssh-rsa") + pack_string(b"\x01\0\x01"),
    "an RSA key with something behind it": pack_string(b"ssh-rsa")
    + pack_string(b"\x03")
    + pack_string(b"\0" + b"\xff" * 256)
    + b"x",
    "an unknown type": pack_string(b"ssh-mldsa65@openssh.com") + pack_string(b"x" * 32),
    "a key on a token": pack_string(b"sk-ssh-ed25519@openssh.com") + pack_string(b"x" * 32) + pack_string(b"ssh:"),
    "a truncated certificate": pack_string(b"ssh-rsa-cert-v01@openssh.com") + pack_string(b"nonce"),
    "a truncated certificate of a token": pack_string(b"sk-ssh-ed25519-cert-v01@openssh.com") + pack_string(b"nonce"),
    "a type that is not text": pack_string(b"\xff\x1b[2J") + pack_string(b"x"),
}


@pytest.mark.parametrize("invalid", INVALID_KEYS)
def test_invalid_key_in_an_agent_does_not_affect_the_others(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path, invalid: str
) -> None:
    server = own_sshd(extra="MaxAuthTries 3")
    configure(ssh, server)
    key = paramiko.Ed25519Key.from_private_key_file(str(server.identity))
    listed = b"\x0c" + (2).to_bytes(4, "big")
    for one in (INVALID_KEYS[invalid], key.asbytes()):
        listed += pack_string(one) + pack_string(b"a comment")

    def answer(conn: socket.socket) -> None:
        while request := conn.recv(65536):
            if request[4] == 11:
                conn.sendall(agent_packet(listed))
                continue
            length = int.from_bytes(request[5:9], "big")
            if request[9 : 9 + length] != key.asbytes():
                conn.sendall(agent_packet(b"\x05"))
                continue
            data = request[13 + length : -4]
            conn.sendall(agent_packet(b"\x0e" + pack_string(key.sign_ssh_data(data).asbytes())))

    with serve_agent(tmp_path / "agent", answer) as path:
        log_in(server, target, identity=(), agent=path)


MISBEHAVING: dict[str, tuple[Callable[[socket.socket], object], str, Reason]] = {
    "never answers": (replies(), "no answer within 2 s", Reason.AGENT_SILENT),
    "never signs": (replies(KEY_LISTED), "no answer within 1 s", Reason.AGENT_SILENT),
    "closes the connection": (lambda conn: None, "closed the connection|reset|pipe", Reason.AGENT_UNAVAILABLE),
    "claims a packet of 4 GiB": (replies(b"\xff\xff\xff\xff"), "not an ssh agent", Reason.AGENT_REFUSED),
    "sends a truncated list": (replies(agent_packet(b"\x0c\0\0\0\x02\0\0")), "malformed", Reason.AGENT_REFUSED),
    "claims 4 billion keys": (replies(agent_packet(b"\x0c\xff\xff\xff\xff")), "malformed", Reason.AGENT_REFUSED),
    "refuses to list": (replies(agent_packet(b"\x05")), "refuses", Reason.AGENT_REFUSED),
    "refuses to sign": (replies(KEY_LISTED, agent_packet(b"\x05")), r"mine\\x1b.*refuses", Reason.AGENT_REFUSED),
    "closes the connection instead of signing": (
        lambda conn: (conn.recv(65536), conn.sendall(KEY_LISTED)),
        "mine",
        Reason.AGENT_UNAVAILABLE,
    ),
    "sends an invalid signature": (
        replies(KEY_LISTED, agent_packet(b"\x0e" + pack_string(b"nonsense"))),
        "mine.*refused",
        Reason.LOGIN_REFUSED,
    ),
    "is not an agent": (replies(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "not an ssh agent", Reason.AGENT_REFUSED),
    "holds no keys": (replies(agent_packet(b"\x0c\0\0\0\0")), "agent at .*: it holds no keys", Reason.AGENT_EMPTY),
}


@pytest.mark.parametrize("fault", MISBEHAVING)
def test_misbehaving_agent_is_skipped_and_reported(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.ssh.auth.agent._SIGN_TIMEOUT", 1.0)
    answer, words, reason = MISBEHAVING[fault]
    server = own_sshd()
    configure(ssh, server, f"IdentityFile {server.identity}")
    with serve_agent(tmp_path / "agent", answer) as path:
        log_in(server, target, agent=path)
        with pytest.raises(LoginError, match=words) as caught:
            log_in(server, target, identity=(), agent=path)
    assert str(caught.value).isprintable()
    assert (caught.value.reason, caught.value.attempts[-1].reason) == (reason, reason)


@pytest.mark.parametrize(
    ("answer", "problem", "reason"),
    [
        (replies, "no answer within 0.5 s", Reason.AGENT_SILENT),
        (lambda listed: replies(listed, b"\xff\xff\xff\xff"), "not an ssh agent", Reason.AGENT_REFUSED),
        (
            lambda listed: lambda conn: (conn.recv(65536), conn.sendall(listed), conn.recv(65536)),
            "the agent closed the connection",
            Reason.AGENT_UNAVAILABLE,
        ),
    ],
    ids=["times out", "sends an invalid length", "closes the connection"],
)
def test_agent_that_failed_is_not_asked_for_another_signature(
    own_sshd: Start,
    ssh: Path,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[bytes], Callable[[socket.socket], object]],
    problem: str,
    reason: Reason,
) -> None:
    monkeypatch.setattr("peerstage.ssh.auth.agent._SIGN_TIMEOUT", 0.5)
    keys = [pack_string(b"ssh-ed25519") + pack_string(os.urandom(32)) for _ in range(3)]
    listed = agent_packet(
        b"\x0c" + (3).to_bytes(4, "big") + b"".join(pack_string(key) + pack_string(b"mine") for key in keys)
    )
    server = own_sshd()
    configure(ssh, server)
    with (
        serve_agent(tmp_path / "agent", answer(listed)) as path,
        pytest.raises(LoginError) as caught,
    ):
        log_in(server, target, agent=path)
    assert str(caught.value).count(problem) == 1
    assert str(caught.value).count("an earlier request to the agent failed") == 2
    assert [attempt.reason for attempt in caught.value.attempts] == [reason] * 3
