"""A server that wants new keys at an awkward moment: nothing else is sent meanwhile (RFC 4253, 7.1)."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import Limits, RemotePeer, Retry, SSHOptions
from peerstage.errors import LimitExceeded, RemoteError, StageError
from support import ssh_server
from support.ssh_server import listening, made_of_paramiko

pytestmark = pytest.mark.usefixtures("leaves_nothing")
SERVICE_ACCEPT, NEWKEYS, FAILURE = 6, 21, 51
QUICK = Limits(login_timeout=3.0, reply_timeout=3.0, stall_timeout=3.0, deadline=10.0)


@pytest.fixture(autouse=True)
def quiet_server() -> None:
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)


def slow_key() -> paramiko.PKey:
    """A key that takes its time to sign, so that its turn comes while keys are exchanged."""
    key = paramiko.ECDSAKey.generate()
    sign = key.sign_ssh_data
    key.sign_ssh_data = lambda *args: time.sleep(0.3) or sign(*args)  # type: ignore[method-assign,func-returns-value]
    return key


def error_of(target: Path, prepare: Any, policy: Any = ssh_server.RefusesSubsystems, **options: Any) -> StageError:
    key = paramiko.ECDSAKey.generate()
    with listening(made_of_paramiko(policy, key=key, prepare=prepare)) as port:
        known = f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n".encode()
        values = {"pkey": slow_key(), **options}
        ssh = SSHOptions(port=port, config=(), agent=False, known_hosts=known, **values)
        peer = RemotePeer(
            "127.0.0.1", "/c", "/tmp", "backup", ssh=ssh, transport="sftp", retry=Retry(tries=1), limits=QUICK
        )
        with pytest.raises(StageError) as caught:
            peer.stagePeer(str(target))
    return caught.value


def wanting_new_keys(after: int) -> Any:
    """Bend a server: behind its message of the type *after* it wants new keys, and answers only once it has them."""

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


class PasswordBehindAKey(ssh_server.RefusesSubsystems):
    """Refuses keys, takes a password, and has no SFTP."""

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_FAILED


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(
    "after", [NEWKEYS, SERVICE_ACCEPT, FAILURE], ids=["the first keys", "the service", "a refusal"]
)
def test_new_keys_during_the_login_do_not_hinder_it(target: Path, after: int) -> None:
    error = error_of(target, wanting_new_keys(after), PasswordBehindAKey, password="sesame")
    assert isinstance(error, RemoteError), error
    assert "subsystem" in str(error)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(
    "after", [NEWKEYS, SERVICE_ACCEPT, FAILURE], ids=["the first keys", "the service", "a refusal"]
)
def test_new_keys_that_never_come_end_with_the_login(target: Path, after: int) -> None:
    def prepare(transport: Any) -> None:
        wanting_new_keys(after)(transport)
        theirs = transport._negotiate_keys

        def negotiate(message: paramiko.Message) -> None:
            if transport.initial_kex_done:
                transport._send_message = lambda message: None
            theirs(message)

        transport._handler_table[20] = negotiate

    error = error_of(target, prepare, PasswordBehindAKey, password="sesame")
    assert isinstance(error, LimitExceeded), error
    assert "complete the login" in str(error)


class NeverFinishes(ssh_server.Policy):
    """Wants new keys once its subsystem runs, and never goes on with that."""

    def serve(self, channel: paramiko.Channel) -> None:
        time.sleep(0.3)  # until the request was answered
        transport: Any = channel.get_transport()
        transport._send_kex_init()
        transport._send_message = lambda message: None


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("waits_for_keys", ["to send", "to receive"])
def test_new_keys_that_never_come_later_end_with_the_time_for_progress(target: Path, waits_for_keys: str) -> None:
    class Slow(NeverFinishes):
        """Sends a version first, so that the client has something to send."""

        def serve(self, channel: paramiko.Channel) -> None:
            if waits_for_keys == "to send":
                channel.recv(9)
                channel.sendall(b"\0\0\0\x05\x02\0\0\0\x03")
            super().serve(channel)

    error = error_of(target, None, Slow)
    assert isinstance(error, LimitExceeded), error
    assert "stall_timeout" in str(error)
