"""The packet layer: what comes is read in large pieces, decrypted where it lies, and bounded before it is believed."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, cast

from paramiko.common import MSG_CHANNEL_DATA, MSG_EXT_INFO
from paramiko.message import Message
from paramiko.packet import NeedRekeyException, Packetizer

from peerstage.records import Limits
from peerstage.session.algorithms import REKEY_BYTES, REKEY_SECONDS
from peerstage.session.liveness import Liveness
from peerstage.session.pipe import HungUp, Violation

_READ_BYTES = 512 * 1024
_GCM_TAG = 16
_MOST_EXTENSIONS = 64
#: Bytes that the server may still send with old keys when new ones were asked for: more than can be under way.
_OLD_KEYS_BYTES = 1 << 30
#: Bytes below which what was received at once is taken for an answer, and not for a part of a file.
_SMALL_ANSWER = 4096
#: Linux alone has it.
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
_uint32 = struct.Struct(">I")


class BoundedPacketizer(Packetizer):
    """paramiko's packet layer (RFC 4253, 6) with bounds, fewer system calls and fewer copies.

    Args:
        sock: Connected.
        limits: Bounds for what comes.
        rekey_bytes: Bytes, either way, after which new keys are asked for (RFC 4253, 9).
        rekey_seconds: Seconds after which they are, None for never.

    Attributes:
        may_rekey: Whether new keys are asked for; like ssh, not before the login, during which servers refuse it.
    """

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
        self.REKEY_BYTES = rekey_bytes  # what paramiko counts against, where it counts itself
        self.may_rekey = False
        self._rekey_seconds = rekey_seconds
        self._clock = clock
        self._keyed_at = clock()
        self._between_keys = False
        self._sock = sock
        self._limits = limits
        self._buffer = bytearray(_READ_BYTES + limits.packet_bytes)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._engine: Any = None
        self._fixed_iv = b""
        self._counter = 0
        self._received = 0
        self._is_tcp = isinstance(sock, socket.socket) and sock.family in (socket.AF_INET, socket.AF_INET6)
        self.wakers: tuple[Callable[[], None], ...] = ()  # called when all that has come was handed on
        self.liveness: Liveness | None = None

    # What would outlive a failed handshake: a timer thread for each (the watchdog bounds the login instead).

    def start_handshake(self, timeout: float) -> None:
        """Start no timer."""

    def set_outbound_cipher(self, *args: Any, **kwargs: Any) -> None:
        """Take new keys for what is sent; those for what comes follow (paramiko calls these two in that order)."""
        self._between_keys = True
        self._keyed_at = self._clock()
        super().set_outbound_cipher(*args, **kwargs)

    def set_inbound_cipher(self, *args: Any, **kwargs: Any) -> None:
        """Take new keys; for AES-GCM keep what is needed to decrypt in place (RFC 5647, 7.1)."""
        super().set_inbound_cipher(*args, **kwargs)
        self._keyed_at = self._clock()
        self._between_keys = False
        self._engine = args[0] if args else kwargs["block_engine"]
        if kwargs.get("aead"):
            self._fixed_iv = kwargs["iv_in"][:4]
            self._counter = int.from_bytes(kwargs["iv_in"][4:], "big")
        else:
            self._engine = None
        self._received = 0

    def need_rekey(self) -> bool:
        """Whether new keys are to be agreed on; asked between any two messages, and while none comes."""
        if self._rekey_seconds is not None and self._clock() - self._keyed_at >= self._rekey_seconds:
            self._trigger_rekey()
        return super().need_rekey()

    def _trigger_rekey(self) -> None:
        # Asked for between the two switches to new keys, paramiko would begin another exchange before this one ends.
        if self.may_rekey and not self._between_keys:
            cast(Any, super())._trigger_rekey()

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
                raise HungUp(said) from None
        line = bytes(self._view[self._start : newline]).rstrip(b"\r")
        self._start = newline + 1
        return line.decode("utf-8", "backslashreplace")

    def write_all(self, out: Any) -> None:
        """Send *out*, which was encrypted as the next packet; if that fails the connection is ended both ways.

        Without that packet no other is understood (RFC 4253, 6.4), and whoever waits for the answer would wait in vain.
        """
        try:
            super().write_all(out)
        except EOFError:
            with contextlib.suppress(OSError, AttributeError):
                self._sock.shutdown(socket.SHUT_RDWR)  # what has come already can still be read
            raise

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
            if self._received >= self.REKEY_BYTES + _OLD_KEYS_BYTES:
                raise Violation("the server goes on with old keys")
            self._trigger_rekey()

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
            if count < _SMALL_ANSWER:
                self._acknowledge()
            return

    def _acknowledge(self) -> None:
        """Have the system acknowledge at once what it has received (TCP_QUICKACK in tcp(7), which does not last).

        Until a session starts sshd leaves Nagle's algorithm on, so that the second of two small answers waits for the
        acknowledgement of the first, and a delayed one costs 40 ms at each login.
        """
        if self._is_tcp and _QUICKACK is not None:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


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
