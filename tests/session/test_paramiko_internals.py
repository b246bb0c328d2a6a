"""What `session/_paramiko/` uses of paramiko and paramiko does not publish: each test fails when that changes."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import struct
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest
from paramiko.buffered_pipe import BufferedPipe
from paramiko.common import (
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_KEXINIT,
    MSG_NAMES,
    MSG_UNIMPLEMENTED,
)
from paramiko.message import Message
from paramiko.packet import NeedRekeyException, Packetizer
from paramiko.transport import ChannelMap

from peerstage.records import Limits
from peerstage.session._paramiko.channels import replace_buffers
from peerstage.session._paramiko.packets import BoundedPacketizer
from peerstage.session._paramiko.transport import has_strict_kex, is_protected, make_transport
from peerstage.session.algorithms import CIPHERS
from peerstage.session.config import resolve_destination
from peerstage.session.pipe import ChunkPipe, StderrPipe, Violation
from peerstage.session.session import Session
from peerstage.session.watchdog import Watchdog
from support.ssh_server import Policy
from support.sshd import Sshd

WINDOW = 4 << 20


class Echo(Policy):
    """Sends back what it is sent, until the client closes the channel."""

    def serve(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError):
            while data := channel.recv(1 << 20):
                channel.sendall(data)
        channel.close()


class Pair:
    """Our client and a stock server of paramiko's, over a socket pair."""

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
        self.client.trust()
        self.client.request_login()
        assert self.client.log_in_by_password("backup", "sesame") == []

    def open(self) -> paramiko.Channel:
        channel = self.client.open_session()
        replace_buffers(channel, WINDOW, 1000)
        channel.invoke_subsystem("echo")
        return channel

    def close(self) -> None:
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


def test_every_byte_comes_back_over_every_cipher(cipher: str) -> None:
    pair = Pair(cipher)
    try:
        data = os.urandom(3_000_001)
        assert echoed(pair.open(), data) == data
        assert pair.client.remote_cipher == cipher  # type: ignore[attr-defined]
    finally:
        pair.close()


def test_keys_are_changed_in_mid_transfer(cipher: str) -> None:
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


@pytest.mark.parametrize("strict", [True, False])
def test_strict_key_exchange_is_seen_and_sequence_numbers_stay_in_step(strict: bool, cipher: str) -> None:
    pair = Pair(cipher, strict=strict)
    try:
        assert has_strict_kex(pair.client) is strict
        assert is_protected(pair.client)
        assert echoed(pair.open(), b"x" * 100_000) == b"x" * 100_000
        hidden: Any = pair.client.packetizer
        assert isinstance(hidden._Packetizer__sequence_number_in, int)
        assert hidden._Packetizer__sequence_number_in > 0
    finally:
        pair.close()


def test_a_small_packet_limit_is_kept_by_both_packet_layers(cipher: str) -> None:
    pair = Pair(cipher)
    try:
        channel = pair.open()
        pair.client.packetizer._limits = Limits(packet_bytes=5000)  # type: ignore[attr-defined]
        channel.sendall(b"x" * 20_000)
        while channel.recv(1 << 20):
            pass
        pair.client.join(5)
        assert isinstance(pair.client.get_exception(), Violation)
    finally:
        pair.close()


def test_the_packetizer_s_methods_are_still_the_ones_that_are_replaced() -> None:
    assert list(inspect.signature(Packetizer.readline).parameters) == ["self", "timeout"]
    assert list(inspect.signature(Packetizer.read_all).parameters) == ["self", "n", "check_rekey"]
    assert list(inspect.signature(Packetizer.read_message).parameters) == ["self"]
    assert list(inspect.signature(Packetizer.start_handshake).parameters) == ["self", "timeout"]
    assert {"block_engine", "aead", "iv_in"} <= set(inspect.signature(Packetizer.set_inbound_cipher).parameters)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hidden: Any = BoundedPacketizer(ours, Limits())
        assert hidden.closed is False
        assert hidden.need_rekey() is False
        hidden._trigger_rekey()
        assert hidden.need_rekey() is False, "not before the login"
        hidden.may_rekey = True
        hidden._trigger_rekey()
        assert hidden.need_rekey() is True
        ours.settimeout(0.01)
        with pytest.raises(NeedRekeyException):
            hidden.read_all(8, check_rekey=True)
        hidden.close()
        assert hidden.closed is True
        with pytest.raises(EOFError):
            hidden.read_all(8)


@pytest.fixture
def reading() -> Iterator[tuple[Any, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0.05)
        yield BoundedPacketizer(ours, Limits(banner_bytes=100)), theirs


def test_lines_before_the_key_exchange_are_bounded_together(reading: tuple[Any, socket.socket]) -> None:
    packetizer, theirs = reading
    theirs.sendall(b"hello\r\nSSH-2.0-x\r\n\0\0\0\x01rest")
    assert packetizer.readline(1) == "hello"
    assert packetizer.readline(1) == "SSH-2.0-x"
    assert packetizer.read_all(8) == b"\0\0\0\x01rest"


def test_a_line_without_end_is_refused(reading: tuple[Any, socket.socket]) -> None:
    packetizer, theirs = reading
    theirs.sendall(b"x" * 101)
    with pytest.raises(Violation, match="100 bytes"):
        packetizer.readline(1)


@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 1 << 20])
def test_a_long_packet_before_the_key_exchange_is_refused(reading: tuple[Any, socket.socket], claimed: int) -> None:
    packetizer, theirs = reading
    theirs.sendall(struct.pack(">I", claimed) + b"\0" * 12)
    with pytest.raises(paramiko.SSHException):
        packetizer.read_message()


def test_channels_use_their_buffers_as_ours_expects() -> None:
    channel = paramiko.Channel(0)
    assert isinstance(channel.in_buffer, BufferedPipe)
    assert isinstance(channel.in_stderr_buffer, BufferedPipe)
    public = {name for name, _ in inspect.getmembers(BufferedPipe, inspect.isfunction) if not name.startswith("_")}
    assert public == {"set_event", "feed", "read_ready", "read", "empty", "close"}
    assert public <= set(dir(ChunkPipe))


def test_channels_that_are_closed_cost_no_read_anything(sshd: Sshd) -> None:
    limits = Limits()
    watchdog = Watchdog(limits)
    destination = resolve_destination(sshd.host, sshd.user, sshd.options())
    session: Any = Session.connect(destination, sshd.options(), limits=limits, watchdog=watchdog)
    for _ in range(5):
        stream = session.open_command(b"true")
        stream.wait()
        stream.close()
    until = time.monotonic() + 5
    while session._transport.packetizer.wakers and time.monotonic() < until:
        time.sleep(0.02)
    assert session._transport.packetizer.wakers == ()
    session.close()
    watchdog.close()


def test_the_chunk_pipe_keeps_order_and_size() -> None:
    pipe = ChunkPipe(1 << 20, "too much")
    for piece in (b"ab", b"cdef", b"g" * 20_000):
        pipe.feed(piece)
    assert len(pipe) == 20_006
    assert pipe.read_ready()
    assert bytes(pipe.read(1)) == b"a"
    assert bytes(pipe.read(1 << 20)).startswith(b"bcdef")
    assert pipe.empty() in (b"", b"g" * 20_000)
    with pytest.raises(TimeoutError):
        pipe.read(1, timeout=0.01)
    pipe.close()
    assert pipe.read(1) == b""


def test_the_chunk_pipe_refuses_what_is_past_the_window_in_bytes_and_in_number() -> None:
    with pytest.raises(Violation, match="too much"):
        ChunkPipe(100, "too much").feed(b"x" * (9 << 20))
    pipe = ChunkPipe(100, "too much")
    for _ in range(20_000):
        pipe.feed(b"x")
    with pytest.raises(Violation, match="too much"):
        deque(map(pipe.feed, [b"x"] * 100_000), maxlen=0)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("piece", [1, 7, 32 * 1024])
@pytest.mark.parametrize("read", [False, True])
def test_stderr_is_held_up_to_its_limit_and_not_a_byte_more(piece: int, read: bool) -> None:
    most = 64 * 1024
    tracemalloc.start()
    pipe, said = StderrPipe(most), b""
    for at in range(0, most, piece):
        pipe.feed(b"x" * min(piece, most - at))
        if read:
            said += pipe.read(1 << 30)
    assert tracemalloc.get_traced_memory()[0] < 3 * most
    tracemalloc.stop()
    assert said + pipe.empty() == b"x" * most
    with pytest.raises(Violation, match="more than 65536 bytes on stderr"):
        pipe.feed(b"x")


def test_transports_still_have_what_is_looked_at() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport: Any = make_transport(ours, Limits(), WINDOW, 65536)
        assert {name for name, _ in inspect.getmembers(ChannelMap, inspect.isfunction)} == {
            *("__init__", "__len__", "put", "get", "delete", "values")
        }
        assert type(transport._channels).__mro__[1] is ChannelMap
        assert transport.clear_to_send.is_set() is False, "nothing but keys is sent before they are exchanged"
        assert list(inspect.signature(transport._send_message).parameters) == ["data"]
        assert transport.active is False
        assert transport.agreed_on_strict_kex is False
        for name in ("local_cipher", "remote_cipher", "local_mac", "remote_mac", "packetizer", "sock"):
            assert hasattr(transport, name)
        assert transport.preferred_ciphers == CIPHERS
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM


def test_tcp_connections_do_not_wait_to_send_small_requests() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        make_transport(sock, Limits(), WINDOW, 65536)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_small_answers_are_acknowledged_at_once() -> None:
    """A server that has Nagle's algorithm on would wait for it; by default an exchange of small packets delays it."""
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


def test_nothing_goes_on_a_channel_that_was_closed_while_its_sender_waited(cipher: str) -> None:
    pair = Pair(cipher)
    try:
        channel, transport = pair.open(), pair.client
        hidden: Any = transport.packetizer

        def sent_after(kind: int) -> int:
            before = hidden._Packetizer__sequence_number_out
            message = Message()
            message.add_byte(bytes([kind]))
            message.add_int(channel.remote_chanid)  # type: ignore[attr-defined]
            message.add_string(b"x")
            transport._send_message(message)
            return int(hidden._Packetizer__sequence_number_out - before)

        assert sent_after(MSG_CHANNEL_DATA) == 1
        channel.closed = True
        assert [sent_after(kind) for kind in (MSG_CHANNEL_DATA, MSG_CHANNEL_WINDOW_ADJUST)] == [0, 0]
        channel.closed = False
        assert echoed(pair.open(), b"y" * 1000) == b"y" * 1000, "the connection is as good as before"
    finally:
        pair.close()


def test_messages_that_paramiko_does_not_know_are_answered_as_not_implemented(cipher: str) -> None:
    pair = Pair(cipher)
    try:
        hidden: Any = pair.server
        answered: list[int] = []
        hidden._handler_table[MSG_UNIMPLEMENTED] = lambda message: answered.append(message.get_int())
        sent: list[int] = []
        for kind in (0, 8, 9, 39, 101, 192, 255):
            assert kind not in MSG_NAMES
            message = Message()
            message.add_byte(bytes([kind]))
            message.add_string(b"whatever it means")
            sent.append(hidden.packetizer._Packetizer__sequence_number_out)
            hidden._send_message(message)
        assert echoed(pair.open(), b"z" * 1000) == b"z" * 1000, "the connection is as good as before"
        assert answered == sent
    finally:
        pair.close()


@pytest.fixture
def slow_keys(cipher: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """A connection whose server takes a second for new keys, which is a minute by paramiko's clock."""
    pair = Pair(cipher)
    hidden: Any = pair.server
    negotiate = hidden._negotiate_keys
    hidden._handler_table[MSG_KEXINIT] = lambda message: (time.sleep(1.0), negotiate(message))
    hidden.clear_to_send_timeout = 1e9
    started = time.time()
    fast = SimpleNamespace(time=lambda: started + 60 * (time.time() - started), sleep=time.sleep)
    monkeypatch.setattr(paramiko.transport, "time", fast)
    yield pair
    pair.close()


def begin_new_keys(client: Any) -> None:
    """Have *client* ask for new keys, and wait until it has."""
    client.packetizer._trigger_rekey()
    until = time.monotonic() + 10
    while client.clear_to_send.is_set() and time.monotonic() < until:
        time.sleep(0.001)
    assert not client.clear_to_send.is_set()


@pytest.mark.usefixtures("patience")
def test_new_keys_may_take_longer_than_paramiko_would_wait(slow_keys: Pair) -> None:
    channel = slow_keys.open()
    begin_new_keys(slow_keys.client)
    channel.sendall(b"x" * 1000)
    assert bytes(channel.recv(1 << 20)) == b"x" * 1000


@pytest.mark.usefixtures("patience")
def test_a_channel_may_be_opened_while_new_keys_take_their_time(slow_keys: Pair) -> None:
    begin_new_keys(slow_keys.client)
    channel = slow_keys.open()
    channel.sendall(b"x" * 1000)
    assert bytes(channel.recv(1 << 20)) == b"x" * 1000


@pytest.mark.usefixtures("patience")
def test_a_channel_that_is_closed_meanwhile_waits_for_nothing_and_is_closed_on_the_peer_too(slow_keys: Pair) -> None:
    channel = slow_keys.open()
    hidden: Any = slow_keys.client
    begin_new_keys(hidden)
    channel.close()
    assert not hidden.clear_to_send.is_set(), "it has waited for new keys"
    theirs: Any = slow_keys.server
    until = time.monotonic() + 10
    while len(theirs._channels) and time.monotonic() < until:
        time.sleep(0.01)
    assert len(theirs._channels) == 0
    assert echoed(slow_keys.open(), b"y" * 1000) == b"y" * 1000, "the connection is as good as before"
