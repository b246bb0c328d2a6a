"""A server that rekeys at inconvenient moments: nothing else is sent during the exchange (RFC 4253, section 7.1)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import Limits, RemotePeer, Retry
from peerstage.errors import LimitExceeded, RemoteError, StageError
from support import ssh_server
from support.ssh_server import listening, options_for, paramiko_handler

pytestmark = pytest.mark.usefixtures("leaves_nothing")
SERVICE_ACCEPT, NEWKEYS, FAILURE = 6, 21, 51
QUICK = Limits(login_timeout=3.0, reply_timeout=3.0, stall_timeout=3.0, deadline=10.0)


def slow_key() -> paramiko.PKey:
    """Return a key that signs slowly, so that its request is sent during a key exchange."""
    key = paramiko.ECDSAKey.generate()
    sign = key.sign_ssh_data
    key.sign_ssh_data = lambda *args: time.sleep(0.3) or sign(*args)  # type: ignore[method-assign,func-returns-value]
    return key


def error_of(target: Path, prepare: Any, policy: Any = ssh_server.RefusesSubsystems, **options: Any) -> StageError:
    key = paramiko.ECDSAKey.generate()
    with listening(paramiko_handler(policy, key=key, prepare=prepare)) as port:
        ssh = options_for(port, key, **{"pkey": slow_key(), **options})
        peer = RemotePeer(
            "127.0.0.1", "/c", "/tmp", "backup", ssh=ssh, transport="sftp", retry=Retry(tries=1), limits=QUICK
        )
        with pytest.raises(StageError) as caught:
            peer.stagePeer(str(target))
    return caught.value


def rekeying(after: int) -> Any:
    """Return what prepares a server to rekey after its first message *after*, and to reply only after that."""

    def prepare(transport: Any) -> None:
        send, take_keys = transport._send_message, transport._parse_newkeys
        waiting: list[paramiko.Message] = []

        def send_in_order(message: paramiko.Message) -> None:
            kind = message.asbytes()[0]
            if transport.initial_kex_done and not transport.clear_to_send.is_set() and (kind in (6, 7) or kind >= 50):
                waiting.append(message)
                return
            send(message)
            if kind == after and (after != NEWKEYS or not transport.initial_kex_done):
                transport.after = True
            if getattr(transport, "after", False) and transport.initial_kex_done:
                transport.after = False
                transport._send_kex_init()

        def parse_newkeys(message: paramiko.Message) -> None:
            take_keys(message)
            if getattr(transport, "after", False):
                transport.after = False
                transport._send_kex_init()
                return
            for one in [waiting.pop(0) for _ in list(waiting)]:
                transport._send_message(one)

        def negotiate(message: paramiko.Message) -> None:
            if transport.initial_kex_done:
                time.sleep(0.6)
            transport._negotiate_keys(message)

        transport._send_message = send_in_order
        transport._handler_table[20] = negotiate
        transport._handler_table[NEWKEYS] = parse_newkeys

    return prepare


class PasswordAfterKey(ssh_server.RefusesSubsystems):
    """Refuses keys, accepts a password, and has no SFTP."""

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_FAILED


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(
    "after", [NEWKEYS, SERVICE_ACCEPT, FAILURE], ids=["the first keys", "the service", "a refusal"]
)
def test_login_survives_a_rekey(target: Path, after: int) -> None:
    error = error_of(target, rekeying(after), PasswordAfterKey, password="sesame")
    assert isinstance(error, RemoteError), error
    assert "subsystem" in str(error)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(
    "after", [NEWKEYS, SERVICE_ACCEPT, FAILURE], ids=["the first keys", "the service", "a refusal"]
)
def test_login_timeout_ends_a_rekey_that_never_completes(target: Path, after: int) -> None:
    def prepare(transport: Any) -> None:
        rekeying(after)(transport)
        theirs = transport._negotiate_keys

        def negotiate(message: paramiko.Message) -> None:
            if transport.initial_kex_done:
                transport._send_message = lambda message: None
            theirs(message)

        transport._handler_table[20] = negotiate

    error = error_of(target, prepare, PasswordAfterKey, password="sesame")
    assert isinstance(error, LimitExceeded), error
    assert "complete the login" in str(error)


class NeverFinishesRekey(ssh_server.Policy):
    """Starts a key exchange on its subsystem, and never completes it."""

    def serve(self, channel: paramiko.Channel) -> None:
        time.sleep(0.3)  # after the reply to the request
        transport: Any = channel.get_transport()
        transport._send_kex_init()
        transport._send_message = lambda message: None


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("waits_for_keys", ["to send", "to receive"])
def test_stall_timeout_ends_a_rekey_that_never_completes(target: Path, waits_for_keys: str) -> None:
    class Slow(NeverFinishesRekey):
        """Sends an SFTP version first, so that the client sends the next request."""

        def serve(self, channel: paramiko.Channel) -> None:
            if waits_for_keys == "to send":
                channel.recv(9)
                channel.sendall(b"\0\0\0\x05\x02\0\0\0\x03")
            super().serve(channel)

    error = error_of(target, None, Slow)
    assert isinstance(error, LimitExceeded), error
    assert "stall_timeout" in str(error)
