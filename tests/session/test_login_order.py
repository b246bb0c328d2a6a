"""What is offered to log in by, and in which order: real servers tell, and ``ssh -v`` is the oracle."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import SSHOptions
from peerstage.errors import LoginError
from peerstage.reasons import Reason
from support.agents import agent_that, packet, string
from support.keys import certify, fingerprint, make_key, running_agent
from support.logins import certified_server, configure, log_in, offered_to, ssh_offers
from support.sshd import Sshd

Start = Callable[..., Sshd]


#: Lines of the configuration, and the keys of the agent; a name is one of a file in ~/.ssh. None of them is let in.
ORDERS: dict[str, tuple[list[str], list[str]]] = {
    "files in their order": (["IdentityFile one", "IdentityFile two"], []),
    "a file with a certificate beside it": (["IdentityFile certified", "IdentityFile two"], []),
    "a certificate of a key that is named": (["IdentityFile certified", "CertificateFile certified-cert.pub"], []),
    "an agent before files": (["IdentityFile one"], ["two", "three"]),
    "an agent's keys that files name first": (["IdentityFile three", "IdentityFile one"], ["two", "three"]),
    "only those that files name": (["IdentitiesOnly yes", "IdentityFile three", "IdentityFile one"], ["two", "three"]),
    "a certificate of the agent": (["IdentityFile one"], ["certified", "two"]),
    "a certificate and an agent": (["IdentityFile one", "CertificateFile certified-cert.pub"], ["two", "certified"]),
    "no agent": (["IdentityAgent none", "IdentityFile one"], ["two"]),
    "types that are accepted": (
        ["PubkeyAcceptedAlgorithms ssh-ed25519", "IdentityFile rsa", "IdentityFile certified"],
        [],
    ),
    "public keys whose private ones the agent has": (
        ["IdentitiesOnly yes", "IdentityFile three.pub", "IdentityFile two.pub"],
        ["one", "two", "three"],
    ),
    "a file that is named twice": (["IdentityFile one", "IdentityFile one"], []),
}


@pytest.mark.parametrize("order", ORDERS)
def test_keys_are_offered_in_ssh_s_order(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    lines, keys = ORDERS[order]
    authority = make_key(tmp_path / "authority")
    for name in ("one", "two", "three", "certified"):
        make_key(ssh / name)
    certify(ssh / "certified", authority, "somebody")
    make_key(ssh / "rsa", kind="rsa")
    server = own_sshd(extra="MaxAuthTries 20\nLogLevel VERBOSE")
    (server.home / "authorized_keys").write_text("")
    configure(ssh, server, *(re.sub(r"File ", f"File {ssh}/", line) for line in lines))
    with running_agent(tmp_path / "agent", *(ssh / key for key in keys)) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        with pytest.raises(LoginError):
            log_in(server, target)
        assert offered_to(server) == ssh_offers(ssh, server)


def test_a_key_that_the_caller_names_goes_before_the_agent(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path
) -> None:
    server = own_sshd(extra="MaxAuthTries 3\nLogLevel VERBOSE")
    configure(ssh, server)
    with running_agent(tmp_path / "agent", *(make_key(tmp_path / f"key{number}") for number in range(10))) as path:
        log_in(server, target, identity=str(server.identity), agent=path)
    assert offered_to(server) == [f"ED25519 {fingerprint(server.identity)}"]


# A server that has had enough.


def test_an_agent_of_ten_keys_uses_up_the_tries_as_it_does_for_ssh_and_the_error_lists_them(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path
) -> None:
    server = own_sshd(extra="MaxAuthTries 3")
    keys = [make_key(tmp_path / f"key{number}") for number in range(10)]
    configure(ssh, server, f"IdentityFile {server.identity}")
    with running_agent(tmp_path / "agent", *keys) as path:
        with pytest.raises(LoginError, match=r"MaxAuthTries is used up.*IdentitiesOnly") as caught:
            log_in(server, target, agent=path)
        for key in keys[:2]:
            assert f"{fingerprint(key)}): refused" in str(caught.value)
        assert fingerprint(server.identity) not in str(caught.value), "its turn did not come"
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
def test_a_certificate_logs_in(own_sshd: Start, ssh: Path, target: Path, tmp_path: Path, kind: str, found: str) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key", kind=kind)
    server = certified_server(own_sshd, authority)
    certificate = certify(key, authority, server.user)
    configure(ssh, server)
    if found == "beside the key":
        log_in(server, target, identity=str(key), agent=False)
        return
    if found == "in an agent":
        with running_agent(tmp_path / "agent", key) as path:
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


def test_a_named_certificate_whose_key_only_the_agent_has_logs_in(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path
) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    server = certified_server(own_sshd, authority)
    configure(ssh, server)
    with running_agent(tmp_path / "agent", key) as path:
        certificate = certify(key, authority, server.user)
        key.unlink()
        log_in(server, target, identity=(), certificate=str(certificate), agent=path)


@pytest.mark.parametrize(
    ("how", "principal", "reason"),
    [
        ({"validity": "20200101:20200102"}, None, r"to 2020-01-02.*refused"),
        ({}, "somebody-else", "refused"),
        ({"host": True}, None, "not a user's certificate"),
    ],
    ids=["expired", "of another", "of a host"],
)
def test_a_certificate_that_is_of_no_use_is_named_with_the_reason(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path, how: dict[str, Any], principal: str | None, reason: str
) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    server = certified_server(own_sshd, authority)
    certificate = certify(key, authority, principal or server.user, **how)
    configure(ssh, server)
    with pytest.raises(LoginError, match=f"key-cert.pub.*{reason}"):
        log_in(server, target, identity=str(key), certificate=str(certificate), agent=False)


def test_a_certificate_without_its_key_and_a_file_that_is_none_are_named(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path
) -> None:
    server, authority, key = own_sshd(), make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    certificate = certify(key, authority, server.user)
    configure(
        ssh, server, f"CertificateFile {certificate}", f"CertificateFile {ssh}/config", "CertificateFile /missing"
    )
    with pytest.raises(LoginError) as caught:
        log_in(server, target, identity=str(authority), agent=False)
    for words in (
        "no private key to this certificate",
        "config: no public key or certificate",
        "/missing: No such file",
        f"{fingerprint(authority)}): refused",
    ):
        assert words in str(caught.value)
    assert caught.value.reason is Reason.LOGIN_REFUSED
    assert [(one.reason, one.path) for one in caught.value.attempts] == [
        (Reason.PUBLIC_KEY_ONLY, str(certificate)),
        (Reason.CERTIFICATE_INVALID, f"{ssh}/config"),
        (Reason.KEY_FILE_MISSING, "/missing"),
        (Reason.LOGIN_REFUSED, str(authority)),
    ]


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("key.pub", "it is a public key, and no agent has the private one", Reason.PUBLIC_KEY_ONLY),
        ("fifo", "not a regular file", Reason.KEY_FILE_UNREADABLE),
        (".", "not a regular file", Reason.KEY_FILE_UNREADABLE),
        ("huge", "larger than 1048576 bytes", Reason.KEY_FILE_UNREADABLE),
        ("missing", "No such file", Reason.KEY_FILE_MISSING),
        ("empty", "not a private key", Reason.KEY_INVALID),
        ("a\0b", r"no path \(embedded null byte\)", Reason.KEY_FILE_UNREADABLE),
        ("a\ud800", "no path .*surrogates", Reason.KEY_FILE_UNREADABLE),
    ],
)
def test_an_identity_that_is_no_private_key_is_named_with_the_reason(
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


def test_secrets_that_could_not_be_sent_are_refused_at_once_and_not_shown() -> None:
    for name in ("password", "passphrase"):
        with pytest.raises(ValueError, match=f"{name} must be text") as caught:
            SSHOptions(**{name: "sesame\udcff"})
        assert "sesame" not in str(caught.value)


# Agents that misbehave.


def says(*pieces: bytes) -> Callable[[socket.socket], object]:
    """Answers each request by the next piece, and is silent from then on."""

    def answer(conn: socket.socket) -> None:
        for piece in pieces:
            conn.recv(65536)
            conn.sendall(piece)
        while conn.recv(65536):
            pass

    return answer


KEY = string(b"ssh-ed25519") + string(os.urandom(32))
LISTS_A_KEY = packet(b"\x0c" + (1).to_bytes(4, "big") + string(KEY) + string(b"mine\x1b[2J"))

#: Keys that an agent may have and that are of no use: each is passed over, and none takes the others with it.
STRANGE = {
    "nothing": b"",
    "not even a type": b"\0\0",
    "a type that is cut off": b"\0\0\0\xffssh-ed25519",
    "an RSA key without a modulus": string(b"ssh-rsa") + string(b"\x01\0\x01"),
    "an RSA key with something behind it": string(b"ssh-rsa") + string(b"\x03") + string(b"\0" + b"\xff" * 256) + b"x",
    "a type of tomorrow": string(b"ssh-mldsa65@openssh.com") + string(b"x" * 32),
    "a key of a token": string(b"sk-ssh-ed25519@openssh.com") + string(b"x" * 32) + string(b"ssh:"),
    "a certificate that is cut off": string(b"ssh-rsa-cert-v01@openssh.com") + string(b"nonce"),
    "a certificate of a token": string(b"sk-ssh-ed25519-cert-v01@openssh.com") + string(b"nonce"),
    "a type that is no text": string(b"\xff\x1b[2J") + string(b"x"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_strange_key_in_an_agent_does_not_take_the_others_with_it(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path, strange: str
) -> None:
    server = own_sshd(extra="MaxAuthTries 3")
    configure(ssh, server)
    key = paramiko.Ed25519Key.from_private_key_file(str(server.identity))
    listed = b"\x0c" + (2).to_bytes(4, "big")
    for one in (STRANGE[strange], key.asbytes()):
        listed += string(one) + string(b"a comment")

    def answer(conn: socket.socket) -> None:
        while request := conn.recv(65536):
            if request[4] == 11:
                conn.sendall(packet(listed))
                continue
            length = int.from_bytes(request[5:9], "big")
            if request[9 : 9 + length] != key.asbytes():
                conn.sendall(packet(b"\x05"))
                continue
            data = request[13 + length : -4]
            conn.sendall(packet(b"\x0e" + string(key.sign_ssh_data(data).asbytes())))

    with agent_that(tmp_path / "agent", answer) as path:
        log_in(server, target, identity=(), agent=path)


MISBEHAVING: dict[str, tuple[Callable[[socket.socket], object], str, Reason]] = {
    "never answers": (says(), "no answer within 2 s", Reason.AGENT_SILENT),
    "never signs": (says(LISTS_A_KEY), "no answer within 1 s", Reason.AGENT_SILENT),
    "hangs up": (lambda conn: None, "hangs up|reset|pipe", Reason.AGENT_UNAVAILABLE),
    "claims a packet of 4 GiB": (says(b"\xff\xff\xff\xff"), "no ssh agent", Reason.AGENT_REFUSED),
    "sends a list that is cut off": (
        says(packet(b"\x0c\0\0\0\x02\0\0")),
        "can not be read",
        Reason.AGENT_REFUSED,
    ),
    "claims 4 billion keys": (says(packet(b"\x0c\xff\xff\xff\xff")), "can not be read", Reason.AGENT_REFUSED),
    "refuses to list": (says(packet(b"\x05")), "refuses", Reason.AGENT_REFUSED),
    "refuses to sign": (says(LISTS_A_KEY, packet(b"\x05")), r"mine\\x1b.*refuses", Reason.AGENT_REFUSED),
    "hangs up when it is to sign": (
        lambda conn: (conn.recv(65536), conn.sendall(LISTS_A_KEY)),
        "mine",
        Reason.AGENT_UNAVAILABLE,
    ),
    "signs by nonsense": (
        says(LISTS_A_KEY, packet(b"\x0e" + string(b"nonsense"))),
        "mine.*refused",
        Reason.LOGIN_REFUSED,
    ),
    "is no agent": (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "no ssh agent", Reason.AGENT_REFUSED),
    "has no keys": (says(packet(b"\x0c\0\0\0\0")), "agent at .*: it holds no keys", Reason.AGENT_EMPTY),
}


@pytest.mark.parametrize("fault", MISBEHAVING)
def test_an_agent_that_misbehaves_is_passed_over_with_a_word(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.session.agent._SIGNATURE", 1.0)
    answer, words, reason = MISBEHAVING[fault]
    server = own_sshd()
    configure(ssh, server, f"IdentityFile {server.identity}")
    with agent_that(tmp_path / "agent", answer) as path:
        log_in(server, target, agent=path)
        with pytest.raises(LoginError, match=words) as caught:
            log_in(server, target, identity=(), agent=path)
    assert str(caught.value).isprintable()
    assert (caught.value.reason, caught.value.attempts[-1].reason) == (reason, reason)


def test_an_agent_that_has_stopped_answering_is_not_asked_for_another_signature(
    own_sshd: Start, ssh: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.session.agent._SIGNATURE", 0.5)
    keys = [string(b"ssh-ed25519") + string(os.urandom(32)) for _ in range(3)]
    listed = packet(b"\x0c" + (3).to_bytes(4, "big") + b"".join(string(key) + string(b"mine") for key in keys))
    server = own_sshd()
    configure(ssh, server)
    with agent_that(tmp_path / "agent", says(listed)) as path, pytest.raises(LoginError) as caught:
        log_in(server, target, agent=path)
    assert str(caught.value).count("no answer within 0.5 s") == 1
    assert str(caught.value).count("the agent has stopped answering") == 2
