"""From a host and a port to a connected socket, within a time."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from peerstage.errors import ConnectError
from peerstage.session.watchdog import Watchdog

_SLICE = 0.05


def dial(
    host: str,
    port: int,
    *,
    family: int,
    timeout: float,
    watchdog: Watchdog,
    note: Callable[[str, str], object] = lambda step, seen: None,
) -> socket.socket:
    """Return a socket connected to *host*, trying each of its addresses, all within *timeout* seconds.

    *note* is told of the steps "address" and "connection" when they are done, and what was seen.

    Raises:
        ConnectError: The name is unknown, nothing listens there, or the time is up.
        Cancelled: The watchdog was told to cancel.
    """
    until = time.monotonic() + timeout
    addresses = _look_up(host, port, family, until, watchdog)
    note("address", ", ".join(dict.fromkeys(str(address[0]) for *_, address in addresses)))
    problem = "no address"
    for number, (kind, sort, protocol, _name, address) in enumerate(addresses):
        left = until - time.monotonic()
        share = left / (len(addresses) - number)  # an address that swallows everything must not take the others' time
        sock = socket.socket(kind, sort, protocol)
        try:
            problem = _connect(sock, address, time.monotonic() + share, watchdog)
        except BaseException:
            sock.close()
            raise
        if not problem:
            note("connection", f"{address[0]} port {port}")
            return sock
        sock.close()
    raise ConnectError(
        f"{host} port {port}: {problem}. Is the peer up, is that its port, and does no firewall stand between?"
    )


def _look_up(host: str, port: int, family: int, until: float, watchdog: Watchdog) -> list[Any]:
    """getaddrinfo(3) knows no limit of time, so it runs in a thread that is left behind when it takes too long."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        except (OSError, UnicodeError) as exc:
            found.append(exc)

    thread = threading.Thread(target=ask, name="peerstage-resolver", daemon=True)
    thread.start()
    while thread.is_alive() and time.monotonic() < until:
        watchdog.check()
        thread.join(_SLICE)
    watchdog.check()
    if not found:
        raise ConnectError(f"The name {host} was not resolved in time. Does DNS answer?")
    if isinstance(found[0], BaseException):
        reason = found[0].strerror if isinstance(found[0], OSError) else str(found[0])
        raise ConnectError(f"The name {host} can not be resolved: {reason}. Is it spelt right?") from found[0]
    answer: list[Any] = found[0]
    return answer


def _connect(sock: socket.socket, address: Any, until: float, watchdog: Watchdog) -> str:
    """Connect *sock*; return what went wrong, or an empty string."""
    sock.setblocking(False)
    code = sock.connect_ex(address)
    if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        while True:
            watchdog.check()
            if poll.poll(_SLICE * 1000):
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                break
            if time.monotonic() > until:
                return "no answer in time"
    if code:
        return os.strerror(code)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setblocking(True)
    return ""
