"""From a host and a port to a connected socket, within a time, and if that fails once more."""

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

from peerstage.errors import ConnectError, StageError, escape
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.session.watchdog import Watchdog
from peerstage.system_errors import is_of_this_machine, require_descriptors, start_thread, system_error

_log = PeerLog("peerstage.session")

_SLICE = 0.05
#: Seconds between two attempts, as for ssh.
_PAUSE = 1.0

_REASONS = {
    errno.ECONNREFUSED: Reason.CONNECTION_REFUSED,
    errno.ETIMEDOUT: Reason.CONNECT_TIMEOUT,
    errno.ECONNRESET: Reason.CLOSED_BEFORE_BANNER,
    **dict.fromkeys((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN), Reason.HOST_UNREACHABLE),
}

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
    log: PeerLog = _log,
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
        log: For attempts that failed.
        note: Told of the steps "address" and "connection" when they are done, and what was seen.

    Raises:
        ConnectError: The name is unknown, nothing listens there, or the time is up.
        Cancelled, LimitExceeded: The watchdog has ended it.
    """
    until = time.monotonic() + timeout
    addresses = _look_up(host, port, family, until, watchdog)
    note("address", ", ".join(dict.fromkeys(str(address[0]) for *_, address in addresses)))
    problem = ConnectError("no attempt was made", reason=Reason.CONNECT_FAILED)
    for attempt in range(attempts):
        if attempt:
            words = escape(problem.message)
            log.info("%s port %s: %s; trying again. [%s]", escape(host), port, words, problem.reason)
            watchdog.sleep(_PAUSE)
            until = time.monotonic() + timeout
        try:
            sock, address = _try_each(addresses, bind_address, until, watchdog)
        except ConnectError as exc:
            problem = exc
            continue
        note("connection", f"{address} port {port}")
        return sock, max(0.0, until - time.monotonic())
    tried = f" ({attempts} attempts)" if attempts > 1 else ""
    raise ConnectError(
        f"{host} port {port}: {problem.message}{tried}. Is the peer up, is that its port, and does no firewall stand "
        "between?",
        errno=problem.errno,
        reason=problem.reason,
    ) from problem


def _try_each(
    addresses: list[Any], bind_address: str | None, until: float, watchdog: Watchdog
) -> tuple[socket.socket, str]:
    """Return a socket connected to the first of *addresses* that answers, and which.

    Raises:
        ConnectError: If none does; the message is what went wrong with the last, to follow its name.
    """
    problem = ConnectError("no address", reason=Reason.NAME_NOT_RESOLVED)
    for number, (kind, sort, protocol, _name, address) in enumerate(addresses):
        left = until - time.monotonic()
        share = left / (len(addresses) - number)  # an address that swallows everything must not take the others' time
        with contextlib.ExitStack() as opened:
            try:
                sock = opened.enter_context(socket.socket(kind, sort, protocol))
                if bind_address is not None:
                    _bind(sock, bind_address, until, watchdog)
                _connect(sock, address, time.monotonic() + share, watchdog)
                opened.pop_all()
                return sock, str(address[0])
            except ConnectError as exc:
                problem = exc
            except StageError:
                raise
            except OSError as exc:
                if is_of_this_machine(exc):
                    raise system_error(f"No connection to {address[0]} can be made", exc) from exc
                problem = _failure(exc.errno, exc.strerror or str(exc))
    raise problem


def _failure(code: int | None, words: str) -> ConnectError:
    return ConnectError(words, errno=code, reason=_REASONS.get(code or 0, Reason.CONNECT_FAILED))


def _bind(sock: socket.socket, address: str, until: float, watchdog: Watchdog) -> None:
    """Bind *sock* to a local address or name.

    Raises:
        ConnectError: If that fails; as for `_try_each`.
    """
    try:
        place = _look_up(address, 0, sock.family, until, watchdog)[0][4]
        sock.bind(place)
    except ConnectError as exc:
        words = exc.message.rstrip(".")
        raise ConnectError(f"BindAddress {address}: {words}", reason=Reason.BIND_FAILED) from exc
    except StageError:
        raise
    except OSError as exc:
        raise ConnectError(
            f"BindAddress {address}: {exc.strerror}", errno=exc.errno, reason=Reason.BIND_FAILED
        ) from exc


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
        raise ConnectError(
            f"The name {host} was not resolved in time. Does DNS answer?", reason=Reason.RESOLVER_TIMEOUT
        )
    if isinstance(found[0], BaseException):
        require_descriptors(f"The name {host} cannot be resolved")
        reason = found[0].strerror if isinstance(found[0], OSError) else str(found[0])
        if isinstance(found[0], socket.gaierror) and found[0].errno == socket.EAI_AGAIN:
            raise ConnectError(
                f"The name {host} cannot be resolved now: {reason}. Does DNS answer?", reason=Reason.RESOLVER_TIMEOUT
            ) from found[0]
        if family == socket.AF_UNSPEC:
            raise ConnectError(
                f"The name {host} can not be resolved: {reason}. Is it spelt right?", reason=Reason.NAME_NOT_RESOLVED
            ) from found[0]
        kind = "IPv6" if family == socket.AF_INET6 else "IPv4"
        raise ConnectError(
            f"The name {host} can not be resolved to an {kind} address: {reason}. Is it spelt right, and AddressFamily "
            "what is meant?",
            reason=Reason.NAME_NOT_RESOLVED,
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


def _connect(sock: socket.socket, address: Any, until: float, watchdog: Watchdog) -> None:
    """Connect *sock*.

    Raises:
        ConnectError: If that fails; as for `_try_each`.
    """
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
                raise _failure(errno.ETIMEDOUT, "no answer in time")
    if code:
        raise _failure(code, os.strerror(code))
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setblocking(True)
