"""From a host and a port to a connected socket, within a time, and if that fails once more."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from peerstage.errors import ConnectError, StageError, escape
from peerstage.session.watchdog import Watchdog
from peerstage.system_errors import is_of_this_machine, require_descriptors, start_thread, system_error

log = logging.getLogger("peerstage.session")

_SLICE = 0.05
#: Seconds between two attempts, as for ssh.
_PAUSE = 1.0

#: Look-ups that have not ended, by what was asked.
_under_way: dict[tuple[str, int, int], tuple[threading.Thread, list[Any]]] = {}


def dial(
    host: str,
    port: int,
    *,
    family: int,
    timeout: float,
    watchdog: Watchdog,
    attempts: int = 1,
    bind_address: str | None = None,
    note: Callable[[str, str], object] = lambda step, seen: None,
) -> tuple[socket.socket, float]:
    """Return a socket connected to *host*, trying each of its addresses, and the seconds that are left of the time.

    Args:
        host: A name or an address.
        port: TCP port.
        family: Address family, `socket.AF_UNSPEC` for any.
        timeout: Seconds for the name, and then for each attempt (the first shares them with the name).
        watchdog: Ends it.
        attempts: How often the addresses are tried, a second between. A name that is unknown is asked for once.
        bind_address: Local address or name to connect from.
        note: Told of the steps "address" and "connection" when they are done, and what was seen.

    Raises:
        ConnectError: The name is unknown, nothing listens there, or the time is up.
        Cancelled, LimitExceeded: The watchdog has ended it.
    """
    until = time.monotonic() + timeout
    addresses = _look_up(host, port, family, until, watchdog)
    note("address", ", ".join(dict.fromkeys(str(address[0]) for *_, address in addresses)))
    problem = ""
    for attempt in range(attempts):
        if attempt:
            log.info("%s port %s: %s; trying again.", escape(host), port, escape(problem))
            watchdog.sleep(_PAUSE)
            until = time.monotonic() + timeout
        sock, seen = _try_each(addresses, bind_address, until, watchdog)
        if sock is not None:
            note("connection", f"{seen} port {port}")
            return sock, max(0.0, until - time.monotonic())
        problem = seen
    tried = f" ({attempts} attempts)" if attempts > 1 else ""
    raise ConnectError(
        f"{host} port {port}: {problem}{tried}. Is the peer up, is that its port, and does no firewall stand between?"
    )


def _try_each(
    addresses: list[Any], bind_address: str | None, until: float, watchdog: Watchdog
) -> tuple[socket.socket | None, str]:
    """Return a socket connected to the first of *addresses* that answers, and which; or None and what went wrong."""
    problem = "no address"
    for number, (kind, sort, protocol, _name, address) in enumerate(addresses):
        left = until - time.monotonic()
        share = left / (len(addresses) - number)  # an address that swallows everything must not take the others' time
        with contextlib.ExitStack() as opened:
            try:
                sock = opened.enter_context(socket.socket(kind, sort, protocol))
                problem = _bind(sock, bind_address, until, watchdog) if bind_address is not None else ""
                if not problem:
                    problem = _connect(sock, address, time.monotonic() + share, watchdog)
            except StageError:
                raise
            except OSError as exc:
                if is_of_this_machine(exc):
                    raise system_error(f"No connection to {address[0]} can be made", exc) from exc
                problem = exc.strerror or str(exc)
            if not problem:
                opened.pop_all()
                return sock, str(address[0])
    return None, problem


def _bind(sock: socket.socket, address: str, until: float, watchdog: Watchdog) -> str:
    """Bind *sock* to a local address or name; return what went wrong, or an empty string."""
    try:
        place = _look_up(address, 0, sock.family, until, watchdog)[0][4]
        sock.bind(place)
    except ConnectError as exc:
        return f"BindAddress {address}: {exc.message.rstrip('.')}"
    except OSError as exc:
        return f"BindAddress {address}: {exc.strerror}"
    return ""


def _look_up(host: str, port: int, family: int, until: float, watchdog: Watchdog) -> list[Any]:
    """Return the addresses of *host*; see getaddrinfo(3).

    That call has no timeout and cannot be interrupted, so it runs in a daemon thread, which is left behind when it
    takes too long. A later look-up of the same name waits for that thread instead of starting another, so there is at
    most one for each name. It ends when the resolver gives up: see resolv.conf(5), by default after two attempts of
    5 s at each name server, for each search domain.
    """
    thread, found = _start_look_up(host, port, family)
    while thread.is_alive() and time.monotonic() < until:
        watchdog.check()
        thread.join(_SLICE)
    watchdog.check()
    if not found:
        raise ConnectError(f"The name {host} was not resolved in time. Does DNS answer?")
    if isinstance(found[0], BaseException):
        require_descriptors(f"The name {host} cannot be resolved")
        reason = found[0].strerror if isinstance(found[0], OSError) else str(found[0])
        if family == socket.AF_UNSPEC:
            raise ConnectError(f"The name {host} can not be resolved: {reason}. Is it spelt right?") from found[0]
        kind = "IPv6" if family == socket.AF_INET6 else "IPv4"
        raise ConnectError(
            f"The name {host} can not be resolved to an {kind} address: {reason}. Is it spelt right, and AddressFamily "
            "what is meant?"
        ) from found[0]
    answer: list[Any] = found[0]
    return answer


def _start_look_up(host: str, port: int, family: int) -> tuple[threading.Thread, list[Any]]:
    """Return a thread that looks *host* up, and the list that gets the answer, or the exception."""
    key = (host, port, family)
    thread, found = _under_way.get(key, (None, []))
    if thread is not None and thread.is_alive():  # after a fork, none of the parent's is
        return thread, found
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        except (OSError, UnicodeError) as exc:
            answer.append(exc)
        finally:
            _under_way.pop(key, None)

    thread = threading.Thread(target=ask, name="peerstage-resolver", daemon=True)
    _under_way[key] = thread, answer
    try:
        start_thread(thread)
    except StageError:
        _under_way.pop(key, None)
        raise
    return thread, answer


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
