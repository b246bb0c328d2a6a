"""Our transport, packet layer and buffers with a stock server of paramiko: the behaviour that we rely on."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import struct
import threading
import time
import tracemalloc
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest
from paramiko.buffered_pipe import BufferedPipe
from paramiko.common import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_KEXINIT,
    MSG_NAMES,
    MSG_UNIMPLEMENTED,
    cMSG_CHANNEL_REQUEST,
)
from paramiko.message import Message
from paramiko.packet import NeedRekeyException
from paramiko.transport import ChannelMap

from peerstage.records import Limits
from peerstage.ssh._paramiko.channel_buffer import ChannelBuffer, StderrBuffer
from peerstage.ssh._paramiko.channels import replace_buffers
from peerstage.ssh._paramiko.client_transport import make_transport
from peerstage.ssh._paramiko.exceptions import PeerViolation
from peerstage.ssh._paramiko.packetizer import BoundedPacketizer, _ChannelData
from peerstage.ssh.algorithms import CIPHERS
from support.logins import open_session
from support.ssh_server import Policy
from support.sshd import Sshd
from support.waiting import wait_until

WINDOW = 4 << 20


class Echo(Policy):
    """Echoes its input until the client closes the channel."""

    def serve(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError):
            while data := channel.recv(1 << 20):
                channel.sendall(data)
        with contextlib.suppress(EOFError):  # the connection has ended
            channel.close()


class Pair:
    """Our client and a stock server of paramiko, over a socket pair."""

    def __init__(self, cipher: str, *, strict: bool = True, rekey_bytes: int | None = None) -> None:
        ours, theirs = socket.socketpair()
        self.server = paramiko.Transport(theirs, strict_kex=strict)
        self.server._preferred_ciphers = (cipher,)  # type: ignore[attr-defined]
        self.server.add_server_key(paramiko.ECDSAKey.generate())
        self.server.start_server(event=threading.Event(), server=Echo())
        self.client = make_transport(ours, Limits(), WINDOW, 65536)
        if rekey_bytes is not None:
            self.client.packetizer.REKEY_BYTES = rekey_bytes  # type: ignore[attr-defined]
        done = threading.Event()
        self.client.start_client(event=done)
        assert done.wait(20)
        self.client.accept_host_key()
        self.client.request_userauth()
        assert self.client.authenticate_with_password("backup", "sesame") == []

    def open(self) -> paramiko.Channel:
        channel = self.client.open_session()
        replace_buffers(channel, WINDOW, 1000)
        channel.invoke_subsystem("echo")
        return channel

    def close(self) -> None:
        for transport in (self.client, self.server):
            with contextlib.suppress(OSError):  # otherwise their threads notice the end only after 0.1 s
                transport.sock.shutdown(socket.SHUT_RDWR)
        self.client.close()
        self.server.packetizer.complete_handshake()
        self.server.close()
        self.client.join(5)
        self.server.join(5)


@pytest.fixture(params=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr"])
def cipher(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def echoed(channel: paramiko.Channel, data: bytes) -> bytes:
    sender = threading.Thread(target=channel.sendall, args=(data,))
    sender.start()
    got = bytearray()
    while len(got) < len(data):
        piece = channel.recv(1 << 30)
        assert piece, "the channel ended"
        got += piece
    sender.join()
    return bytes(got)


def test_data_survives_every_cipher(cipher: str) -> None:
    pair = Pair(cipher)
    try:
        data = os.urandom(3_000_001)
        assert echoed(pair.open(), data) == data
        assert pair.client.remote_cipher == cipher  # type: ignore[attr-defined]
    finally:
        pair.close()


def test_data_survives_a_rekey(cipher: str) -> None:
    pair = Pair(cipher, rekey_bytes=700_000)
    try:
        first = pair.client.session_id, pair.client.H  # type: ignore[attr-defined]
        channel = pair.open()
        for _ in range(5):
            data = os.urandom(1_000_000)
            assert echoed(channel, data) == data
        assert pair.client.session_id == first[0]  # type: ignore[attr-defined]
        assert first[1] != pair.client.H, "new keys were agreed on"  # type: ignore[attr-defined]
    finally:
        pair.close()


def test_a_connection_that_has_ended_keeps_no_receive_buffer(cipher: str) -> None:
    pair = Pair(cipher)
    buffer = weakref.ref(pair.client.packetizer._buffer)
    assert echoed(pair.open(), b"x" * 100_000) == b"x" * 100_000
    pair.close()
    assert buffer() is None


@pytest.mark.parametrize("direction", ["local", "remote"])
@pytest.mark.parametrize(
    ("cipher_name", "mac", "resists"),
    [
        ("aes128-ctr", "hmac-sha2-256-etm@openssh.com", False),
        ("aes128-ctr", "hmac-sha2-256", True),
        ("aes128-gcm@openssh.com", None, True),
    ],
)
def test_each_direction_must_resist_prefix_truncation(
    direction: str, cipher_name: str, mac: str | None, resists: bool
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client: Any = make_transport(ours, Limits(), WINDOW, 65536)
        client.local_cipher = client.remote_cipher = "aes128-ctr"
        client.local_mac = client.remote_mac = "hmac-sha2-256"
        setattr(client, f"{direction}_cipher", cipher_name)
        setattr(client, f"{direction}_mac", mac)
        assert client.resists_prefix_truncation is resists


@pytest.mark.parametrize("claimed", [0, 3, 5, 0xFFFFFFFF])
def test_channel_data_with_another_length_than_its_packet_violates_the_protocol(claimed: int) -> None:
    packet = b"\x04" + bytes([MSG_CHANNEL_DATA]) + struct.pack(">II", 0, claimed) + b"data" + b"\0" * 4
    with pytest.raises(PeerViolation, match="channel data"):
        _ChannelData(packet, len(packet) - 4).get_binary()


def test_other_host_key_in_a_rekey_violates_the_protocol(cipher: str) -> None:
    pair = Pair(cipher)
    try:
        pair.server.server_key_dict = {"ecdsa-sha2-nistp256": paramiko.ECDSAKey.generate()}  # type: ignore[attr-defined]
        pair.client.packetizer._trigger_rekey()  # type: ignore[attr-defined]
        pair.client.join(10)
        assert "a different host key in the middle of a connection" in str(pair.client.get_exception())
    finally:
        pair.close()


@pytest.mark.parametrize("strict", [True, False])
def test_strict_kex_is_detected_and_sequence_numbers_match(strict: bool, cipher: str) -> None:
    pair = Pair(cipher, strict=strict)
    try:
        assert pair.client.has_strict_kex is strict
        assert pair.client.resists_prefix_truncation
        assert echoed(pair.open(), b"x" * 100_000) == b"x" * 100_000
        packetizer = pair.client.packetizer
        assert isinstance(packetizer._Packetizer__sequence_number_in, int)
        assert packetizer._Packetizer__sequence_number_in > 0
    finally:
        pair.close()


def test_packet_limit_holds_for_every_cipher(cipher: str) -> None:
    pair = Pair(cipher)
    try:
        channel = pair.open()
        pair.client.packetizer._limits = Limits(packet_bytes=5000)  # type: ignore[attr-defined]
        channel.sendall(b"x" * 20_000)
        while channel.recv(1 << 20):
            pass
        pair.client.join(5)
        assert isinstance(pair.client.get_exception(), PeerViolation)
    finally:
        pair.close()


def test_packetizer_triggers_a_rekey_and_ends_when_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        packetizer = BoundedPacketizer(ours, Limits())
        assert packetizer.closed is False
        assert packetizer.need_rekey() is False
        packetizer._trigger_rekey()
        assert packetizer.need_rekey() is False, "servers refuse it before the login"
        packetizer.may_rekey = True
        packetizer._trigger_rekey()
        assert packetizer.need_rekey() is True
        ours.settimeout(0.01)
        with pytest.raises(NeedRekeyException):
            packetizer.read_all(8, check_rekey=True)
        packetizer.close()
        assert packetizer.closed is True
        with pytest.raises(EOFError):
            packetizer.read_all(8)


@pytest.fixture
def reading() -> Iterator[tuple[Any, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0.05)
        yield BoundedPacketizer(ours, Limits(banner_bytes=100)), theirs


def test_lines_before_the_key_exchange_are_read_one_by_one(reading: tuple[Any, socket.socket]) -> None:
    packetizer, theirs = reading
    theirs.sendall(b"hello\r\nSSH-2.0-x\r\n\0\0\0\x01rest")
    assert packetizer.readline(1) == "hello"
    assert packetizer.readline(1) == "SSH-2.0-x"
    assert packetizer.read_all(8) == b"\0\0\0\x01rest"


def test_endless_line_is_rejected(reading: tuple[Any, socket.socket]) -> None:
    packetizer, theirs = reading
    theirs.sendall(b"x" * 101)
    with pytest.raises(PeerViolation, match="100 bytes"):
        packetizer.readline(1)


@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 1 << 20])
def test_long_packet_before_the_key_exchange_is_rejected(reading: tuple[Any, socket.socket], claimed: int) -> None:
    packetizer, theirs = reading
    theirs.sendall(struct.pack(">I", claimed) + b"\0" * 12)
    with pytest.raises(paramiko.SSHException):
        packetizer.read_message()


def test_the_channel_buffer_has_every_public_method_of_the_one_in_paramiko() -> None:
    methods = {name for name, _ in inspect.getmembers(BufferedPipe, inspect.isfunction) if not name.startswith("_")}
    assert methods == {"set_event", "feed", "read_ready", "read", "empty", "close"}
    assert methods <= set(dir(ChannelBuffer))


def test_closed_channels_are_removed_from_the_readers_to_wake(sshd: Sshd) -> None:
    with open_session(sshd.host, sshd.user, sshd.options()) as (session, _):
        for _ in range(5):
            stream = session.open_command(b"true")
            stream.wait()
            stream.close()
        packetizer: Any = session._transport.packetizer
        wait_until(lambda: packetizer.wake_readers == ())


def test_channel_buffer_keeps_order_and_size() -> None:
    buffer = ChannelBuffer(1 << 20, "too much")
    for piece in (b"ab", b"cdef", b"g" * 20_000):
        buffer.feed(piece)
    assert len(buffer) == 20_006
    assert buffer.read_ready()
    assert bytes(buffer.read(1)) == b"a"
    assert bytes(buffer.read(1 << 20)).startswith(b"bcdef")
    assert buffer.empty() in (b"", b"g" * 20_000)
    with pytest.raises(TimeoutError):
        buffer.read(1, timeout=0.01)
    buffer.close()
    assert buffer.read(1) == b""


def test_channel_buffer_bounds_bytes_and_number_of_chunks() -> None:
    with pytest.raises(PeerViolation, match="too much"):
        ChannelBuffer(100, "too much").feed(b"x" * (9 << 20))
    buffer = ChannelBuffer(100, "too much")
    for _ in range(20_000):
        buffer.feed(b"x")
    with pytest.raises(PeerViolation, match="too much"):
        deque(map(buffer.feed, [b"x"] * 100_000), maxlen=0)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("piece", [1, 7, 32 * 1024])
@pytest.mark.parametrize("read", [False, True])
def test_stderr_is_accepted_up_to_its_limit(piece: int, read: bool) -> None:
    max_bytes = 64 * 1024
    tracemalloc.start()
    buffer, output = StderrBuffer(max_bytes), b""
    for at in range(0, max_bytes, piece):
        buffer.feed(b"x" * min(piece, max_bytes - at))
        if read:
            output += buffer.read(1 << 30)
    assert tracemalloc.get_traced_memory()[0] < 3 * max_bytes
    tracemalloc.stop()
    assert output + buffer.empty() == b"x" * max_bytes
    with pytest.raises(PeerViolation, match="more than 65536 bytes on stderr"):
        buffer.feed(b"x")


def test_transport_begins_without_permission_to_send() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = make_transport(ours, Limits(), WINDOW, 65536)
        assert transport.clear_to_send.is_set() is False, "only messages of the key exchange may be sent"
        assert transport.preferred_ciphers == CIPHERS
        methods = {name for name, _ in inspect.getmembers(ChannelMap, inspect.isfunction)}
        assert methods == {"__init__", "__len__", "put", "get", "delete", "values"}, "the ones that we replace, or keep"


def test_tcp_nodelay_is_set() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        make_transport(sock, Limits(), WINDOW, 65536)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_small_replies_are_acknowledged_at_once() -> None:
    """A server with Nagle's algorithm waits for the acknowledgement, which Linux delays for small packets."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        theirs, _ = server.accept()
        with theirs:
            packets = BoundedPacketizer(sock, Limits())
            for _ in range(20):
                sock.sendall(b"question")
                theirs.recv(100)
                theirs.sendall(b"answer\n")
                assert packets.readline(5) == "answer"
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1


def test_nothing_is_sent_on_a_channel_closed_while_its_sender_waited(cipher: str) -> None:
    pair = Pair(cipher)
    try:
        channel, transport = pair.open(), pair.client
        packetizer: Any = transport.packetizer

        def sent_after(kind: int) -> int:
            before = packetizer._Packetizer__sequence_number_out
            message = Message()
            message.add_byte(bytes([kind]))
            message.add_int(channel.remote_chanid)  # type: ignore[attr-defined]
            message.add_string(b"x")
            transport._send_message(message)
            return int(packetizer._Packetizer__sequence_number_out - before)

        assert sent_after(MSG_CHANNEL_DATA) == 1
        channel.closed = True
        assert [sent_after(kind) for kind in (MSG_CHANNEL_DATA, MSG_CHANNEL_WINDOW_ADJUST)] == [0, 0]
        channel.closed = False
        assert echoed(pair.open(), b"y" * 1000) == b"y" * 1000, "the connection still works"
    finally:
        pair.close()


def test_unknown_messages_are_answered_as_unimplemented(cipher: str) -> None:
    pair = Pair(cipher)
    try:
        server: Any = pair.server
        answered: list[int] = []
        server._handler_table[MSG_UNIMPLEMENTED] = lambda message: answered.append(message.get_int())
        sent: list[int] = []
        for kind in (0, 8, 9, 39, 101, 192, 255):
            assert kind not in MSG_NAMES
            message = Message()
            message.add_byte(bytes([kind]))
            message.add_string(b"whatever it means")
            sent.append(server.packetizer._Packetizer__sequence_number_out)
            server._send_message(message)
        assert echoed(pair.open(), b"z" * 1000) == b"z" * 1000, "the connection still works"
        assert answered == sent
    finally:
        pair.close()


@pytest.fixture
def slow_rekey(cipher: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """A connection whose server takes a second for each rekey: a minute by paramiko's clock."""
    pair = Pair(cipher)
    server: Any = pair.server
    negotiate = server._negotiate_keys
    server._handler_table[MSG_KEXINIT] = lambda message: (time.sleep(1.0), negotiate(message))
    server.clear_to_send_timeout = 1e9
    started = time.time()
    fast = SimpleNamespace(time=lambda: started + 60 * (time.time() - started), sleep=time.sleep)
    monkeypatch.setattr(paramiko.transport, "time", fast)
    yield pair
    pair.close()


def start_rekey(client: Any) -> None:
    """Let *client* start a key exchange."""
    client.packetizer._trigger_rekey()
    until = time.monotonic() + 10
    while client.clear_to_send.is_set() and time.monotonic() < until:
        time.sleep(0.001)
    assert not client.clear_to_send.is_set()


@pytest.mark.usefixtures("patience")
def test_a_rekey_may_take_longer_than_the_timeout_of_paramiko(slow_rekey: Pair) -> None:
    channel = slow_rekey.open()
    start_rekey(slow_rekey.client)
    channel.sendall(b"x" * 1000)
    assert bytes(channel.recv(1 << 20)) == b"x" * 1000


@pytest.mark.usefixtures("patience")
def test_channel_can_be_opened_during_a_rekey(slow_rekey: Pair) -> None:
    start_rekey(slow_rekey.client)
    channel = slow_rekey.open()
    channel.sendall(b"x" * 1000)
    assert bytes(channel.recv(1 << 20)) == b"x" * 1000


@pytest.mark.usefixtures("patience")
def test_closing_a_channel_during_a_rekey_does_not_block(slow_rekey: Pair) -> None:
    channel = slow_rekey.open()
    client = slow_rekey.client
    start_rekey(client)
    channel.close()
    assert not client.clear_to_send.is_set(), "it waited for the end of the key exchange"
    server: Any = slow_rekey.server
    until = time.monotonic() + 10
    while len(server._channels) and time.monotonic() < until:
        time.sleep(0.01)
    assert len(server._channels) == 0
    assert echoed(slow_rekey.open(), b"y" * 1000) == b"y" * 1000, "the connection still works"


class WatchedLock:
    """A lock that reports each acquisition before it waits, and each release afterwards."""

    def __init__(self, lock: Any, before_acquire: Callable[[], object], after_release: Callable[[], object]) -> None:
        self._lock, self._before_acquire, self._after_release = lock, before_acquire, after_release

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        self._before_acquire()
        return bool(self._lock.acquire(*args, **kwargs))

    def release(self) -> None:
        self._lock.release()
        self._after_release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *args: object) -> None:
        self.release()


def rekey_at_the_first_chance(client: Any, sender: threading.Thread) -> None:
    """Make a rekey due, and stop the traffic for it, once *sender* has found that it may send.

    This is what another thread does after its message, unless *sender* holds the lock.
    """
    lock, clear_to_send = client.clear_to_send_lock, client.clear_to_send
    is_set = clear_to_send.is_set

    def stop_traffic(*, was_clear: bool) -> None:
        if was_clear and threading.current_thread() is sender and lock.acquire(blocking=False):
            clear_to_send.is_set, client.clear_to_send_lock = is_set, lock
            client.packetizer._trigger_rekey()
            clear_to_send.clear()
            lock.release()

    def look() -> bool:
        was_clear = bool(is_set())
        stop_traffic(was_clear=was_clear)
        return was_clear

    clear_to_send.is_set = look
    client.clear_to_send_lock = WatchedLock(lock, lambda: None, lambda: stop_traffic(was_clear=True))


def channel_of(server: Any) -> Any:
    (channel,) = server._channels.values()
    return channel


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair("aes128-gcm@openssh.com")
    yield pair
    pair.close()


def test_a_reply_does_not_wait_for_the_rekey_that_only_its_own_thread_can_complete(pair: Pair) -> None:
    channel, replied = pair.open(), threading.Event()
    server: Any = pair.server
    replies = {MSG_CHANNEL_FAILURE: lambda channel, message: replied.set()}
    server._channel_handler_table = {**server._channel_handler_table, **replies}
    request = Message()
    request.add_byte(cMSG_CHANNEL_REQUEST)
    request.add_int(channel_of(server).remote_chanid)
    request.add("keepalive@openssh.com", True)
    rekey_at_the_first_chance(pair.client, pair.client)
    server._send_message(request)
    assert replied.wait(10)
    assert echoed(channel, b"x" * 1000) == b"x" * 1000, "the connection still works"


def test_closing_a_channel_does_not_wait_for_a_rekey_that_begins_at_that_moment(pair: Pair) -> None:
    channel = pair.open()
    server: Any = pair.server
    server._handler_table[MSG_KEXINIT] = lambda message: None
    closing = threading.Thread(target=channel.close)
    rekey_at_the_first_chance(pair.client, closing)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


def test_data_that_is_being_sent_precedes_the_reply_to_the_close_of_its_channel(pair: Pair) -> None:
    """After SSH_MSG_CHANNEL_CLOSE, a server would end the connection over it (RFC 4254, section 5.3)."""
    channel, theirs = pair.open(), channel_of(pair.server)
    client: Any = pair.client
    send, sent, is_reply_due = client.packetizer.send_message, list[int](), threading.Event()

    def before_acquire() -> None:
        if threading.current_thread() is client:
            is_reply_due.set()

    def send_data_late(message: Message) -> None:
        kind = message.asbytes()[0]
        if kind == MSG_CHANNEL_DATA:
            theirs.close()
            assert is_reply_due.wait(10)
        send(message)
        sent.append(kind)
        if kind == MSG_CHANNEL_CLOSE:
            is_reply_due.set()

    client.clear_to_send_lock = WatchedLock(client.clear_to_send_lock, before_acquire, lambda: None)
    client.packetizer.send_message = send_data_late
    channel.sendall(b"x")
    wait_until(lambda: MSG_CHANNEL_CLOSE in sent)
    assert [kind for kind in sent if kind != MSG_CHANNEL_EOF] == [MSG_CHANNEL_DATA, MSG_CHANNEL_CLOSE]
