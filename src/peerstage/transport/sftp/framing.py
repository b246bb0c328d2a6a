"""From chunks of a stream to SFTP packets, without copying file data."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from peerstage.errors import ConnectionLost, NoSFTP, ProtocolError, escape
from peerstage.landing.base import Buffer
from peerstage.reasons import Reason
from peerstage.transport.chunks import ChunkReader
from peerstage.transport.sftp.wire import DATA, VERSION_REPLY

_head = struct.Struct(">IB")
_packet_head = struct.Struct(">IBI")
_data_head = struct.Struct(">IBII")
_u32 = struct.Struct(">I")


class Packet(NamedTuple):
    """One reply: its type, its number, and what follows; the data of SSH_FXP_DATA as pieces in their order."""

    kind: int
    number: int
    body: list[Buffer] | bytes


class PacketReader(ChunkReader):
    """Cuts the chunks that *receive* returns into packets of at most *most* bytes.

    Args:
        receive: Returns the next chunk; empty at the end of the stream.
        most: The longest packet that is taken, in bytes.

    Attributes:
        opening: What came in the place of the first packet, its beginning; "" if nothing did.
    """

    def __init__(self, receive: Callable[[], Buffer], *, most: int) -> None:
        super().__init__(receive)
        self._most = most
        self.opening = ""

    def next_version(self) -> bytes:
        """Return the body of the first packet, which must be SSH_FXP_VERSION.

        Raises:
            NoSFTP: The channel ended without a byte (draft-ietf-secsh-filexfer-02, 4, has the server answer first).
            ProtocolError: Something else came; text (of a login script, mostly) is quoted.
        """
        head = self._take_up_to(_head.size)
        if not head:
            raise NoSFTP(
                "The peer ended the SFTP subsystem without a word: it has no SFTP server, or a forced command. "
                'Install one there, or use transport="scp".'
            )
        length, kind = _head.unpack(head) if len(head) == _head.size else (0, 0)
        if kind != VERSION_REPLY or not 5 <= length <= self._most:
            self.opening = self._quote(head)
            raise ProtocolError(
                f"The peer's SFTP server begins with {escape(self.opening)!r}, which is not SFTP. "
                "A login script that prints text does this: silence it for sessions that are not interactive, "
                'or use transport="scp".',
                reason=Reason.TEXT_BEFORE_PROTOCOL,
            )
        return self._take(length - 1)

    def next(self) -> Packet:
        """Return the next packet.

        Raises:
            ProtocolError: Its length can not be.
            ConnectionLost: The stream ended.
        """
        chunk, at = self._chunk, self._at
        if len(chunk) - at >= _data_head.size:  # mostly, the whole packet lies in one chunk
            length, kind, number = _packet_head.unpack_from(chunk, at)
            end = at + 4 + length
            if end <= len(chunk) and kind != DATA and 5 <= length <= self._most:
                self._at = end
                return Packet(kind, number, bytes(chunk[at + 9 : end]))
        head = self._take(_packet_head.size)
        length, kind, number = _packet_head.unpack(head)
        if not 5 <= length <= self._most:
            raise ProtocolError(f"The peer sent an SFTP packet of {length} bytes; at most {self._most} are taken.")
        if kind != DATA:
            return Packet(kind, number, self._take(length - 5))
        if length < 9:
            raise ProtocolError("The peer sent SFTP data without a length.")
        (size,) = _u32.unpack(self._take(4))
        if size != length - 9:
            raise ProtocolError(
                f"The peer says that {size} bytes of data fill a packet that has room for {length - 9}."
            )
        return Packet(kind, number, self._pieces(size))

    def _take(self, n: int) -> bytes:
        end = self._at + n
        if end <= len(self._chunk):
            data = bytes(self._chunk[self._at : end])
            self._at = end
            return data
        return b"".join(self._pieces(n))

    def _take_up_to(self, n: int) -> bytes:
        """Return the next *n* bytes, or what there is before the end."""
        data = b""
        while len(data) < n and self._fill():
            data += self._some(n - len(data))
        return data

    def _pieces(self, n: int) -> list[Buffer]:
        pieces: list[Buffer] = []
        while n:
            if not self._fill():
                raise ConnectionLost("The peer's SFTP server ended the conversation.")
            piece = self._some(n)
            pieces.append(piece)
            n -= len(piece)
        return pieces

    def _quote(self, head: bytes) -> str:
        text = head + bytes(self._chunk[self._at : self._at + 200])
        return text.decode("utf-8", "backslashreplace")[:120].rstrip()
