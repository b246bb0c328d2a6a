"""A line to a server that carries so many bytes a second, for all connections together."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from support.ssh_server import listening

_PIECE = 4096


class SlowLine:
    """Hands on what the server says as fast as *rate* allows, and what the client says at once.

    Args:
        port: Where the server listens on the loopback address.
        rate: Bytes per second.

    Attributes:
        connections: How many there were.
    """

    def __init__(self, port: int, rate: float) -> None:
        self.connections = 0
        self._port = port
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    @contextlib.contextmanager
    def open(self) -> Iterator[int]:
        """Yield the port of the line's near end."""
        with listening(self._carry) as port:
            yield port

    def _carry(self, client: socket.socket) -> None:
        self.connections += 1
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            upward = threading.Thread(target=self._upward, args=(client, server), daemon=True)
            upward.start()
            try:
                while data := server.recv(_PIECE):
                    self._take_turn(len(data))
                    client.sendall(data)
            finally:
                for sock in (client, server):
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
                upward.join(10)

    @staticmethod
    def _upward(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _take_turn(self, size: int) -> None:
        """Wait until the line has carried what came before, and this."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size / self._rate
            until = self._free_at
        time.sleep(max(0.0, until - time.monotonic()))
