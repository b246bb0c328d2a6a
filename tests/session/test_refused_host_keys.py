"""A host key that is refused: nothing is said to that host after our NEWKEYS, be it the first one or beyond hops."""

from __future__ import annotations

import contextlib
import fcntl
import io
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
    HostKeyError,
    MismatchedHostKey,
    ProtocolError,
    RevokedHostKey,
    StageError,
    UnknownHostKey,
)
from peerstage.reasons import Reason
from peerstage.session import reach
from peerstage.session._paramiko.transport import ClientTransport
from peerstage.session.host_key import HostKeys
from support.keys import certify, make_key, public
from support.recording import bytes_after_newkeys, recording
from support.ssh_server import listening, made_of_paramiko
from support.sshd import Sshd
from support.waiting import wait_until


class Case:
    """One host, and what is known of it that leads to a refusal."""

    def __init__(self, server: Sshd, port: int, tmp_path: Path) -> None:
        self.place = f"[127.0.0.1]:{port}"
        self.real = public(server.home / "host")
        self.tmp_path = tmp_path

    def another(self, kind: str = "ed25519") -> str:
        path = self.tmp_path / f"another_{kind}"
        return public(path if path.exists() else make_key(path, kind=kind))


#: What known_hosts says of the host, what it is refused as, and options.
REFUSALS: dict[str, tuple[Callable[[Case], str], type[HostKeyError], dict[str, Any]]] = {
    "unknown": (lambda case: "", UnknownHostKey, {}),
    "changed": (lambda case: f"{case.place} {case.another()}\n", ChangedHostKey, {}),
    "revoked": (lambda case: f"@revoked {case.place} {case.real}\n{case.place} {case.real}\n", RevokedHostKey, {}),
    "known by another type": (lambda case: f"{case.place} {case.another('ecdsa')}\n", MismatchedHostKey, {}),
    "known as somebody else": (lambda case: f"db2 {case.real}\n", UnknownHostKey, {}),
    "negated": (lambda case: f"!127.0.0.1,!{case.place},* {case.real}\n", UnknownHostKey, {}),
    "only an authority": (lambda case: f"@cert-authority * {case.another()}\n", UnknownHostKey, {}),
    "an authority's own key": (lambda case: f"@cert-authority * {case.real}\n", UnknownHostKey, {}),
    "unreadable lines": (lambda case: f"@trusted * {case.real}\n{case.place} ssh-rsa AAAA\n", UnknownHostKey, {}),
    "not the pinned one": (lambda case: f"* {case.real}\n", MismatchedHostKey, {"host_key": "SHA256:" + "A" * 43}),
}  # fmt: skip


@contextlib.contextmanager
def recorded_chain(*servers: Sshd) -> Iterator[list[tuple[int, bytearray]]]:
    """A recording proxy in front of each server."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(recording(server.port)) for server in servers]


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("refused", [0, 1, 2], ids=["the peer", "the first hop", "the second hop"])
def test_nothing_is_said_after_our_newkeys(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], tmp_path: Path, target: Path, refusal: str, refused: int
) -> None:
    knows, kind, options = REFUSALS[refusal]
    if options and refused:
        options = {}  # a pinned key is the peer's alone
        knows, kind = REFUSALS["unknown"][:2]
    servers = [own_sshd() for _ in range(refused + 1)] if refused < 2 else [own_sshd() for _ in range(3)]
    for one in servers[1:]:
        (one.home / "authorized_keys").write_bytes((servers[0].home / "id.pub").read_bytes())
    peer, hops = servers[0], servers[1:]
    with recorded_chain(*servers) as places:
        known = ""
        for number, (server, (port, _)) in enumerate(zip(servers, places, strict=True)):
            case = Case(server, port, tmp_path)
            known += knows(case) if number == refused else f"{case.place} {case.real}\n"
        jump = ",".join(f"{hop.user}@127.0.0.1:{port}" for hop, (port, _) in zip(hops, places[1:], strict=True))
        ssh = peer.options(port=places[0][0], known_hosts=known.encode(), jump=jump or None, **options)
        with pytest.raises(HostKeyError, match="SHA256:") as caught:
            RemotePeer("127.0.0.1", "/c", "/tmp", peer.user, ssh=ssh).stagePeer(str(target))
    assert type(caught.value) is kind
    assert ("Jump host" in str(caught.value)) is bool(refused)
    assert bool(caught.value.hop) is bool(refused)
    assert str(caught.value).isprintable()
    _, sent = places[refused]
    assert bytes_after_newkeys(bytes(sent)) == 0
    for before in range(1, refused):
        assert bytes_after_newkeys(bytes(places[before][1])) > 100, "the hops before it were used"
    assert "Accepted" not in servers[refused].log


def test_a_certificate_that_does_not_hold_ends_it_as_early(
    own_sshd: Callable[..., Sshd], tmp_path: Path, target: Path
) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key")
    certificate = certify(key, authority, "127.0.0.1", host=True, validity="20200101:20200102")
    server = own_sshd(extra=f"HostKey {key}\nHostCertificate {certificate}")
    with recording(server.port) as (port, sent):
        ssh = server.options(port=port, known_hosts=f"@cert-authority * {public(authority)}\n".encode())
        with pytest.raises(MismatchedHostKey, match="expired") as caught:
            RemotePeer("127.0.0.1", "/c", "/tmp", server.user, ssh=ssh).stagePeer(str(target))
    assert caught.value.reason is Reason.HOST_CERTIFICATE_INVALID
    assert bytes_after_newkeys(bytes(sent)) == 0


def test_a_login_shows_that_the_recording_would_have_seen_it(own_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    server = own_sshd()
    (tmp_path / "cback.collect").touch()
    with recording(server.port) as (port, sent):
        ssh = server.options(port=port, known_hosts=f"* {public(server.home / 'host')}\n".encode())
        assert RemotePeer("127.0.0.1", str(tmp_path), "/tmp", server.user, ssh=ssh).checkCollectIndicator()
    assert bytes_after_newkeys(bytes(sent)) > 100


# Servers that are not satisfied with that.


@pytest.fixture(scope="module")
def host_key() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


QUESTIONS = 20 * [80, 90, 191, 5]


def talks_on(transport: paramiko.Transport) -> None:
    """Once keys are exchanged, wants replies to requests, opens channels, and sends what nobody knows."""

    def talk() -> None:
        hidden: Any = transport
        wait_until(lambda: hidden.initial_kex_done)
        with contextlib.suppress(Exception):
            for kind in QUESTIONS:
                message = Message()
                message.add_byte(bytes([kind]))
                message.add_string("what-is@example.com")
                message.add_boolean(True)
                hidden._send_message(message)

    threading.Thread(target=talk, daemon=True).start()


def unread(transport: ClientTransport) -> int:
    """Return how many bytes have come and were not looked at."""
    hidden: Any = transport
    waiting = fcntl.ioctl(hidden.sock, termios.FIONREAD, bytes(4))
    return int.from_bytes(waiting, sys.byteorder) + cast(int, hidden.packetizer._end - hidden.packetizer._start)


def test_a_server_that_asks_for_replies_gets_none_before_its_key_was_judged(
    host_key: paramiko.PKey, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transports: list[ClientTransport] = []
    exchange_keys = reach.exchange_keys

    def exchange(transport: ClientTransport, *others: Any) -> None:
        transports.append(transport)
        exchange_keys(transport, *others)

    def judge(self: HostKeys, shown: bytes, **kwargs: object) -> None:
        wait_until(lambda: unread(transports[0]) > len(QUESTIONS) * 32)  # all that was asked has come
        raise UnknownHostKey("SHA256:")

    monkeypatch.setattr(reach, "exchange_keys", exchange)
    monkeypatch.setattr(HostKeys, "judge", judge)
    with (
        listening(made_of_paramiko(key=host_key, prepare=talks_on)) as server,
        recording(server) as (port, sent),
        pytest.raises(UnknownHostKey),
    ):
        connect(port, target, host_key)
    assert bytes_after_newkeys(bytes(sent)) == 0


def connect(port: int, target: Path, host_key: paramiko.PKey) -> None:
    known = f"[127.0.0.1]:{port} {host_key.get_name()} {host_key.get_base64()}\n".encode()
    text = io.StringIO()
    paramiko.ECDSAKey.generate().write_private_key(text)
    ssh = SSHOptions(port=port, known_hosts=known, config=(), agent=False, pkey=text.getvalue().encode())
    RemotePeer("127.0.0.1", "/c", "/tmp", "backup", ssh=ssh).stagePeer(str(target))


class Shows:
    """Bends a server so that it shows another key, or signs by another algorithm, than was agreed on."""

    def __init__(self, shown: paramiko.PKey, *, agreed: str, signs_by: str | None = None) -> None:
        self.shown = shown
        self.agreed = agreed
        self.signs_by = signs_by

    def __call__(self, transport: Any) -> None:
        transport._preferred_keys = (self.agreed,)
        transport.server_key_dict = {self.agreed: self.shown}
        if self.signs_by is not None:
            sign = self.shown.sign_ssh_data
            signs_by = self.signs_by
            self.shown.sign_ssh_data = lambda data, algorithm=None: sign(data, signs_by)  # type: ignore[method-assign]


def as_certificate(key: paramiko.PKey, certificate: Path) -> paramiko.PKey:
    """Return *key* as paramiko's server shows it when it has a certificate."""
    blob = paramiko.pkey.PublicBlob.from_file(str(certificate)).key_blob  # type: ignore[attr-defined]
    key.asbytes = lambda: blob  # type: ignore[method-assign]
    return key


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize(
    "fault",
    ["another type", "a certificate for a key", "a key for a certificate", "another signature", "another curve"],
)
def test_a_key_of_another_type_than_agreed_is_refused(tmp_path: Path, target: Path, fault: str) -> None:
    ed25519 = make_key(tmp_path / "ed25519")
    key, certified = (paramiko.Ed25519Key.from_private_key_file(str(ed25519)) for _ in range(2))
    certificate = certify(ed25519, make_key(tmp_path / "authority"), "127.0.0.1", host=True)
    rsa, ecdsa = paramiko.RSAKey.generate(2048), paramiko.ECDSAKey.generate(bits=384)
    shows: dict[str, Shows] = {
        "another type": Shows(key, agreed="rsa-sha2-512"),
        "a certificate for a key": Shows(as_certificate(certified, certificate), agreed="ssh-ed25519"),
        "a key for a certificate": Shows(key, agreed="ssh-ed25519-cert-v01@openssh.com"),
        "another signature": Shows(rsa, agreed="rsa-sha2-512", signs_by="rsa-sha2-256"),
        "another curve": Shows(ecdsa, agreed="ecdsa-sha2-nistp256"),
    }
    with listening(made_of_paramiko(key=ecdsa, prepare=shows[fault])) as server, recording(server) as (port, sent):
        lines = [f"* {public(ed25519)}", f"* {rsa.get_name()} {rsa.get_base64()}"]
        lines += [f"* {ecdsa.get_name()} {ecdsa.get_base64()}", f"@cert-authority * {public(tmp_path / 'authority')}"]
        ssh = SSHOptions(port=port, known_hosts="\n".join(lines).encode(), config=(), agent=False, password="sesame")
        with pytest.raises(StageError) as caught:
            RemotePeer("127.0.0.1", "/c", "/tmp", "backup", ssh=ssh).stagePeer(str(target))
    assert isinstance(caught.value, ProtocolError), caught.value
    assert "was agreed on" in str(caught.value)
    assert len(sent) < 5000
