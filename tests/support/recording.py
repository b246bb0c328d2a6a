"""A proxy that writes down what a client sends, and what of that came behind its NEWKEYS."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def recording(port: int) -> Iterator[tuple[int, bytearray]]:
    """Pass one connection on to *port*; yield the port to connect to, and what the client sends."""
    with recording_each(port, most=1) as (place, sent):
        sent.append(bytearray())
        yield place, sent[0]


@contextlib.contextmanager
def recording_each(port: int, most: int = 100) -> Iterator[tuple[int, list[bytearray]]]:
    """Pass so many connections on to *port*, one after the other; yield the port, and what the client sends on each."""
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
            for number in range(most):
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


def bytes_after_newkeys(sent: bytes) -> int:
    """Return how many bytes a client sent after its NEWKEYS; packets before it are in the clear (RFC 4253, 6)."""
    at = sent.index(b"\n") + 1
    while at < len(sent):
        length = int.from_bytes(sent[at : at + 4], "big")
        kind = sent[at + 5]
        at += 4 + length
        if kind == NEWKEYS:
            return len(sent) - at
    raise AssertionError("No NEWKEYS was sent.")
