"""Refused host keys: the client sends nothing after its NEWKEYS, to a peer or to any jump host."""

from __future__ import annotations

import contextlib
import fcntl
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import paramiko
import pytest
from paramiko.message import Message

from peerstage import RemotePeer, SSHOptions
from peerstage.errors import (
    ChangedHostKey,
    ConnectError,
    HostKeyError,
    MismatchedHostKey,
    ProtocolError,
    RevokedHostKey,
    StageError,
    UnknownHostKey,
)
from peerstage.reasons import Reason
from peerstage.ssh._paramiko.client_transport import ClientTransport
from peerstage.ssh.connect import client_connection
from peerstage.ssh.hostkeys.verifier import HostKeyVerifier
from support.keys import certify, make_key, public_key
from support.recording import count_bytes_after_newkeys, record_connection
from support.ssh_server import listening, options_for, paramiko_handler
from support.sshd import Sshd
from support.waiting import wait_until


class Case:
    """One host, for known_hosts lines about it."""

    def __init__(self, server: Sshd, port: int, tmp_path: Path) -> None:
        self.name = f"[127.0.0.1]:{port}"
        self.real = public_key(server.home / "host")
        self.tmp_path = tmp_path

    def another(self, kind: str = "ed25519") -> str:
        path = self.tmp_path / f"another_{kind}"
        return public_key(path if path.exists() else make_key(path, key_type=kind))


#: The known_hosts lines, the error, and options.
REFUSALS: dict[str, tuple[Callable[[Case], str], type[HostKeyError], dict[str, Any]]] = {
    "unknown": (lambda case: "", UnknownHostKey, {}),
    "changed": (lambda case: f"{case.name} {case.another()}\n", ChangedHostKey, {}),
    "revoked": (lambda case: f"@revoked {case.name} {case.real}\n{case.name} {case.real}\n", RevokedHostKey, {}),
    "known by another type": (lambda case: f"{case.name} {case.another('ecdsa')}\n", MismatchedHostKey, {}),
    "known as another host": (lambda case: f"db2 {case.real}\n", UnknownHostKey, {}),
    "negated": (lambda case: f"!127.0.0.1,!{case.name},* {case.real}\n", UnknownHostKey, {}),
    "only an authority": (lambda case: f"@cert-authority * {case.another()}\n", UnknownHostKey, {}),
    "an authority's own key": (lambda case: f"@cert-authority * {case.real}\n", UnknownHostKey, {}),
    "invalid lines": (lambda case: f"@trusted * {case.real}\n{case.name} ssh-rsa AAAA\n", UnknownHostKey, {}),
    "not the pinned one": (lambda case: f"* {case.real}\n", MismatchedHostKey, {"host_key": "SHA256:" + "A" * 43}),
}  # fmt: skip


@contextlib.contextmanager
def recorded_chain(*servers: Sshd) -> Iterator[list[tuple[int, bytearray]]]:
    """Record the connection to each server."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(record_connection(server.port)) for server in servers]


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("refused", [0, 1, 2], ids=["the peer", "the first hop", "the second hop"])
def test_nothing_is_sent_after_our_newkeys(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], tmp_path: Path, target: Path, refusal: str, refused: int
) -> None:
    knows, kind, options = REFUSALS[refusal]
    if options and refused:
        options = {}  # the pinned fingerprint is for the peer only
        knows, kind = REFUSALS["unknown"][:2]
    servers = [own_sshd() for _ in range(refused + 1)] if refused < 2 else [own_sshd() for _ in range(3)]
    for one in servers[1:]:
        (one.home / "authorized_keys").write_bytes((servers[0].home / "id.pub").read_bytes())
    peer, hops = servers[0], servers[1:]
    with recorded_chain(*servers) as recorded:
        known = ""
        for number, (server, (port, _)) in enumerate(zip(servers, recorded, strict=True)):
            case = Case(server, port, tmp_path)
            known += knows(case) if number == refused else f"{case.name} {case.real}\n"
        jump = ",".join(f"{hop.user}@127.0.0.1:{port}" for hop, (port, _) in zip(hops, recorded[1:], strict=True))
        ssh = peer.options(port=recorded[0][0], known_hosts=known.encode(), jump=jump or None, **options)
        with pytest.raises(HostKeyError, match="SHA256:") as caught:
            RemotePeer("127.0.0.1", "/c", "/tmp", peer.user, ssh=ssh).stagePeer(str(target))
    assert type(caught.value) is kind
    assert ("Jump host" in str(caught.value)) is bool(refused)
    assert bool(caught.value.hop) is bool(refused)
    assert str(caught.value).isprintable()
    _, sent = recorded[refused]
    assert count_bytes_after_newkeys(bytes(sent)) == 0
    for before in range(1, refused):
        assert count_bytes_after_newkeys(bytes(recorded[before][1])) > 100, "the hops before it were used"
    assert "Accepted" not in servers[refused].log


def test_nothing_is_sent_after_an_invalid_certificate(
    own_sshd: Callable[..., Sshd], tmp_path: Path, target: Path
) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    certificate = certify(key, authority, "127.0.0.1", host=True, validity="20200101:20200102")
    server = own_sshd(extra=f"HostKey {key}\nHostCertificate {certificate}")
    with record_connection(server.port) as (port, sent):
        ssh = server.options(port=port, known_hosts=f"@cert-authority * {public_key(authority)}\n".encode())
        with pytest.raises(MismatchedHostKey, match="expired") as caught:
            RemotePeer("127.0.0.1", "/c", "/tmp", server.user, ssh=ssh).stagePeer(str(target))
    assert caught.value.reason is Reason.HOST_CERTIFICATE_INVALID
    assert count_bytes_after_newkeys(bytes(sent)) == 0


def test_recording_sees_a_login(own_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    server = own_sshd()
    (tmp_path / "cback.collect").touch()
    with record_connection(server.port) as (port, sent):
        ssh = server.options(port=port, known_hosts=f"* {public_key(server.home / 'host')}\n".encode())
        assert RemotePeer("127.0.0.1", str(tmp_path), "/tmp", server.user, ssh=ssh).checkCollectIndicator()
    assert count_bytes_after_newkeys(bytes(sent)) > 100


# Servers that send requests before the host key is verified.


@pytest.fixture(scope="module")
def host_key() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


REQUESTS = 20 * [80, 90, 191, 5]


def keep_sending(transport: paramiko.Transport) -> None:
    """After the key exchange, send requests that want replies, channel opens, and unknown messages."""

    def send() -> None:
        hidden: Any = transport
        wait_until(lambda: hidden.initial_kex_done)
        with contextlib.suppress(Exception):
            for kind in REQUESTS:
                message = Message()
                message.add_byte(bytes([kind]))
                message.add_string("what-is@example.com")
                message.add_boolean(True)
                hidden._send_message(message)

    threading.Thread(target=send, daemon=True).start()


def count_unread_bytes(transport: ClientTransport) -> int:
    """Return the number of bytes received and not read yet."""
    hidden: Any = transport
    waiting = fcntl.ioctl(hidden.sock, termios.FIONREAD, bytes(4))
    return int.from_bytes(waiting, sys.byteorder) + cast(int, hidden.packetizer._end - hidden.packetizer._start)


def test_requests_of_a_server_get_no_reply_before_its_key_is_verified(
    host_key: paramiko.PKey, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transports: list[ClientTransport] = []
    exchange_keys = client_connection.exchange_keys

    def exchange(transport: ClientTransport, *others: Any) -> None:
        transports.append(transport)
        exchange_keys(transport, *others)

    def verify(self: HostKeyVerifier, presented: bytes, **kwargs: object) -> None:
        wait_until(lambda: count_unread_bytes(transports[0]) > len(REQUESTS) * 32)  # all requests have arrived
        raise UnknownHostKey("SHA256:")

    monkeypatch.setattr(client_connection, "exchange_keys", exchange)
    monkeypatch.setattr(HostKeyVerifier, "verify", verify)
    with (
        listening(paramiko_handler(key=host_key, prepare=keep_sending)) as server,
        record_connection(server) as (port, sent),
        pytest.raises(UnknownHostKey),
    ):
        connect(port, target, host_key)
    assert count_bytes_after_newkeys(bytes(sent)) == 0


def connect(port: int, target: Path, host_key: paramiko.PKey) -> None:
    ssh = options_for(port, host_key, pkey=paramiko.ECDSAKey.generate())
    RemotePeer("127.0.0.1", "/c", "/tmp", "backup", ssh=ssh).stagePeer(str(target))


@pytest.mark.parametrize("key_type", ["ed25519", "ecdsa", "rsa"])
def test_server_without_the_private_key_of_its_host_key_is_refused(tmp_path: Path, target: Path, key_type: str) -> None:
    key, other = (paramiko.PKey.from_path(make_key(tmp_path / name, key_type=key_type)) for name in ("key", "other"))
    key.sign_ssh_data = other.sign_ssh_data  # type: ignore[method-assign]
    with (
        listening(paramiko_handler(key=key)) as server,
        record_connection(server) as (port, sent),
        pytest.raises(ConnectError, match=r"Signature verification .* failed"),
    ):
        connect(port, target, key)
    assert len(sent) < 5000


class Presents:
    """Has a server present another key, or sign with another algorithm, than negotiated."""

    def __init__(self, presented: paramiko.PKey, *, negotiated: str, signs_with: str | None = None) -> None:
        self.presented = presented
        self.negotiated = negotiated
        self.signs_with = signs_with

    def __call__(self, transport: Any) -> None:
        transport._preferred_keys = (self.negotiated,)
        transport.server_key_dict = {self.negotiated: self.presented}
        if self.signs_with is not None:
            sign = self.presented.sign_ssh_data
            signs_with = self.signs_with
            self.presented.sign_ssh_data = lambda data, algorithm=None: sign(data, signs_with)  # type: ignore[method-assign]


def as_certificate(key: paramiko.PKey, certificate: Path) -> paramiko.PKey:
    """Have paramiko's server present *key* as that certificate."""
    blob = paramiko.pkey.PublicBlob.from_file(str(certificate)).key_blob  # type: ignore[attr-defined]
    key.asbytes = lambda: blob  # type: ignore[method-assign]
    return key


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize(
    "fault",
    ["another type", "a certificate for a key", "a key for a certificate", "another signature", "another curve"],
)
def test_key_of_another_type_than_negotiated_is_refused(tmp_path: Path, target: Path, fault: str) -> None:
    ed25519 = make_key(tmp_path / "ed25519")
    key, certified = (paramiko.Ed25519Key.from_private_key_file(str(ed25519)) for _ in range(2))
    certificate = certify(ed25519, make_key(tmp_path / "authority"), "127.0.0.1", host=True)
    rsa, ecdsa = paramiko.RSAKey.generate(2048), paramiko.ECDSAKey.generate(bits=384)
    faults: dict[str, Presents] = {
        "another type": Presents(key, negotiated="rsa-sha2-512"),
        "a certificate for a key": Presents(as_certificate(certified, certificate), negotiated="ssh-ed25519"),
        "a key for a certificate": Presents(key, negotiated="ssh-ed25519-cert-v01@openssh.com"),
        "another signature": Presents(rsa, negotiated="rsa-sha2-512", signs_with="rsa-sha2-256"),
        "another curve": Presents(ecdsa, negotiated="ecdsa-sha2-nistp256"),
    }
    with (
        listening(paramiko_handler(key=ecdsa, prepare=faults[fault])) as server,
        record_connection(server) as (port, sent),
    ):
        lines = [f"* {public_key(ed25519)}", f"* {rsa.get_name()} {rsa.get_base64()}"]
        lines += [
            f"* {ecdsa.get_name()} {ecdsa.get_base64()}",
            f"@cert-authority * {public_key(tmp_path / 'authority')}",
        ]
        ssh = SSHOptions(port=port, known_hosts="\n".join(lines).encode(), config=(), agent=False, password="sesame")
        with pytest.raises(StageError) as caught:
            RemotePeer("127.0.0.1", "/c", "/tmp", "backup", ssh=ssh).stagePeer(str(target))
    assert isinstance(caught.value, ProtocolError), caught.value
    assert "was negotiated" in str(caught.value)
    assert len(sent) < 5000
