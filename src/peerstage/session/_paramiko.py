"""Everything that paramiko does not publish, in one place, each use with the test that notices when it changes.

`BoundedPacketizer` reads the socket in large pieces, decrypts AES-GCM packets where they lie, and lets nothing in
that `Limits` does not allow: no packet of 4 GiB, no banner without end. Channels get a `ChunkPipe` for a buffer.
See tests/session/test_paramiko_internals.py.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, cast

import paramiko
from paramiko.agent import AgentSSH
from paramiko.common import MSG_CHANNEL_DATA, MSG_EXT_INFO, cMSG_GLOBAL_REQUEST
from paramiko.message import Message
from paramiko.packet import NeedRekeyException, Packetizer
from paramiko.transport import ChannelMap

from peerstage.records import Limits
from peerstage.session.liveness import Liveness
from peerstage.session.pipe import ChunkPipe, Violation

_READ_BYTES = 512 * 1024
_GCM_TAG = 16
_MOST_EXTENSIONS = 64
_uint32 = struct.Struct(">I")

#: Strongest that costs least first (SPEED.md): AES-GCM saves a pass over the data and several copies.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
#: Encrypt-then-MAC last: a server without strict key exchange must not be served with it (CVE-2023-48795).
MACS = ("hmac-sha2-256", "hmac-sha2-512", "hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com")


class BoundedPacketizer(Packetizer):
    """paramiko's packet layer (RFC 4253, 6) with bounds, fewer system calls and fewer copies."""

    REKEY_BYTES = 1 << 30  # RFC 4253, 9: after each gigabyte

    def __init__(self, sock: Any, limits: Limits) -> None:
        super().__init__(sock)
        self._sock = sock
        self._limits = limits
        self._buffer = bytearray(_READ_BYTES + limits.packet_bytes)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._engine: Any = None
        self._fixed_iv = b""
        self._counter = 0
        self._received = 0
        self.wakers: tuple[Callable[[], None], ...] = ()  # called when all that has come was handed on
        self.liveness: Liveness | None = None

    # What would outlive a failed handshake: a timer thread for each (the watchdog bounds the login instead).

    def start_handshake(self, timeout: float) -> None:
        """Start no timer."""

    def set_inbound_cipher(self, *args: Any, **kwargs: Any) -> None:
        """Take new keys; for AES-GCM keep what is needed to decrypt in place (RFC 5647, 7.1)."""
        super().set_inbound_cipher(*args, **kwargs)
        self._engine = args[0] if args else kwargs["block_engine"]
        if kwargs.get("aead"):
            self._fixed_iv = kwargs["iv_in"][:4]
            self._counter = int.from_bytes(kwargs["iv_in"][4:], "big")
        else:
            self._engine = None
        self._received = 0

    def readline(self, timeout: float) -> str:
        """Return one line of what precedes the key exchange (RFC 4253, 4.2), bounded together with those before it."""
        while True:
            newline = self._buffer.find(b"\n", self._start, self._end)
            if newline >= 0:
                break
            if self._end >= self._limits.banner_bytes:
                raise Violation(f"more than {self._limits.banner_bytes} bytes without an SSH identification")
            try:
                self._receive(check_rekey=False, most=self._limits.banner_bytes - self._end)
            except (EOFError, ConnectionError):
                said = bytes(self._view[: self._end]).decode("utf-8", "backslashreplace").strip()
                raise Violation(f"the server hangs up, saying {said[:200]!r}" if said else "it hangs up") from None
        line = bytes(self._view[self._start : newline]).rstrip(b"\r")
        self._start = newline + 1
        return line.decode("utf-8", "backslashreplace")

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """Return the next *n* bytes of the connection."""
        self._require(n, check_rekey=check_rekey)
        data = bytes(self._view[self._start : self._start + n])
        self._start += n
        return data

    def read_message(self) -> tuple[int, Message]:
        """Return the next message and its number, decrypted and checked."""
        if self._engine is None:
            kind, message = super().read_message()
            if kind == MSG_EXT_INFO:
                _check_extensions(message.asbytes())
            return kind, message
        self._require(4, check_rekey=True)
        (size,) = _uint32.unpack_from(self._buffer, self._start)
        self._require(4 + size + _GCM_TAG, check_rekey=False)
        start, end = self._start, self._start + 4 + size + _GCM_TAG
        nonce = self._fixed_iv + self._counter.to_bytes(8, "big")
        packet: bytes = self._engine.decrypt(nonce, self._view[start + 4 : end], self._view[start : start + 4])
        self._start = end
        self._counter = (self._counter + 1) & 0xFFFFFFFFFFFFFFFF
        payload_end = size - packet[0]
        if payload_end < 2:
            raise Violation("an SSH packet without a message")
        kind = packet[1]
        message = _ChannelData(packet, payload_end) if kind == MSG_CHANNEL_DATA else Message(packet[2:payload_end])
        if kind == MSG_EXT_INFO:
            _check_extensions(packet[2:payload_end])
        self._count(message, end - start)
        return kind, message

    def _count(self, message: Any, size: int) -> None:
        """Number the message, and ask for new keys when these have served long enough."""
        hidden: Any = self
        message.seqno = hidden._Packetizer__sequence_number_in
        hidden._Packetizer__sequence_number_in = (message.seqno + 1) & 0xFFFFFFFF
        self._received += size
        if self._received >= self.REKEY_BYTES:
            if self._received >= 2 * self.REKEY_BYTES:
                raise Violation("the server goes on with old keys")
            if not self.need_rekey():
                hidden._trigger_rekey()

    def _require(self, n: int, *, check_rekey: bool) -> None:
        """Wait until *n* bytes lie in the buffer."""
        if not 0 <= n <= self._limits.packet_bytes + 64:
            raise Violation(f"an SSH packet of {n} bytes, more than the {self._limits.packet_bytes} allowed")
        while self._end - self._start < n:
            if self._start and (self._start == self._end or self._start + n > len(self._buffer)):
                self._buffer[: self._end - self._start] = self._view[self._start : self._end]
                self._start, self._end = 0, self._end - self._start
            self._receive(check_rekey=check_rekey and self._start == self._end, most=len(self._buffer) - self._end)

    def _receive(self, *, check_rekey: bool, most: int) -> None:
        """Read what the socket has, at most *most* bytes; its timeout is short, so that `close` is noticed."""
        for wake in self.wakers:
            wake()
        while True:
            try:
                count = self._sock.recv_into(self._view[self._end : self._end + most])
            except (TimeoutError, BlockingIOError):
                if self.closed:
                    raise EOFError from None
                if self.liveness is not None:
                    self.liveness.silent()
                if check_rekey and self.need_rekey():
                    raise NeedRekeyException from None
                continue
            except OSError:
                if self.closed:
                    raise EOFError from None
                raise
            if not count:
                raise EOFError
            if self.liveness is not None:
                self.liveness.heard()
            self._end += count
            return


class _ChannelData(Message):
    """SSH_MSG_CHANNEL_DATA (RFC 4254, 5.2) that hands its data on without copying it."""

    def __init__(self, packet: bytes, end: int) -> None:
        self._packet = packet
        self._end_of_payload = end

    def get_int(self) -> int:
        """Return the recipient channel."""
        return cast(int, _uint32.unpack_from(self._packet, 2)[0])

    def get_binary(self) -> Any:
        """Return the data, exactly as long as the packet says."""
        (length,) = _uint32.unpack_from(self._packet, 6)
        if 10 + length != self._end_of_payload:
            raise Violation("channel data whose length is not that of its packet")
        return memoryview(self._packet)[10 : self._end_of_payload]


def _check_extensions(payload: bytes) -> None:
    """Refuse a count of extensions (RFC 8308, 2.3) that paramiko would loop over for hours."""
    if len(payload) < 4 or _uint32.unpack_from(payload)[0] > _MOST_EXTENSIONS:
        raise Violation("an extension message that holds too much")


class SocketAgent(AgentSSH):
    """The keys of the agent that listens at *path*, each answer awaited for at most *timeout* seconds.

    Raises:
        OSError: Nobody listens there.
        paramiko.SSHException: It is not an agent, or does not answer.
    """

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
        conn = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            conn.settimeout(timeout)
            conn.connect(path)
            cast(Any, self)._connect(conn)
        except BaseException:
            conn.close()
            raise

    def close(self) -> None:
        """Close the connection to the agent."""
        cast(Any, self)._close()


def make_transport(sock: Any, limits: Limits, window: int, packet: int) -> paramiko.Transport:
    """Return a transport on *sock* with our packet layer, algorithms and bounds; nothing is sent yet."""
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(
        sock,
        default_window_size=window,
        default_max_packet_size=packet,
        packetizer_class=cast(Any, functools.partial(BoundedPacketizer, limits=limits)),
    )
    security = transport.get_security_options()
    security.ciphers = CIPHERS
    security.digests = MACS
    cast(Any, transport)._channels = _Channels(cast(Any, transport).packetizer, window, limits.stderr_bytes)
    transport.auth_timeout = cast(Any, None)  # the watchdog bounds the login, and says what was waited for
    return transport


def is_protected(transport: paramiko.Transport) -> bool:
    """Whether the agreed algorithms are safe from prefix truncation (CVE-2023-48795).

    They are with strict key exchange, with AES-GCM, and with CTR and a MAC that is not encrypt-then-MAC.
    """
    if has_strict_kex(transport):
        return True
    agreed: Any = transport
    pairs = (agreed.local_cipher, agreed.local_mac), (agreed.remote_cipher, agreed.remote_mac)
    return all("gcm@" in str(cipher) or "-etm@" not in str(mac) for cipher, mac in pairs)


def has_strict_kex(transport: paramiko.Transport) -> bool:
    """Whether both sides agreed on strict key exchange."""
    return bool(cast(Any, transport).agreed_on_strict_kex)


class _Channels(ChannelMap):
    """paramiko's table of channels, which gives each its buffers before the first packet for it can come."""

    def __init__(self, packetizer: BoundedPacketizer, window: int, stderr_bytes: int) -> None:
        super().__init__()
        self._packetizer = packetizer
        self._window = window
        self._stderr_bytes = stderr_bytes
        self._pipes: dict[int, ChunkPipe] = {}
        self._changing = threading.Lock()

    def put(self, chanid: int, chan: paramiko.Channel) -> None:
        pipe = replace_buffers(chan, self._window, self._stderr_bytes, patient=True)
        with self._changing:
            self._pipes[chanid] = pipe
            self._tell_packetizer()
        super().put(chanid, chan)

    def delete(self, chanid: int) -> None:
        with self._changing:
            self._pipes.pop(chanid, None)
            self._tell_packetizer()
        super().delete(chanid)

    def _tell_packetizer(self) -> None:
        self._packetizer.wakers = tuple(pipe.wake for pipe in self._pipes.values())


def replace_buffers(channel: paramiko.Channel, window: int, stderr_bytes: int, *, patient: bool = False) -> ChunkPipe:
    """Give *channel* our buffers, before anything has come for it; return the one for data."""
    pipe = ChunkPipe(window, "more than the channel's window allows (RFC 4254, 5.2)", patient=patient)
    channel.in_buffer = cast(Any, pipe)
    channel.in_stderr_buffer = cast(Any, ChunkPipe(stderr_bytes, f"more than {stderr_bytes} bytes on stderr"))
    return pipe


def watch_liveness(transport: paramiko.Transport, interval: float, count: int) -> None:
    """Watch from now on whether the other end of *transport*, which is ours, lives. See `Liveness`."""
    hidden = cast(Any, transport)

    def ask() -> bool:
        if not hidden.clear_to_send.is_set():  # keys are being exchanged: nothing else may be sent, and they are a sign
            return False
        message = Message()
        message.add_byte(cMSG_GLOBAL_REQUEST)
        message.add_string("keepalive@openssh.com")
        message.add_boolean(True)
        hidden._send_message(message)
        return True

    hidden.packetizer.liveness = Liveness(interval, count, ask)


def forget(transport: paramiko.Transport) -> None:
    """Make *transport* harmless in a forked child: nothing is sent on the parent's connection, only our copy closed."""
    cast(Any, transport).active = False
    with contextlib.suppress(OSError):
        transport.sock.close()
