"""Exchange keys, verify the host key, and only then log in."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from peerstage.errors import ConnectError, StageError
from peerstage.reasons import Reason
from peerstage.ssh._paramiko.client_transport import ClientTransport, server_version
from peerstage.ssh.auth.login import Login
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.hostkeys.verifier import HostKeyVerifier
from peerstage.ssh.options import SSHOptions
from peerstage.ssh.paramiko_errors import translate_exception
from peerstage.ssh.steps import OnStep, ignore_step
from peerstage.watchdog import Watchdog

#: More precise reasons for a failure before and after the server's identification string.
_BEFORE_IDENTIFICATION = {
    Reason.CLOSED_BEFORE_LOGIN: Reason.CLOSED_BEFORE_BANNER,
    Reason.KEY_EXCHANGE_FAILED: Reason.NOT_SSH,
    Reason.PROTOCOL_VIOLATION: Reason.NOT_SSH,
    Reason.LOGIN_TIMEOUT: Reason.BANNER_TIMEOUT,
}
_AFTER_IDENTIFICATION = dict.fromkeys((Reason.BANNER_TIMEOUT, Reason.LOGIN_TIMEOUT), Reason.KEY_EXCHANGE_TIMEOUT)


def exchange_keys(
    transport: ClientTransport,
    destination: Destination,
    key_types: tuple[str, ...],
    watchdog: Watchdog,
    timeout: float,
    on_step: OnStep = ignore_step,
) -> None:
    """Exchange keys. The server has then proved that it has the private key of `ClientTransport.presented_key`.

    That key is not verified yet. As in ssh, ConnectTimeout includes the key exchange.

    Args:
        transport: A transport that was not started.
        destination: The host.
        key_types: Host key algorithms in order of preference.
        watchdog: Enforces the time limits.
        timeout: Seconds.
        on_step: Called after each step.

    Raises:
        NotAvailable, ConnectError, ProtocolError, LimitExceeded, Cancelled: As `verify_and_log_in`.
    """
    transport.get_security_options().key_types = key_types
    with (
        _refining_reason(transport),
        _translating_errors(transport, watchdog),
        watchdog.phase("answer as an SSH server", timeout, Reason.BANNER_TIMEOUT),
    ):
        done = threading.Event()
        transport.start_client(event=done)
        while not done.wait(0.05):
            if not transport.is_active():
                break
        if version := server_version(transport):
            on_step("banner", version)
        if not transport.is_active():
            raise transport.get_exception() or EOFError()
    transport.require_overrides()
    if not transport.resists_prefix_truncation:
        raise ConnectError(
            "The server supports no strict key exchange, and only algorithms that are vulnerable to CVE-2023-48795. "
            "Update it, or let it offer aes128-gcm@openssh.com.",
            reason=Reason.STRICT_KEX_MISSING,
        )
    if not transport.has_strict_kex:
        destination.log.info("the server has no strict key exchange; using AES-GCM or CTR.")
    on_step("key exchange", ", ".join(transport.negotiated_algorithms))


def verify_and_log_in(
    transport: ClientTransport,
    destination: Destination,
    options: SSHOptions,
    verifier: HostKeyVerifier,
    watchdog: Watchdog,
    on_step: OnStep = ignore_step,
) -> str:
    """Verify the presented host key, then log in; return the key's fingerprint.

    Raises:
        ConnectError, ProtocolError: If the connection ends, or the server violates the protocol.
        HostKeyError: If the host key is rejected; nothing was sent after the key exchange.
        LoginError: If the server refuses every credential.
        NotAvailable: If paramiko bypassed one of our overrides.
        LimitExceeded, Cancelled: If it takes too long, or is cancelled.
    """
    with _translating_errors(transport, watchdog):
        trusted = verifier.verify(transport.presented_key, sleep=watchdog.sleep)
    transport.accept_host_key()
    on_step("host key", f"{trusted.fingerprint}, {trusted.basis}")
    with _translating_errors(transport, watchdog):
        Login(transport, destination, options, on_step).run()
    transport.require_overrides(after_login=True)
    return trusted.fingerprint


@contextlib.contextmanager
def _translating_errors(transport: ClientTransport, watchdog: Watchdog) -> Iterator[None]:
    """Translate exceptions of paramiko; a failure of the watchdog takes precedence."""
    try:
        yield
    except StageError:
        watchdog.raise_if_failed()
        raise
    except Exception as exc:
        watchdog.raise_if_failed()
        saved = None if transport.is_active() else transport.get_exception()
        identified = bool(server_version(transport))
        raise translate_exception(saved or exc, logged_in=False, has_identified_itself=identified) from exc


@contextlib.contextmanager
def _refining_reason(transport: ClientTransport) -> Iterator[None]:
    """Make the reason of an error tell whether the server had identified itself (RFC 4253, section 4.2)."""
    started = time.monotonic()
    try:
        yield
    except StageError as exc:
        reasons = _AFTER_IDENTIFICATION if server_version(transport) else _BEFORE_IDENTIFICATION
        exc.reason = reasons.get(exc.reason, exc.reason)
        if exc.reason is Reason.KEY_EXCHANGE_TIMEOUT:
            exc.message = (
                "The server identified itself, but did not exchange keys within "
                f"{time.monotonic() - started:.3g} s. Check its log, and that large packets pass the network (MTU)."
            )
        raise
