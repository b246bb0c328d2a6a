"""SSH servers that misbehave: each ends in an error of ours within its bound, and leaves nothing running."""

from __future__ import annotations

import io
import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest
from paramiko.transport import ChannelMap

from peerstage import Limits, RemotePeer, Retry, SSHOptions
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
from peerstage.session._paramiko.channels import BufferedChannels
from peerstage.session._paramiko.transport import ClientTransport
from support import ssh_server
from support.agents import SoftwareToken, token_agent
from support.ssh_server import Handler, Policy, listening, made_of_paramiko

pytestmark = pytest.mark.usefixtures("leaves_nothing")

QUICK = Limits(login_timeout=0.7, reply_timeout=0.7, stall_timeout=0.7, deadline=8.0)


@pytest.fixture(scope="module")
def host_key() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


@pytest.fixture(autouse=True)
def quiet_server() -> None:
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)


def attempt(
    handler: Handler,
    target: Path,
    key: paramiko.PKey,
    *,
    transport: str = "sftp",
    limits: Limits = QUICK,
    **options: Any,
) -> StageError:
    """Stage from *handler*; return the error."""
    with listening(handler) as port:
        known = f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n".encode()
        values = {"known_hosts": known, "pkey": paramiko.ECDSAKey.generate(), "agent": False, **options}
        ssh = SSHOptions(port=port, config=(), **values)
        peer = RemotePeer(
            "127.0.0.1",
            "/collect",
            "/tmp",
            "backup",
            ssh=ssh,
            limits=limits,
            retry=Retry(tries=1),
            transport=transport,
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
        (ssh_server.never_speaks, LimitExceeded, "complete the login", Reason.BANNER_TIMEOUT),
        (
            ssh_server.closes_at_once,
            ConnectError,
            "No SSH session came about: it hangs up",
            Reason.CLOSED_BEFORE_BANNER,
        ),
        (
            ssh_server.turns_away,
            ConnectError,
            "the server hangs up, saying 'Not allowed at this time'",
            Reason.CLOSED_BEFORE_BANNER,
        ),
        (ssh_server.speaks_without_end, (ConnectError, ProtocolError), "identification", Reason.NOT_SSH),
        (ssh_server.greets_without_end, (ConnectError, ProtocolError), "SSH", Reason.NOT_SSH),
        (ssh_server.speaks_http, ConnectError, "SSH", Reason.NOT_SSH),
        (ssh_server.sends_a_huge_packet, (ConnectError, ProtocolError), "packet", Reason.KEY_EXCHANGE_FAILED),
        (ssh_server.is_silent_after_its_name, LimitExceeded, "did not exchange keys", Reason.KEY_EXCHANGE_TIMEOUT),
        (ssh_server.is_silent_after_kexinit, LimitExceeded, "did not exchange keys", Reason.KEY_EXCHANGE_TIMEOUT),
    ],
)
def test_what_is_no_ssh_server_ends_in_an_error(
    handler: Handler, kind: Any, words: str, reason: Reason, target: Path, host_key: paramiko.PKey
) -> None:
    error = attempt(handler, target, host_key)
    assert error.reason is reason
    assert isinstance(error, kind)
    assert words in str(error)


def test_the_time_to_connect_holds_until_the_keys_are_exchanged(target: Path, host_key: paramiko.PKey) -> None:
    error = attempt(ssh_server.never_speaks, target, host_key, connect_timeout=0.2)
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
        ("scp", ssh_server.RefusesCommands, RemoteError, "no command", Reason.COMMAND_REFUSED),
        ("scp", ssh_server.FloodsStderr, ProtocolError, "stderr", Reason.PROTOCOL_VIOLATION),
        ("scp", ssh_server.SendsBytesOneByOne, StageError, "", Reason.PROTOCOL_VIOLATION),
        ("scp", ssh_server.IgnoresTheWindow, StageError, "", Reason.PROTOCOL_VIOLATION),
        ("scp", ssh_server.NeverStarts, LimitExceeded, "stall_timeout", Reason.STALLED),
        ("scp", ssh_server.EndsAtOnce, StageError, "", Reason.CONNECTION_LOST),
        ("scp", ssh_server.FailsAfterAFile, RemoteError, "status 1", Reason.COMMAND_FAILED),
        (
            "scp",
            ssh_server.LeavesWithoutAStatus,
            ConnectionLost,
            "without saying whether that was all",
            Reason.CONNECTION_LOST,
        ),
        ("scp", ssh_server.NeverLeaves, LimitExceeded, "stall_timeout", Reason.STALLED),
        ("scp", ssh_server.NeverSaysHowItEnded, LimitExceeded, "stall_timeout", Reason.STALLED),
    ],
)
def test_servers_that_misbehave_after_the_key_exchange_end_in_an_error(
    transport: str,
    policy: type[Policy],
    kind: Any,
    words: str,
    reason: Reason,
    target: Path,
    host_key: paramiko.PKey,
) -> None:
    error = attempt(made_of_paramiko(policy, key=host_key), target, host_key, transport=transport)
    assert error.reason is reason
    assert isinstance(error, kind)
    assert words in str(error)


@pytest.mark.usefixtures("patience")
def test_a_byte_at_a_time_is_ended_by_the_deadline(target: Path, host_key: paramiko.PKey) -> None:
    handler = made_of_paramiko(ssh_server.Drips, key=host_key)
    limits = Limits(stall_timeout=0.7, deadline=2.0)
    error = attempt(handler, target, host_key, transport="scp", limits=limits)
    assert isinstance(error, LimitExceeded)
    assert (error.reason, error.limit) == (Reason.DEADLINE_PASSED, "deadline")
    assert "Limits.deadline" in str(error)


@pytest.mark.parametrize(
    ("what", "name"),
    [("ciphers", "aes128-cbc"), ("ciphers", "3des-cbc"), ("macs", "hmac-sha1")],
)
def test_servers_that_offer_only_what_is_broken_are_refused(
    what: str, name: str, target: Path, host_key: paramiko.PKey
) -> None:
    def offer(transport: Any) -> None:
        setattr(transport, f"_preferred_{what}", (name,))

    error = attempt(made_of_paramiko(key=host_key, prepare=offer), target, host_key)
    assert isinstance(error, ConnectError)
    assert (error.reason, error.algorithm) == (Reason.NO_COMMON_ALGORITHM, what.removesuffix("s"))
    assert "common" in str(error)


def test_a_server_without_strict_key_exchange_is_served_with_gcm(target: Path, host_key: paramiko.PKey) -> None:
    error = attempt(made_of_paramiko(ssh_server.RefusesSubsystems, key=host_key, strict_kex=False), target, host_key)
    assert isinstance(error, RemoteError), "it got as far as the subsystem"


def test_a_server_without_strict_key_exchange_and_with_etm_only_is_refused(
    target: Path, host_key: paramiko.PKey
) -> None:
    def offer(transport: Any) -> None:
        transport._preferred_ciphers = ("aes128-ctr",)
        transport._preferred_macs = ("hmac-sha2-256-etm@openssh.com",)

    error = attempt(made_of_paramiko(key=host_key, prepare=offer, strict_kex=False), target, host_key)
    assert isinstance(error, ConnectError)
    assert error.reason is Reason.STRICT_KEX_MISSING
    assert "CVE-2023-48795" in str(error)


def test_an_endless_login_banner_ends_with_the_login(target: Path, host_key: paramiko.PKey) -> None:
    class Babbles(Policy):
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
        Babbles.transport = transport  # type: ignore[attr-defined]

    error = attempt(made_of_paramiko(Babbles, key=host_key, prepare=prepare), target, host_key)
    assert isinstance(error, LimitExceeded)
    assert (error.reason, error.limit) == (Reason.LOGIN_TIMEOUT, "login_timeout")


def saying(kind: int, *answers: paramiko.Message) -> Any:
    """Bend a server: *answers* take the place of its messages of a kind."""

    def prepare(transport: Any) -> None:
        send = transport._send_message

        def send_bent(message: paramiko.Message) -> None:
            for one in answers if message.asbytes()[0] == kind else (message,):
                send(one)

        transport._send_message = send_bent

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
        (message_of(51, "a," * 100_000 + "b", False), LoginError, "The peer wants a, a, a"),
        (message_of(51, "", True), LoginError, "accepted, and more is wanted. Let one key suffice"),
        (message_of(60, "ssh-ed25519", "key"), ProtocolError, "an answer that belongs to no question"),
    ],
    ids=["wants a hundred thousand things", "wants more and names nothing", "asks for a signature that it has"],
)
def test_strange_answers_to_a_login_end_in_a_short_error(
    target: Path, host_key: paramiko.PKey, answer: paramiko.Message, kind: Any, words: str
) -> None:
    error = attempt(made_of_paramiko(key=host_key, prepare=saying(52, answer)), target, host_key)
    assert isinstance(error, kind)
    assert words in str(error)
    assert len(str(error)) < 1000


def test_a_password_that_has_expired_is_said_to(target: Path, host_key: paramiko.PKey) -> None:
    prepare = saying(52, message_of(60, "Your password has expired.", ""))
    handler = made_of_paramiko(ssh_server.PasswordOnly, key=host_key, prepare=prepare)
    error = attempt(handler, target, host_key, password="sesame")
    assert isinstance(error, LoginError)
    assert "the password: it has expired, and the peer wants another one" in str(error)
    assert [(one.label, one.reason) for one in error.attempts][-1] == ("the password", Reason.PASSWORD_EXPIRED)


def test_extensions_by_the_billion_are_refused(target: Path, host_key: paramiko.PKey) -> None:
    def flood(transport: Any) -> None:
        message = paramiko.Message()
        message.add_byte(b"\x07")
        message.add_int(0xFFFFFFFF)
        transport._send_message(message)

    handler = made_of_paramiko(ssh_server.NeverStarts, key=host_key, after_login=flood)
    error = attempt(handler, target, host_key)
    assert isinstance(error, ProtocolError)
    assert "extension" in str(error)


def disconnect(text: str | bytes) -> paramiko.Message:
    """Return SSH_MSG_DISCONNECT (RFC 4253, 11.1) by application."""
    message = paramiko.Message()
    message.add_byte(b"\x01")
    message.add_int(11)
    message.add_string(text)
    message.add_string("")
    return message


@pytest.mark.parametrize(
    ("when", "kind", "words"),
    [
        (20, ConnectError, "No SSH session came about: the server disconnected, saying 'maintenance until six'."),
        (6, ConnectError, "No SSH session came about: the server disconnected, saying 'maintenance until six'."),
        (52, LoginError, "the server disconnected, saying 'maintenance until six'"),
        (91, ConnectionLost, "The connection was lost: the server disconnected, saying 'maintenance until six'."),
    ],
    ids=["before keys are exchanged", "before the login", "at the login", "after the login"],
)
def test_what_a_server_says_when_it_disconnects_is_in_the_error(
    target: Path, host_key: paramiko.PKey, when: int, kind: Any, words: str
) -> None:
    prepare = saying(when, disconnect("maintenance until six"))
    error = attempt(made_of_paramiko(key=host_key, prepare=prepare), target, host_key)
    assert isinstance(error, kind)
    assert words in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\x1b[31mgo\naway\u202e" + "!" * 100_000, r"saying '\x1b[31mgo\naway\u202e!!!"),
        (b"\xff go \xfe", "saying '\ufffd go \ufffd'"),
        ("", "the server disconnected, with reason 11."),
    ],
    ids=["escapes", "no text", "nothing"],
)
def test_what_a_server_says_when_it_disconnects_is_escaped_and_bounded(
    target: Path, host_key: paramiko.PKey, text: str | bytes, words: str
) -> None:
    error = attempt(made_of_paramiko(key=host_key, prepare=saying(91, disconnect(text))), target, host_key)
    assert isinstance(error, ConnectionLost)
    assert words in str(error)
    assert len(str(error)) < 500


def test_a_disconnect_that_is_cut_short_is_one_all_the_same(target: Path, host_key: paramiko.PKey) -> None:
    error = attempt(made_of_paramiko(key=host_key, prepare=saying(91, message_of(1))), target, host_key)
    assert isinstance(error, ConnectionLost)


@pytest.fixture
def slow_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the client's thread wait between the end of its channels and that of the connection, until that is closed."""

    def wait_for_close() -> None:
        thread = threading.current_thread()
        while isinstance(thread, ClientTransport) and thread.is_active():
            time.sleep(0.01)

    last = SimpleNamespace(remote_chanid=-1, closed=True, _unlink=wait_for_close)
    monkeypatch.setattr(BufferedChannels, "values", lambda channels: [*ChannelMap.values(channels), last])


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_a_connection_that_ends_before_an_answer_came_is_lost_and_no_refusal(
    slow_end: None, target: Path, host_key: paramiko.PKey, transport: str
) -> None:
    prepare = saying(99, disconnect("maintenance until six"))
    error = attempt(made_of_paramiko(key=host_key, prepare=prepare), target, host_key, transport=transport)
    assert isinstance(error, ConnectionLost)
    assert "saying 'maintenance until six'" in str(error)


@pytest.mark.parametrize(("transport", "kind"), [("sftp", NoSFTP), ("scp", RemoteError)])
@pytest.mark.parametrize("answer", [100, 97], ids=["failure", "close"])
def test_a_refusal_is_one_though_the_connection_ends_with_it(
    target: Path, host_key: paramiko.PKey, answer: int, transport: str, kind: type[StageError]
) -> None:
    prepare = saying(99, message_of(answer, 0), disconnect("maintenance until six"))
    error = attempt(made_of_paramiko(key=host_key, prepare=prepare), target, host_key, transport=transport)
    assert type(error) is kind


def test_passwords_are_tried_after_keys_and_right_ones_get_in(target: Path, host_key: paramiko.PKey) -> None:
    class NoSftp(ssh_server.PasswordOnly):
        """Takes a password, and has no SFTP."""

        def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
            return False

    right = attempt(made_of_paramiko(NoSftp, key=host_key), target, host_key, password="sesame")
    assert isinstance(right, RemoteError)
    wrong = attempt(made_of_paramiko(NoSftp, key=host_key), target, host_key, password="abracadabra")
    assert isinstance(wrong, LoginError)
    assert "the password: refused" in str(wrong)
    assert "abracadabra" not in str(wrong)


def test_a_private_key_may_be_bytes(target: Path, host_key: paramiko.PKey) -> None:
    text = io.StringIO()
    paramiko.ECDSAKey.generate().write_private_key(text)
    error = attempt(
        made_of_paramiko(ssh_server.RefusesSubsystems, key=host_key), target, host_key, pkey=text.getvalue().encode()
    )
    assert isinstance(error, RemoteError)
    error = attempt(made_of_paramiko(key=host_key), target, host_key, pkey=b"nonsense")
    assert "pkey" in str(error)


def test_a_server_that_would_accept_another_key_than_it_was_asked_about_breaks_the_protocol(
    target: Path, host_key: paramiko.PKey, tmp_path: Path
) -> None:
    token, other = SoftwareToken("ed25519"), SoftwareToken("ed25519")
    accepts = saying(60, message_of(60, "sk-ssh-ed25519@openssh.com", other.blob))

    def prepare(transport: Any) -> None:
        transport._preferred_pubkeys = ("sk-ssh-ed25519@openssh.com",)
        transport._key_info = {**transport._key_info, "sk-ssh-ed25519@openssh.com": lambda key: host_key}
        accepts(transport)

    with token_agent(tmp_path / "agent", token) as path:
        server = made_of_paramiko(key=host_key, prepare=prepare)
        error = attempt(server, target, host_key, pkey=None, identity=(), agent=path)
    assert isinstance(error, ProtocolError)
    assert "an answer about another key than was asked about" in str(error)
    assert token.signatures == 0


def test_a_server_that_does_not_know_keys_on_tokens_is_not_offered_one(
    target: Path, host_key: paramiko.PKey, tmp_path: Path
) -> None:
    token = SoftwareToken("ed25519")
    with token_agent(tmp_path / "agent", token) as path:
        error = attempt(made_of_paramiko(key=host_key), target, host_key, pkey=None, identity=(), agent=path)
    assert isinstance(error, LoginError), "it would have closed the connection"
    assert "the peer takes no keys on FIDO tokens" in str(error)
