"""Split the byte stream of an SFTP channel into packets, without copying file data."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from peerstage.errors import ConnectionLost, NoSFTP, ProtocolError
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.target.base import Buffer
from peerstage.transport.chunk_reader import ChunkReader
from peerstage.transport.sftp.wire import FXP_DATA, FXP_VERSION

_version_head = struct.Struct(">IB")
_packet_head = struct.Struct(">IBI")
_u32 = struct.Struct(">I")


class Packet(NamedTuple):
    """A reply.

    Attributes:
        type: Its packet type, one of ``wire.FXP_*``.
        request_id: The id of the request that it answers.
        body: What follows the id; for SSH_FXP_DATA the file data alone, in the chunks in which it arrived.
    """

    type: int
    request_id: int
    body: list[Buffer] | bytes


class PacketReader(ChunkReader):
    """Read packets from the chunks that *receive* returns.

    Args:
        receive: Returns the next chunk; empty at the end of the stream.
        max_packet_bytes: The length of the longest packet to accept.

    Attributes:
        unexpected_text: The beginning of what the server sent instead of SSH_FXP_VERSION; "" if it sent that, or
            nothing.
    """

    def __init__(self, receive: Callable[[], Buffer], *, max_packet_bytes: int) -> None:
        super().__init__(receive)
        self._max_packet_bytes = max_packet_bytes
        self.unexpected_text = ""

    def read_version(self) -> bytes:
        """Return the body of SSH_FXP_VERSION, which must be the first packet (draft-ietf-secsh-filexfer-02, section 4).

        Raises:
            NoSFTP: If the server closed the channel without sending a byte.
            ProtocolError: If it sent anything else. Text, such as the output of a login script, is quoted.
            ConnectionLost: If the stream ended within the packet.
        """
        head = self._take_up_to(_version_head.size)
        if not head:
            raise NoSFTP(
                "The peer closed the SFTP subsystem without sending a byte: it has no SFTP server, or a forced command "
                "runs in its place. Install an SFTP server there, or choose the transport scp."
            )
        length, packet_type = _version_head.unpack(head) if len(head) == _version_head.size else (0, 0)
        if packet_type != FXP_VERSION or not 5 <= length <= self._max_packet_bytes:
            text = head + bytes(self._chunk[self._position : self._position + 200])
            self.unexpected_text = text.decode("utf-8", "backslashreplace")[:120].rstrip()
            raise ProtocolError(
                f"The peer's SFTP server sent {escape(self.unexpected_text)!r}, which is not SFTP. "
                "A login script that prints text does this: make it silent in non-interactive sessions, or set "
                "`Subsystem sftp internal-sftp` in its sshd_config.",
                reason=Reason.TEXT_BEFORE_PROTOCOL,
            )
        return self._take(length - 1)

    def read_packet(self) -> Packet:
        """Return the next packet.

        Raises:
            ProtocolError: If its length is invalid or above the limit.
            ConnectionLost: If the stream ended.
        """
        chunk, at = self._chunk, self._position
        if len(chunk) - at >= _packet_head.size:  # fast path: most packets lie in one chunk
            length, packet_type, request_id = _packet_head.unpack_from(chunk, at)
            end = at + 4 + length
            if end <= len(chunk) and packet_type != FXP_DATA and 5 <= length <= self._max_packet_bytes:
                self._position = end
                return Packet(packet_type, request_id, bytes(chunk[at + 9 : end]))
        length, packet_type, request_id = _packet_head.unpack(self._take(_packet_head.size))
        if not 5 <= length <= self._max_packet_bytes:
            raise ProtocolError(
                f"The peer sent an SFTP packet of {length} bytes; 5 to {self._max_packet_bytes} are allowed."
            )
        if packet_type != FXP_DATA:
            return Packet(packet_type, request_id, self._take(length - 5))
        if length < 9:
            raise ProtocolError("The peer sent SSH_FXP_DATA without the length of its data.")
        (size,) = _u32.unpack(self._take(4))
        if size != length - 9:
            raise ProtocolError(f"The peer sent SSH_FXP_DATA of {length - 9} bytes that claims to hold {size}.")
        return Packet(packet_type, request_id, self._take_pieces(size))

    def _take(self, size: int) -> bytes:
        end = self._position + size
        if end <= len(self._chunk):
            data = bytes(self._chunk[self._position : end])
            self._position = end
            return data
        return b"".join(self._take_pieces(size))

    def _take_up_to(self, size: int) -> bytes:
        """Return the next *size* bytes, or fewer if the stream ends."""
        data = b""
        while len(data) < size and self._fill():
            data += self._read_some(size - len(data))
        return data

    def _take_pieces(self, size: int) -> list[Buffer]:
        pieces: list[Buffer] = []
        while size:
            if not self._fill():
                raise ConnectionLost("The peer's SFTP server closed the channel.")
            piece = self._read_some(size)
            pieces.append(piece)
            size -= len(piece)
        return pieces
