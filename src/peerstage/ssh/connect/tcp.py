"""Connect a socket to a host and port: name lookup, every address, several attempts, within a time limit."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from typing import Any

from peerstage.errors import ConnectError, StageError
from peerstage.peer_log import PeerLog
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.ssh.steps import OnStep, ignore_step
from peerstage.system_errors import is_machine_wide, require_free_descriptor, start_thread, system_error
from peerstage.watchdog import Watchdog

_log = PeerLog("peerstage.ssh")

_POLL_INTERVAL = 0.05
#: Seconds between two attempts, as for ssh.
_RETRY_INTERVAL = 1.0

_REASONS = {
    errno.ECONNREFUSED: Reason.CONNECTION_REFUSED,
    errno.ETIMEDOUT: Reason.CONNECT_TIMEOUT,
    errno.ECONNRESET: Reason.CLOSED_BEFORE_BANNER,
    **dict.fromkeys((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN), Reason.HOST_UNREACHABLE),
}

#: Lookups in progress, by host, port and family: the thread, and the list that gets the addresses or the exception.
_lookups: dict[tuple[str, int, int], tuple[threading.Thread, list[Any]]] = {}


def connect_tcp(
    host: str,
    port: int,
    *,
    family: int,
    timeout: float,
    watchdog: Watchdog,
    attempts: int = 1,
    bind_address: str | None = None,
    log: PeerLog = _log,
    on_step: OnStep = ignore_step,
) -> tuple[socket.socket, float]:
    """Return a socket connected to *host*, trying each of its addresses, and the seconds left of *timeout*.

    Args:
        host: A name or an address.
        port: TCP port.
        family: Address family, `socket.AF_UNSPEC` for any.
        timeout: Seconds for each attempt; the first includes the name lookup.
        watchdog: Interrupts it.
        attempts: Number of attempts, a second apart. The name is looked up once.
        bind_address: Local address or name to connect from.
        log: Gets a line for each attempt that is repeated.
        on_step: Called after the steps "address" and "connection", with their results.

    Raises:
        ConnectError: If the name is unknown, or no address accepts a connection in time.
        Cancelled, LimitExceeded: If the watchdog interrupts it.
    """
    deadline = time.monotonic() + timeout
    addresses = _look_up(host, port, family, deadline, watchdog)
    on_step("address", ", ".join(dict.fromkeys(str(address[0]) for *_, address in addresses)))
    error = ConnectError("no attempt was made", reason=Reason.CONNECT_FAILED)
    for attempt in range(attempts):
        if attempt:
            log.info("%s port %s: %s; trying again. [%s]", escape(host), port, escape(error.message), error.reason)
            watchdog.sleep(_RETRY_INTERVAL)
            deadline = time.monotonic() + timeout
        try:
            sock, address = _connect_any(addresses, bind_address, deadline, watchdog)
        except ConnectError as exc:
            error = exc
            continue
        on_step("connection", f"{address} port {port}")
        return sock, max(0.0, deadline - time.monotonic())
    tried = f" ({attempts} attempts)" if attempts > 1 else ""
    advice = "Check that the host is up, that sshd listens on this port, and that no firewall blocks it."
    if error.reason is Reason.BIND_FAILED:
        advice = "Give an address of this machine."
    raise ConnectError(
        f"{host} port {port}: {error.message}{tried}. {advice}",
        errno=error.errno,
        reason=error.reason,
    ) from error


def _connect_any(
    addresses: list[Any], bind_address: str | None, deadline: float, watchdog: Watchdog
) -> tuple[socket.socket, str]:
    """Return a socket connected to the first of *addresses* that accepts, and that address.

    Raises:
        ConnectError: If none does; the message is the cause for the last one, without its address.
    """
    error = ConnectError("no address", reason=Reason.NAME_NOT_RESOLVED)
    for number, (family, kind, protocol, _name, address) in enumerate(addresses):
        now = time.monotonic()
        share = (deadline - now) / (len(addresses) - number)  # an address that drops packets must leave time for others
        with contextlib.ExitStack() as opened:
            try:
                sock = opened.enter_context(socket.socket(family, kind, protocol))
                if bind_address is not None:
                    _bind(sock, bind_address, deadline, watchdog)
                code = _connect(sock, address, time.monotonic() + share, watchdog)
                if not code:
                    opened.pop_all()
                    return sock, str(address[0])
                error = _connect_error(code, os.strerror(code))
            except ConnectError as exc:
                error = exc
            except StageError:
                raise
            except OSError as exc:
                if is_machine_wide(exc):
                    raise system_error(f"No connection to {address[0]} can be made", exc) from exc
                error = _connect_error(exc.errno, exc.strerror or str(exc))
    raise error


def _connect_error(code: int | None, message: str) -> ConnectError:
    return ConnectError(message, errno=code, reason=_REASONS.get(code or 0, Reason.CONNECT_FAILED))


def _bind(sock: socket.socket, address: str, deadline: float, watchdog: Watchdog) -> None:
    """Bind *sock* to a local address or name.

    Raises:
        ConnectError: If that fails.
    """
    try:
        sock.bind(_look_up(address, 0, sock.family, deadline, watchdog)[0][4])
    except ConnectError as exc:
        message = exc.message.rstrip(".")
        raise ConnectError(f"BindAddress {address}: {message}", reason=Reason.BIND_FAILED) from exc
    except StageError:
        raise
    except OSError as exc:
        raise ConnectError(
            f"BindAddress {address}: {exc.strerror}", errno=exc.errno, reason=Reason.BIND_FAILED
        ) from exc


def _look_up(host: str, port: int, family: int, deadline: float, watchdog: Watchdog) -> list[Any]:
    """Return the addresses of *host*; see getaddrinfo(3).

    That call has no timeout and cannot be interrupted, so it runs in a daemon thread, which is left behind when it
    takes too long. A later lookup of the same name waits for that thread instead of starting another, so there is at
    most one for each name. It ends when the resolver gives up: see resolv.conf(5), by default after two attempts of
    5 s at each name server, for each search domain.
    """
    thread, results = _start_lookup(host, port, family)
    while thread.is_alive() and time.monotonic() < deadline:
        watchdog.raise_if_failed()
        thread.join(_POLL_INTERVAL)
    watchdog.raise_if_failed()
    if not results:
        raise ConnectError(
            f"The lookup of the name {host} timed out. Check that the DNS servers answer.",
            reason=Reason.RESOLVER_TIMEOUT,
        )
    result = results[0]
    if isinstance(result, BaseException):
        require_free_descriptor(f"The name {host} cannot be resolved")
        raise _lookup_error(host, family, result) from result
    addresses: list[Any] = result
    return addresses


def _lookup_error(host: str, family: int, exc: BaseException) -> ConnectError:
    cause = exc.strerror if isinstance(exc, OSError) else str(exc)
    kind = "" if family == socket.AF_UNSPEC else f" to an IPv{6 if family == socket.AF_INET6 else 4} address"
    advice, reason = "Check its spelling.", Reason.NAME_NOT_RESOLVED
    if isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_AGAIN:
        advice, reason = "Check that the DNS servers answer.", Reason.RESOLVER_TIMEOUT
    elif kind:
        advice = "Check its spelling and AddressFamily."
    return ConnectError(f"The name {host} cannot be resolved{kind}: {cause}. {advice}", reason=reason)


def _start_lookup(host: str, port: int, family: int) -> tuple[threading.Thread, list[Any]]:
    """Return a thread that looks *host* up, and the list that gets its addresses, or the exception."""
    key = (host, port, family)
    thread, results = _lookups.get(key, (None, []))
    if thread is not None and thread.is_alive():  # in a forked child, none of the parent's is
        return thread, results
    results = []

    def look_up() -> None:
        try:
            results.append(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        except (OSError, UnicodeError) as exc:
            results.append(exc)
        finally:
            _lookups.pop(key, None)

    thread = threading.Thread(target=look_up, name="peerstage-resolver", daemon=True)
    _lookups[key] = thread, results
    try:
        start_thread(thread)
    except StageError:
        _lookups.pop(key, None)
        raise
    return thread, results


def _connect(sock: socket.socket, address: Any, deadline: float, watchdog: Watchdog) -> int:
    """Connect *sock* and return 0, or the error number."""
    sock.setblocking(False)
    code = sock.connect_ex(address)
    if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        while not poll.poll(_POLL_INTERVAL * 1000):
            watchdog.raise_if_failed()
            if time.monotonic() > deadline:
                return errno.ETIMEDOUT
        watchdog.raise_if_failed()
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if not code:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setblocking(True)
    return code
