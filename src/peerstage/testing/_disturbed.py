"""A bad line in front of a server: what that sends is cut, held up or slowed down on its way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

from peerstage.testing.faults import Faults

_PIECE = 64 * 1024


async def listen_disturbed(host: str, port: int, faults: Faults) -> int:
    """Pass connections on to the server at *port*; return the port of the bad line."""
    numbers = itertools.count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        disturbing = faults if faults.are_of(next(numbers)) else Faults()
        with contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(host, port)
            up = asyncio.create_task(_copy(reader, server_writer))
            down = asyncio.create_task(_disturb(server_reader, writer, disturbing))
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
            for task in (up, down):
                task.cancel()
            server_writer.close()
        writer.close()

    listener = await asyncio.start_server(serve, host, 0)
    port_of_ours: int = listener.sockets[0].getsockname()[1]
    return port_of_ours


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on all that a client sends; return when it has closed its side, or has gone."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()


async def _disturb(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults) -> None:
    """Pass on what the server sends; return when the connection is to be closed."""
    end = faults.cut_after if faults.cut_after is not None else faults.stall_after
    rate = faults.bytes_per_second
    piece = _PIECE if rate is None else max(1, min(_PIECE, rate // 10))
    sent = 0
    with contextlib.suppress(OSError):
        while end is None or sent < end:
            data = await reader.read(piece if end is None else min(piece, end - sent))
            if not data:
                return
            writer.write(data)
            await writer.drain()
            sent += len(data)
            if rate is not None:
                await asyncio.sleep(len(data) / rate)
        if faults.cut_after is None:
            await asyncio.Event().wait()  # the client ends it
