"""A proxy in front of the embedded server that cuts off, holds up or slows down what the server sends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

from peerstage.testing.faults import Faults

_CHUNK_SIZE = 64 * 1024
#: Seconds until a connection that was cut off is closed, if the client does not close it.
_CLOSE_TIMEOUT = 1.0


async def listen_with_faults(host: str, port: int, faults: Faults) -> int:
    """Forward connections to the server at *port*; return the port of the proxy."""
    numbers = itertools.count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own_faults = faults if faults.apply_to(next(numbers)) else Faults()
        with contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(host, port)
            to_server = asyncio.create_task(_forward(reader, server_writer))
            to_client = asyncio.create_task(_forward_with_faults(server_reader, writer, own_faults))
            await asyncio.wait([to_server, to_client], return_when=asyncio.FIRST_COMPLETED)
            for task in (to_server, to_client):
                task.cancel()
            server_writer.close()
        writer.close()

    listener = await asyncio.start_server(serve, host, 0)
    proxy_port: int = listener.sockets[0].getsockname()[1]
    return proxy_port


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward what a client sends, until it closes its side or the connection is lost."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_SIZE):
            writer.write(data)
            await writer.drain()


async def _forward_with_faults(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults) -> None:
    """Forward what the server sends; return when the connection is to be closed."""
    end = faults.cut_after if faults.cut_after is not None else faults.stall_after
    rate = faults.bytes_per_second
    chunk_size = _CHUNK_SIZE if rate is None else max(1, min(_CHUNK_SIZE, rate // 10))
    sent = 0
    with contextlib.suppress(OSError):
        while end is None or sent < end:
            data = await reader.read(chunk_size if end is None else min(chunk_size, end - sent))
            if not data:
                return
            writer.write(data)
            await writer.drain()
            sent += len(data)
            if rate is not None:
                await asyncio.sleep(len(data) / rate)
        if faults.cut_after is None:
            await asyncio.Event().wait()  # until the client closes the connection
        # End with FIN, and let the client close: a reset would discard what it has not read yet.
        writer.write_eof()
        await asyncio.sleep(_CLOSE_TIMEOUT)
