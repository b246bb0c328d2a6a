"""The packet layer (RFC 4253, section 6): large reads, decryption in place, and bounds before anything is parsed."""

from __future__ import annotations

import contextlib
import mmap
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from paramiko.common import MSG_CHANNEL_DATA, MSG_EXT_INFO
from paramiko.message import Message

from peerstage.records import Limits
from peerstage.ssh._paramiko.exceptions import ClosedBeforeIdentification, PeerViolation
from peerstage.ssh._paramiko.internals import NeedRekeyException, TypedPacketizer
from peerstage.ssh.algorithms import REKEY_BYTES, REKEY_SECONDS
from peerstage.ssh.keepalive import Keepalive

_READ_BYTES = 512 * 1024
_GCM_TAG_BYTES = 16
_MAX_EXTENSIONS = 64
#: Bytes to accept under the old keys after a key exchange was requested: more than can be in flight.
_MAX_OLD_KEYS_BYTES = 1 << 30
#: A read of fewer bytes is a reply rather than part of a file, and is acknowledged at once.
_REPLY_BYTES = 4096
#: Linux only.
_TCP_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
_uint32 = struct.Struct(">I")


class BoundedPacketizer(TypedPacketizer):
    """paramiko's packet layer with bounds, fewer system calls and fewer copies.

    Args:
        sock: A connected socket.
        limits: Bounds for what the server sends.
        rekey_bytes: Bytes in either direction after which to rekey (RFC 4253, section 9).
        rekey_seconds: Seconds after which to rekey; None for never.
        clock: The monotonic clock.

    Attributes:
        may_rekey: Whether to start a key exchange when due. As in ssh, not before the login, when servers refuse it.
        wake_readers: Called before each wait for the socket: all data received so far is in the channel buffers.
        keepalive: Detects a dead connection, if set.
        overrides_run: Names of our methods that paramiko has called; see `OVERRIDES`.
    """

    #: The overrides that paramiko calls during every first key exchange.
    OVERRIDES = frozenset(
        ["need_rekey", "read_all", "read_message", "readline", "set_inbound_cipher", "set_outbound_cipher", "write_all"]
    )

    def __init__(
        self,
        sock: Any,
        limits: Limits,
        *,
        rekey_bytes: int = REKEY_BYTES,
        rekey_seconds: float | None = REKEY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(sock)
        self.REKEY_BYTES = rekey_bytes  # paramiko reads it by this name
        self.may_rekey = False
        self.wake_readers: tuple[Callable[[], None], ...] = ()
        self.keepalive: Keepalive | None = None
        self.overrides_run: set[str] = set()
        self._sock = sock
        self._is_tcp = isinstance(sock, socket.socket) and sock.family in (socket.AF_INET, socket.AF_INET6)
        self._limits = limits
        self._clock = clock
        self._rekey_seconds = rekey_seconds
        self._rekeyed_at = clock()
        self._is_switching_keys = False
        self._buffer = _allocate(_READ_BYTES + limits.packet_bytes)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._gcm_engine: Any = None
        self._gcm_fixed_iv = b""
        self._gcm_counter = 0
        self._bytes_under_keys = 0

    def start_handshake(self, timeout: float) -> None:
        """Do nothing: paramiko's timer thread would outlive a failed handshake, and the watchdog bounds the login."""

    # Keys and rekeying.

    def set_outbound_cipher(self, *args: Any, **kwargs: Any) -> None:
        """Send with new keys. paramiko calls `set_inbound_cipher` later, after the server's NEWKEYS."""
        self.overrides_run.add("set_outbound_cipher")
        self._is_switching_keys = True
        self._rekeyed_at = self._clock()
        super().set_outbound_cipher(*args, **kwargs)

    def set_inbound_cipher(self, *args: Any, **kwargs: Any) -> None:
        """Receive with new keys; keep those of AES-GCM, to decrypt in place (RFC 5647, section 7.1)."""
        self.overrides_run.add("set_inbound_cipher")
        super().set_inbound_cipher(*args, **kwargs)
        self._rekeyed_at = self._clock()
        self._is_switching_keys = False
        self._bytes_under_keys = 0
        self._gcm_engine = None
        if kwargs.get("aead"):
            self._gcm_engine = args[0] if args else kwargs["block_engine"]
            self._gcm_fixed_iv = kwargs["iv_in"][:4]
            self._gcm_counter = int.from_bytes(kwargs["iv_in"][4:], "big")

    def need_rekey(self) -> bool:
        """Return whether to start a key exchange; paramiko asks between messages and while it waits for one."""
        self.overrides_run.add("need_rekey")
        if self._rekey_seconds is not None and self._clock() - self._rekeyed_at >= self._rekey_seconds:
            self._trigger_rekey()
        return super().need_rekey()

    def _trigger_rekey(self) -> None:
        # Triggered between the two switches to new keys, paramiko would start a second exchange during the first.
        if self.may_rekey and not self._is_switching_keys:
            super()._trigger_rekey()

    # Sending.

    def write_all(self, out: Any) -> None:
        """Send the encrypted packet *out*; shut the connection down if that fails.

        The MAC or nonce of the next packet depends on this one (RFC 4253, section 6.4), so no reply would ever arrive.
        """
        self.overrides_run.add("write_all")
        try:
            super().write_all(out)
        except EOFError:
            with contextlib.suppress(OSError, AttributeError):
                self._sock.shutdown(socket.SHUT_RDWR)  # received data can still be read
            raise

    # Receiving.

    def readline(self, timeout: float) -> str:
        """Return the next line before the key exchange (RFC 4253, section 4.2). One bound applies to all of them."""
        self.overrides_run.add("readline")
        while True:
            newline = self._buffer.find(b"\n", self._start, self._end)
            if newline >= 0:
                break
            if self._end >= self._limits.banner_bytes:
                raise PeerViolation(
                    f"more than {self._limits.banner_bytes} bytes (Limits.banner_bytes) without an SSH identification"
                )
            try:
                self._receive(check_rekey=False, max_bytes=self._limits.banner_bytes - self._end)
            except (EOFError, ConnectionError):
                text = bytes(self._view[: self._end]).decode("utf-8", "backslashreplace").strip()
                raise ClosedBeforeIdentification(text) from None
        line = bytes(self._view[self._start : newline]).rstrip(b"\r")
        self._start = newline + 1
        return line.decode("utf-8", "backslashreplace")

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """Return the next *n* bytes of the connection."""
        self.overrides_run.add("read_all")
        self._fill(n, check_rekey=check_rekey)
        data = bytes(self._view[self._start : self._start + n])
        self._start += n
        return data

    def read_message(self) -> tuple[int, Message]:
        """Return the number and the content of the next message, decrypted and authenticated."""
        if self._gcm_engine is None:
            self.overrides_run.add("read_message")
            number, message = super().read_message()
            if number == MSG_EXT_INFO:
                _check_extensions(message.asbytes())
            return number, message
        self._fill(4, check_rekey=True)
        (size,) = _uint32.unpack_from(self._buffer, self._start)
        self._fill(4 + size + _GCM_TAG_BYTES, check_rekey=False)
        start, end = self._start, self._start + 4 + size + _GCM_TAG_BYTES
        nonce = self._gcm_fixed_iv + self._gcm_counter.to_bytes(8, "big")
        packet: bytes = self._gcm_engine.decrypt(nonce, self._view[start + 4 : end], self._view[start : start + 4])
        self._start = end
        self._gcm_counter = (self._gcm_counter + 1) & 0xFFFFFFFFFFFFFFFF
        payload_end = size - packet[0]
        if payload_end < 2:
            raise PeerViolation("an SSH packet without a message")
        number = packet[1]
        message = _ChannelData(packet, payload_end) if number == MSG_CHANNEL_DATA else Message(packet[2:payload_end])
        if number == MSG_EXT_INFO:
            _check_extensions(packet[2:payload_end])
        self._count_packet(message, end - start)
        return number, message

    def _count_packet(self, message: Message, packet_bytes: int) -> None:
        """Set the message's sequence number, and trigger a rekey when these keys have protected enough data."""
        message.seqno = self._Packetizer__sequence_number_in
        self._Packetizer__sequence_number_in = (message.seqno + 1) & 0xFFFFFFFF
        self._bytes_under_keys += packet_bytes
        if self._bytes_under_keys >= self.REKEY_BYTES:
            if self._bytes_under_keys >= self.REKEY_BYTES + _MAX_OLD_KEYS_BYTES:
                raise PeerViolation("the server ignores the request to rekey")
            self._trigger_rekey()

    def _fill(self, n: int, *, check_rekey: bool) -> None:
        """Wait until the buffer holds *n* bytes."""
        if n < 0:
            raise PeerViolation("an SSH packet with an invalid length")
        if n > self._limits.packet_bytes + 64:
            raise PeerViolation(
                f"an SSH packet of {n} bytes, more than {self._limits.packet_bytes} (Limits.packet_bytes)"
            )
        while self._end - self._start < n:
            if self._start and (self._start == self._end or self._start + n > len(self._buffer)):
                self._buffer.move(0, self._start, self._end - self._start)
                self._start, self._end = 0, self._end - self._start
            is_between_packets = self._start == self._end
            self._receive(check_rekey=check_rekey and is_between_packets, max_bytes=len(self._buffer) - self._end)

    def _receive(self, *, check_rekey: bool, max_bytes: int) -> None:
        """Read once from the socket, at most *max_bytes*; its short timeout makes `close` take effect."""
        for wake in self.wake_readers:
            wake()
        while True:
            try:
                count = self._sock.recv_into(self._view[self._end : self._end + max_bytes])
            except (TimeoutError, BlockingIOError):
                if self.closed:
                    raise EOFError from None
                if self.keepalive is not None:
                    self.keepalive.on_idle()
                if check_rekey and self.need_rekey():
                    raise NeedRekeyException from None
                continue
            except OSError:
                if self.closed:
                    raise EOFError from None
                raise
            if not count:
                raise EOFError
            if self.keepalive is not None:
                self.keepalive.on_received()
            self._end += count
            if count < _REPLY_BYTES:
                self._acknowledge()
            return

    def _acknowledge(self) -> None:
        """Disable delayed acknowledgements for the received data (TCP_QUICKACK in tcp(7), which is not permanent).

        Until a session starts, sshd leaves Nagle's algorithm on, so that the second of two small replies waits for the
        acknowledgement of the first: a delayed one costs 40 ms per login.
        """
        if self._is_tcp and _TCP_QUICKACK is not None:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 1)

    def free_buffer(self) -> None:
        """Free the receive buffer; nothing can be received after that. To be called by the receiving thread at its end.

        The objects of a connection refer to each other, so the garbage collector may find them much later.
        """
        del self._view, self._buffer


def _allocate(size: int) -> mmap.mmap:
    """Return *size* zero bytes that take memory only where they are used, and none once they are freed."""
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, size)
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as exc:
        raise MemoryError from exc


class _ChannelData(Message):
    """SSH_MSG_CHANNEL_DATA (RFC 4254, section 5.2) whose data is not copied."""

    def __init__(self, packet: bytes, payload_end: int) -> None:
        self._packet = packet
        self._payload_end = payload_end

    def get_int(self) -> int:
        """Return the recipient channel."""
        channel: int = _uint32.unpack_from(self._packet, 2)[0]
        return channel

    def get_binary(self) -> Any:
        """Return the data."""
        (length,) = _uint32.unpack_from(self._packet, 6)
        if 10 + length != self._payload_end:
            raise PeerViolation("channel data whose length is not that of its packet")
        return memoryview(self._packet)[10 : self._payload_end]


def _check_extensions(payload: bytes) -> None:
    """Reject an extension count (RFC 8308, section 2.3) that would keep paramiko in a loop for hours."""
    if len(payload) < 4:
        raise PeerViolation("an invalid SSH_MSG_EXT_INFO")
    if _uint32.unpack_from(payload)[0] > _MAX_EXTENSIONS:
        raise PeerViolation("an extension message with too many extensions")
