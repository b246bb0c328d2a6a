"""The way down to a child: jobs in JSON, each behind its length, and with one of them perhaps a descriptor."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from typing import Any

from peerstage.isolation.messages import decode_json, encode_json

_LENGTH = struct.Struct(">I")


def encode_job(job: dict[str, Any]) -> bytes:
    """Return *job* as it is sent."""
    body = encode_json(job)
    return _LENGTH.pack(len(body)) + body


class JobReader:
    """Receives jobs, in the child.

    Args:
        sock: The lower end of a pair of UNIX sockets.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def next(self) -> tuple[dict[str, Any], int] | None:
        """Return the next job and the descriptor that came with it, or -1; None once there will be none."""
        head, fd = self._receive(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(head)
        body, more = self._receive(length)
        if len(body) < length:
            return None
        return decode_json(body), max(fd, more)

    def _receive(self, size: int) -> tuple[bytes, int]:
        """Return so many bytes, fewer at the end of the stream, and the descriptor among them."""
        found = bytearray()
        fd = -1
        while len(found) < size:
            with contextlib.suppress(ConnectionResetError):
                piece, fds, _flags, _address = socket.recv_fds(self._sock, size - len(found), 1)
                for one in fds:
                    fd = one
                    os.set_inheritable(fd, False)
                if piece:
                    found += piece
                    continue
            break
        return bytes(found), fd


def send_some(sock: socket.socket, data: memoryview, fd: int) -> int:
    """Send as much of *data* as fits, and *fd* with it if it is one; return how many bytes went."""
    extra = [] if fd < 0 else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    return sock.sendmsg([data], extra)
