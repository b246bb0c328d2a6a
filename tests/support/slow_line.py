"""A line to a server with a limited rate, which all connections share."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from support.ssh_server import listening

_PIECE = 4096


class SlowLine:
    """Forwards the server's bytes at *rate*, and the client's immediately.

    Args:
        port: Where the server listens on the loopback address.
        rate: Bytes per second.

    Attributes:
        connections: The number of connections so far.
    """

    def __init__(self, port: int, rate: float) -> None:
        self.connections = 0
        self._port = port
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    @contextlib.contextmanager
    def open(self) -> Iterator[int]:
        """Yield the port to connect to."""
        with listening(self._carry) as port:
            yield port

    def _carry(self, client: socket.socket) -> None:
        self.connections += 1
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            to_server = threading.Thread(target=self._relay_to_server, args=(client, server), daemon=True)
            to_server.start()
            try:
                while data := server.recv(_PIECE):
                    self._take_turn(len(data))
                    client.sendall(data)
            finally:
                for sock in (client, server):
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
                to_server.join(10)

    @staticmethod
    def _relay_to_server(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _take_turn(self, size: int) -> None:
        """Wait until the line has carried *size* bytes and everything before them."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size / self._rate
            until = self._free_at
        time.sleep(max(0.0, until - time.monotonic()))
