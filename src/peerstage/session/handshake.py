"""From a connected socket to a login: keys are exchanged, the host's is judged, and only then we say who we are."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from peerstage.errors import ConnectError, StageError
from peerstage.reasons import Reason
from peerstage.session._paramiko.transport import ClientTransport, has_strict_kex, is_protected
from peerstage.session.authentication import Login
from peerstage.session.config import Destination
from peerstage.session.host_key import HostKeys
from peerstage.session.mapping import translate
from peerstage.session.options import SSHOptions
from peerstage.session.watchdog import Watchdog

#: What the same failure means before the server has identified itself, and after that.
_BEFORE_BANNER = {
    Reason.CLOSED_BEFORE_LOGIN: Reason.CLOSED_BEFORE_BANNER,
    Reason.KEY_EXCHANGE_FAILED: Reason.NOT_SSH,
    Reason.PROTOCOL_VIOLATION: Reason.NOT_SSH,
    Reason.LOGIN_TIMEOUT: Reason.BANNER_TIMEOUT,
}
_AFTER_BANNER = dict.fromkeys((Reason.BANNER_TIMEOUT, Reason.LOGIN_TIMEOUT), Reason.KEY_EXCHANGE_TIMEOUT)

#: Told of a step on the way that is done: its name, and what was seen.
Note: TypeAlias = Callable[[str, str], object]


def say_nothing(step: str, seen: str) -> None:
    """A `Note` for whoever does not want to know."""


def log_in(
    transport: ClientTransport,
    destination: Destination,
    options: SSHOptions,
    hosts: HostKeys,
    watchdog: Watchdog,
    note: Note = say_nothing,
) -> str:
    """Have the key judged that the host has shown, and log in; return its fingerprint.

    Raises:
        ConnectError, ProtocolError: The connection ended, or what answers does not speak SSH as it should.
        HostKeyError: The host key was refused; nothing was sent after the key exchange.
        LoginError: Every way to log in was refused.
        LimitExceeded, Cancelled: It took too long, or was cancelled.
    """
    with _before_login(transport, watchdog):
        verdict = hosts.judge(transport.shown, sleep=watchdog.sleep)
    transport.trust()
    note("host key", f"{verdict.fingerprint}, {verdict.why}")
    with _before_login(transport, watchdog):
        Login(transport, destination, options, note).run()
    return verdict.fingerprint


def exchange_keys(
    transport: ClientTransport,
    destination: Destination,
    key_types: tuple[str, ...],
    watchdog: Watchdog,
    seconds: float,
    note: Note = say_nothing,
) -> None:
    """Exchange keys within *seconds*; then `ClientTransport.shown` is the host's key, proved and not judged.

    The host is asked for a key of *key_types*, the first that it has. As for ssh, the time to connect holds for the key
    exchange too (ssh_config(5), ConnectTimeout).

    Raises:
        ConnectError, ProtocolError, LimitExceeded, Cancelled: As `log_in`.
    """
    transport.get_security_options().key_types = key_types
    agreed: Any = transport
    with (
        _refined(transport),
        _before_login(transport, watchdog),
        watchdog.phase("answer as an SSH server", seconds, Reason.BANNER_TIMEOUT),
    ):
        done = threading.Event()
        transport.start_client(event=done)
        while not done.wait(0.05):
            if not transport.is_active():
                break
        if agreed.remote_version:
            note("banner", agreed.remote_version)
        if not transport.is_active():
            raise transport.get_exception() or EOFError()
    if not is_protected(transport):
        raise ConnectError(
            "The server has no strict key exchange and agreed only on algorithms that are open to CVE-2023-48795. "
            "Update it, or let it offer aes128-gcm@openssh.com.",
            reason=Reason.STRICT_KEX_MISSING,
        )
    if not has_strict_kex(transport):
        destination.log.info("the server has no strict key exchange; using AES-GCM or CTR.")
    note("key exchange", f"{transport.kex_name}, {agreed.host_key_type}, {agreed.remote_cipher}")


@contextlib.contextmanager
def _before_login(transport: ClientTransport, watchdog: Watchdog) -> Iterator[None]:
    try:
        yield
    except StageError:
        watchdog.check()
        raise
    except Exception as exc:
        watchdog.check()
        saved: Any = None if transport.is_active() else transport.get_exception()
        raise translate(saved or exc, logged_in=False) from exc


@contextlib.contextmanager
def _refined(transport: ClientTransport) -> Iterator[None]:
    """Let what fails inside tell whether the server had identified itself before (RFC 4253, 4.2)."""
    since = time.monotonic()
    try:
        yield
    except StageError as exc:
        identified: Any = transport
        reasons = _AFTER_BANNER if identified.remote_version else _BEFORE_BANNER
        exc.reason = reasons.get(exc.reason, exc.reason)
        if exc.reason is Reason.KEY_EXCHANGE_TIMEOUT:
            exc.message = (
                "The server has identified itself, and did not exchange keys within "
                f"{time.monotonic() - since:.3g} s. See its log, and check that large packets pass the network (MTU)."
            )
        raise
