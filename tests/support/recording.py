"""A proxy that records what a client sends, and a count of the bytes after its NEWKEYS."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def record_connection(port: int) -> Iterator[tuple[int, bytearray]]:
    """Forward one connection to *port*; yield the port to connect to, and what the client sends."""
    with record_connections(port, max_connections=1) as (proxy_port, sent):
        sent.append(bytearray())
        yield proxy_port, sent[0]


@contextlib.contextmanager
def record_connections(port: int, max_connections: int = 100) -> Iterator[tuple[int, list[bytearray]]]:
    """Forward connections to *port* one by one; yield the port to connect to, and what the client sends on each."""
    sent: list[bytearray] = []
    server = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, sink: socket.socket, record: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if record is not None:
                    record += data
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            for number in range(max_connections):
                ours, _ = server.accept()
                if len(sent) == number:
                    sent.append(bytearray())
                with ours, socket.create_connection(("127.0.0.1", port)) as theirs:
                    back = threading.Thread(target=copy, args=(theirs, ours, None))
                    back.start()
                    copy(ours, theirs, sent[number])
                    back.join()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1], sent
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


NEWKEYS = 21


def count_bytes_after_newkeys(sent: bytes) -> int:
    """Return how many bytes a client sent after its NEWKEYS; packets before it are in the clear (RFC 4253, 6)."""
    at = sent.index(b"\n") + 1
    while at < len(sent):
        length = int.from_bytes(sent[at : at + 4], "big")
        kind = sent[at + 5]
        at += 4 + length
        if kind == NEWKEYS:
            return len(sent) - at
    raise AssertionError("No NEWKEYS was sent.")
