"""Misbehaving SSH servers: each causes a `StageError` within its time limit, and leaves nothing running."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest
from paramiko.transport import ChannelMap

from peerstage import Limits, RemotePeer, Retry
from peerstage.errors import (
    ConnectError,
    ConnectionLost,
    LimitExceeded,
    LoginError,
    NoSFTP,
    ProtocolError,
    RemoteError,
    StageError,
)
from peerstage.reasons import Reason
from peerstage.ssh._paramiko.channels import BufferedChannels
from peerstage.ssh._paramiko.client_transport import ClientTransport
from support import ssh_server
from support.agents import SoftwareToken, serve_token_agent
from support.ssh_server import Handler, Policy, listening, options_for, paramiko_handler

pytestmark = pytest.mark.usefixtures("leaves_nothing")

QUICK = Limits(login_timeout=0.7, reply_timeout=0.7, stall_timeout=0.7, deadline=8.0)


@pytest.fixture(scope="module")
def host_key() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


def stage_error(
    handler: Handler,
    target: Path,
    key: paramiko.PKey,
    *,
    transport: str = "sftp",
    limits: Limits = QUICK,
    **options: Any,
) -> StageError:
    """Return the error of staging from *handler*."""
    with listening(handler) as port:
        ssh = options_for(port, key, **{"pkey": paramiko.ECDSAKey.generate(), **options})
        peer = RemotePeer(
            "127.0.0.1", "/collect", "/tmp", "backup", ssh=ssh, limits=limits, retry=Retry(tries=1), transport=transport
        )
        with pytest.raises(StageError) as caught:
            peer.stagePeer(str(target))
    error = caught.value
    assert str(error).startswith("127.0.0.1")
    assert str(error).isprintable()
    assert list(target.iterdir()) == []
    return error


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(
    ("handler", "kind", "words", "reason"),
    [
        (ssh_server.sends_nothing, LimitExceeded, "complete the login", Reason.BANNER_TIMEOUT),
        (
            ssh_server.closes_at_once,
            ConnectError,
            "The SSH connection failed: the server closed the connection before it identified itself",
            Reason.CLOSED_BEFORE_BANNER,
        ),
        (
            ssh_server.rejects_address,
            ConnectError,
            "before it identified itself and sent 'Not allowed at this time'",
            Reason.CLOSED_BEFORE_BANNER,
        ),
        (ssh_server.sends_endless_line, (ConnectError, ProtocolError), "identification", Reason.NOT_SSH),
        (ssh_server.sends_endless_lines, (ConnectError, ProtocolError), "SSH", Reason.NOT_SSH),
        (ssh_server.speaks_http, ConnectError, "SSH", Reason.NOT_SSH),
        (ssh_server.sends_a_huge_packet, (ConnectError, ProtocolError), "packet", Reason.KEY_EXCHANGE_FAILED),
        (ssh_server.stops_after_identification, LimitExceeded, "did not exchange keys", Reason.KEY_EXCHANGE_TIMEOUT),
        (ssh_server.stops_after_kexinit, LimitExceeded, "did not exchange keys", Reason.KEY_EXCHANGE_TIMEOUT),
    ],
)
def test_server_of_another_protocol_or_a_broken_one_is_an_error(
    handler: Handler, kind: Any, words: str, reason: Reason, target: Path, host_key: paramiko.PKey
) -> None:
    error = stage_error(handler, target, host_key)
    assert error.reason is reason
    assert isinstance(error, kind)
    assert words in str(error)


def test_connect_timeout_includes_the_key_exchange(target: Path, host_key: paramiko.PKey) -> None:
    error = stage_error(ssh_server.sends_nothing, target, host_key, connect_timeout=0.2)
    assert "did not answer as an SSH server within 0." in str(error)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(
    ("transport", "policy", "kind", "words", "reason"),
    [
        ("sftp", ssh_server.RefusesEverybody, LoginError, "refused", Reason.LOGIN_REFUSED),
        ("sftp", ssh_server.RefusesChannels, RemoteError, "channel", Reason.SESSION_REFUSED),
        ("sftp", ssh_server.RefusesSubsystems, RemoteError, "sftp subsystem", Reason.NO_SFTP),
        ("sftp", ssh_server.FloodsStderr, ProtocolError, "stderr", Reason.PROTOCOL_VIOLATION),
        ("sftp", ssh_server.SendsBytesOneByOne, StageError, "", Reason.TEXT_BEFORE_PROTOCOL),
        ("sftp", ssh_server.IgnoresTheWindow, StageError, "", Reason.TEXT_BEFORE_PROTOCOL),
        ("sftp", ssh_server.NeverStarts, LimitExceeded, "stall_timeout", Reason.STALLED),
        ("sftp", ssh_server.EndsAtOnce, NoSFTP, "", Reason.NO_SFTP),
        ("scp", ssh_server.RefusesChannels, RemoteError, "channel", Reason.SESSION_REFUSED),
        ("scp", ssh_server.RefusesCommands, RemoteError, "not let this login run commands", Reason.COMMAND_REFUSED),
        ("scp", ssh_server.FloodsStderr, ProtocolError, "stderr", Reason.PROTOCOL_VIOLATION),
        ("scp", ssh_server.SendsBytesOneByOne, StageError, "", Reason.PROTOCOL_VIOLATION),
        ("scp", ssh_server.IgnoresTheWindow, StageError, "", Reason.PROTOCOL_VIOLATION),
        ("scp", ssh_server.NeverStarts, LimitExceeded, "stall_timeout", Reason.STALLED),
        ("scp", ssh_server.EndsAtOnce, StageError, "", Reason.CONNECTION_LOST),
        ("scp", ssh_server.FailsAfterAFile, RemoteError, "status 1", Reason.COMMAND_FAILED),
        ("scp", ssh_server.ClosesWithoutStatus, ConnectionLost, "without an exit status", Reason.CONNECTION_LOST),
        ("scp", ssh_server.KeepsChannelOpen, LimitExceeded, "stall_timeout", Reason.STALLED),
        ("scp", ssh_server.SendsEofWithoutStatus, LimitExceeded, "stall_timeout", Reason.STALLED),
    ],
)
def test_misbehaviour_after_the_login_is_an_error_with_its_reason(
    transport: str, policy: type[Policy], kind: Any, words: str, reason: Reason, target: Path, host_key: paramiko.PKey
) -> None:
    error = stage_error(paramiko_handler(policy, key=host_key), target, host_key, transport=transport)
    assert error.reason is reason
    assert isinstance(error, kind)
    assert words in str(error)


@pytest.mark.usefixtures("patience")
def test_deadline_ends_a_transfer_of_single_bytes(target: Path, host_key: paramiko.PKey) -> None:
    handler = paramiko_handler(ssh_server.SendsSlowly, key=host_key)
    limits = Limits(stall_timeout=0.7, deadline=2.0)
    error = stage_error(handler, target, host_key, transport="scp", limits=limits)
    assert isinstance(error, LimitExceeded)
    assert (error.reason, error.limit) == (Reason.DEADLINE_PASSED, "deadline")
    assert "Limits.deadline" in str(error)


@pytest.mark.parametrize(("what", "name"), [("ciphers", "aes128-cbc"), ("ciphers", "3des-cbc"), ("macs", "hmac-sha1")])
def test_server_with_only_broken_algorithms_is_rejected(
    what: str, name: str, target: Path, host_key: paramiko.PKey
) -> None:
    def offer(transport: Any) -> None:
        setattr(transport, f"_preferred_{what}", (name,))

    error = stage_error(paramiko_handler(key=host_key, prepare=offer), target, host_key)
    assert isinstance(error, ConnectError)
    assert (error.reason, error.algorithm_kind) == (Reason.NO_COMMON_ALGORITHM, what.removesuffix("s"))
    assert f"the server offers {name}. " in str(error)


def test_server_without_strict_kex_is_accepted_with_gcm(target: Path, host_key: paramiko.PKey) -> None:
    error = stage_error(
        paramiko_handler(ssh_server.RefusesSubsystems, key=host_key, strict_kex=False), target, host_key
    )
    assert isinstance(error, RemoteError), "the login succeeded"


def test_server_without_strict_kex_is_rejected_with_etm_only(target: Path, host_key: paramiko.PKey) -> None:
    def offer(transport: Any) -> None:
        transport._preferred_ciphers = ("aes128-ctr",)
        transport._preferred_macs = ("hmac-sha2-256-etm@openssh.com",)

    error = stage_error(paramiko_handler(key=host_key, prepare=offer, strict_kex=False), target, host_key)
    assert isinstance(error, ConnectError)
    assert error.reason is Reason.STRICT_KEX_MISSING
    assert "CVE-2023-48795" in str(error)


def test_login_timeout_ends_endless_login_banners(target: Path, host_key: paramiko.PKey) -> None:
    class SendsBanners(Policy):
        """Answers a login with banners only."""

        def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
            while self.transport.is_active():
                message = paramiko.Message()
                message.add_byte(b"\x35")
                message.add_string("be welcome " * 1000)
                message.add_string("")
                self.transport._send_message(message)
            return paramiko.AUTH_FAILED

    def prepare(transport: Any) -> None:
        SendsBanners.transport = transport  # type: ignore[attr-defined]

    error = stage_error(paramiko_handler(SendsBanners, key=host_key, prepare=prepare), target, host_key)
    assert isinstance(error, LimitExceeded)
    assert (error.reason, error.limit) == (Reason.LOGIN_TIMEOUT, "login_timeout")


def replacing(number: int, *messages: paramiko.Message) -> Any:
    """Return what prepares a server to send *messages* in place of those with a *number*."""

    def prepare(transport: Any) -> None:
        send = transport._send_message

        def send_replaced(message: paramiko.Message) -> None:
            for one in messages if message.asbytes()[0] == number else (message,):
                send(one)

        transport._send_message = send_replaced

    return prepare


def message_of(kind: int, *parts: str | bytes | bool | int) -> paramiko.Message:
    message = paramiko.Message()
    message.add_byte(bytes([kind]))
    for part in parts:
        if isinstance(part, bool):
            message.add_boolean(part)
        elif isinstance(part, int):
            message.add_int(part)
        else:
            message.add_string(part)
    return message


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (message_of(51, "a," * 100_000 + "b", False), LoginError, "The peer offers a, a, a"),
        (message_of(51, "", True), LoginError, "accepted, but another method is required too. Let one key suffice"),
        (message_of(60, "ssh-ed25519", "key"), ProtocolError, "a reply that matches no request"),
    ],
    ids=["a hundred thousand methods", "more methods without a name", "a request for a signature that it has"],
)
def test_strange_replies_to_a_login_are_short_errors(
    target: Path, host_key: paramiko.PKey, answer: paramiko.Message, kind: Any, words: str
) -> None:
    error = stage_error(paramiko_handler(key=host_key, prepare=replacing(52, answer)), target, host_key)
    assert isinstance(error, kind)
    assert words in str(error)
    assert len(str(error)) < 1000


def test_expired_password_is_reported(target: Path, host_key: paramiko.PKey) -> None:
    prepare = replacing(52, message_of(60, "Your password has expired.", ""))
    handler = paramiko_handler(ssh_server.PasswordOnly, key=host_key, prepare=prepare)
    error = stage_error(handler, target, host_key, password="sesame")
    assert isinstance(error, LoginError)
    assert "the password: it has expired, and the peer demands a new one" in str(error)
    assert [(one.label, one.reason) for one in error.attempts][-1] == ("the password", Reason.PASSWORD_EXPIRED)


def test_billions_of_extensions_are_rejected(target: Path, host_key: paramiko.PKey) -> None:
    def flood(transport: Any) -> None:
        message = paramiko.Message()
        message.add_byte(b"\x07")
        message.add_int(0xFFFFFFFF)
        transport._send_message(message)

    handler = paramiko_handler(ssh_server.NeverStarts, key=host_key, after_login=flood)
    error = stage_error(handler, target, host_key)
    assert isinstance(error, ProtocolError)
    assert "extension" in str(error)


def disconnect(text: str | bytes) -> paramiko.Message:
    """Return SSH_MSG_DISCONNECT with the reason BY_APPLICATION (RFC 4253, section 11.1)."""
    message = paramiko.Message()
    message.add_byte(b"\x01")
    message.add_int(11)
    message.add_string(text)
    message.add_string("")
    return message


@pytest.mark.parametrize(
    ("when", "kind", "words"),
    [
        (20, ConnectError, "The SSH connection failed: the server disconnected: 'maintenance until six'."),
        (6, ConnectError, "The SSH connection failed: the server disconnected: 'maintenance until six'."),
        (52, LoginError, "the server disconnected: 'maintenance until six'"),
        (91, ConnectionLost, "The connection was lost: the server disconnected: 'maintenance until six'."),
    ],
    ids=["before the key exchange", "before the login", "during the login", "after the login"],
)
def test_text_of_a_disconnect_is_in_the_error(
    target: Path, host_key: paramiko.PKey, when: int, kind: Any, words: str
) -> None:
    prepare = replacing(when, disconnect("maintenance until six"))
    error = stage_error(paramiko_handler(key=host_key, prepare=prepare), target, host_key)
    assert isinstance(error, kind)
    assert words in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\x1b[31mgo\naway\u202e" + "!" * 100_000, r": '\x1b[31mgo\naway\u202e!!!"),
        (b"\xff go \xfe", ": '\ufffd go \ufffd'"),
        ("", "the server disconnected with reason code 11."),
    ],
    ids=["escapes", "no text", "nothing"],
)
def test_text_of_a_disconnect_is_escaped_and_bounded(
    target: Path, host_key: paramiko.PKey, text: str | bytes, words: str
) -> None:
    error = stage_error(paramiko_handler(key=host_key, prepare=replacing(91, disconnect(text))), target, host_key)
    assert isinstance(error, ConnectionLost)
    assert words in str(error)
    assert len(str(error)) < 500


def test_truncated_disconnect_is_a_lost_connection(target: Path, host_key: paramiko.PKey) -> None:
    error = stage_error(paramiko_handler(key=host_key, prepare=replacing(91, message_of(1))), target, host_key)
    assert isinstance(error, ConnectionLost)


@pytest.fixture
def slow_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delay the client's thread between closing its channels and marking the connection as inactive."""

    def wait_for_close() -> None:
        thread = threading.current_thread()
        while isinstance(thread, ClientTransport) and thread.is_active():
            time.sleep(0.01)

    last = SimpleNamespace(remote_chanid=-1, closed=True, _unlink=wait_for_close)
    monkeypatch.setattr(BufferedChannels, "values", lambda channels: [*ChannelMap.values(channels), last])


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_connection_that_ends_before_the_reply_is_lost_not_refused(
    slow_close: None, target: Path, host_key: paramiko.PKey, transport: str
) -> None:
    prepare = replacing(99, disconnect("maintenance until six"))
    error = stage_error(paramiko_handler(key=host_key, prepare=prepare), target, host_key, transport=transport)
    assert isinstance(error, ConnectionLost)
    assert "disconnected: 'maintenance until six'" in str(error)


@pytest.mark.parametrize(("transport", "kind"), [("sftp", NoSFTP), ("scp", RemoteError)])
@pytest.mark.parametrize("answer", [100, 97], ids=["failure", "close"])
def test_refusal_counts_even_if_the_connection_ends_after_it(
    target: Path, host_key: paramiko.PKey, answer: int, transport: str, kind: type[StageError]
) -> None:
    prepare = replacing(99, message_of(answer, 0), disconnect("maintenance until six"))
    error = stage_error(paramiko_handler(key=host_key, prepare=prepare), target, host_key, transport=transport)
    assert type(error) is kind


def test_password_is_tried_after_the_keys(target: Path, host_key: paramiko.PKey) -> None:
    class NoSftp(ssh_server.PasswordOnly):
        """Accepts a password, and has no SFTP."""

        def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
            return False

    right = stage_error(paramiko_handler(NoSftp, key=host_key), target, host_key, password="sesame")
    assert isinstance(right, RemoteError)
    wrong = stage_error(paramiko_handler(NoSftp, key=host_key), target, host_key, password="abracadabra")
    assert isinstance(wrong, LoginError)
    assert "the password: refused" in str(wrong)
    assert "abracadabra" not in str(wrong)


def test_private_key_may_be_bytes(target: Path, host_key: paramiko.PKey) -> None:
    text = io.StringIO()
    paramiko.ECDSAKey.generate().write_private_key(text)
    error = stage_error(
        paramiko_handler(ssh_server.RefusesSubsystems, key=host_key), target, host_key, pkey=text.getvalue().encode()
    )
    assert isinstance(error, RemoteError)
    error = stage_error(paramiko_handler(key=host_key), target, host_key, pkey=b"nonsense")
    assert "pkey" in str(error)


def test_reply_about_a_key_that_was_not_offered_violates_the_protocol(
    target: Path, host_key: paramiko.PKey, tmp_path: Path
) -> None:
    token, other = SoftwareToken("ed25519"), SoftwareToken("ed25519")
    accepts = replacing(60, message_of(60, "sk-ssh-ed25519@openssh.com", other.blob))

    def prepare(transport: Any) -> None:
        transport._preferred_pubkeys = ("sk-ssh-ed25519@openssh.com",)
        transport._key_info = {**transport._key_info, "sk-ssh-ed25519@openssh.com": lambda key: host_key}
        accepts(transport)

    with serve_token_agent(tmp_path / "agent", token) as path:
        server = paramiko_handler(key=host_key, prepare=prepare)
        error = stage_error(server, target, host_key, pkey=None, identity=(), agent=path)
    assert isinstance(error, ProtocolError)
    assert "a reply about a key that was not offered" in str(error)
    assert token.signatures == 0


@pytest.mark.parametrize(
    ("accepted", "kind", "words"),
    [
        ("rsa-sha2-256", RemoteError, "subsystem"),
        ("ssh-ed25519", LoginError, "accepts no rsa-sha2-512 or rsa-sha2-256 signatures"),
    ],
)
def test_rsa_key_signs_only_with_an_algorithm_that_the_server_lists(
    target: Path, host_key: paramiko.PKey, accepted: str, kind: type[StageError], words: str
) -> None:
    def prepare(transport: Any) -> None:
        transport._preferred_pubkeys = (accepted,)

    server = paramiko_handler(ssh_server.RefusesSubsystems, key=host_key, prepare=prepare)
    error = stage_error(server, target, host_key, pkey=paramiko.RSAKey.generate(2048))
    assert isinstance(error, kind), error
    assert words in str(error)


def test_fido_key_is_not_offered_to_a_server_without_support(
    target: Path, host_key: paramiko.PKey, tmp_path: Path
) -> None:
    token = SoftwareToken("ed25519")
    with serve_token_agent(tmp_path / "agent", token) as path:
        error = stage_error(paramiko_handler(key=host_key), target, host_key, pkey=None, identity=(), agent=path)
    assert isinstance(error, LoginError), "a server of this kind closes the connection when offered one"
    assert "the peer accepts no keys on FIDO tokens" in str(error)
