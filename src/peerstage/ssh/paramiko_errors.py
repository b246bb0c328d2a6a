"""Translate what paramiko and sockets raise into `StageError`: two tables, most specific first."""

from __future__ import annotations

from typing import TypeAlias

import paramiko
from paramiko.ssh_exception import IncompatiblePeer, MessageOrderError

from peerstage.errors import ConnectError, ConnectionLost, LoginError, ProtocolError, RemoteError, StageError
from peerstage.reasons import Reason
from peerstage.ssh._paramiko.exceptions import (
    ClosedBeforeIdentification,
    Disconnected,
    NoCommonAlgorithm,
    PeerViolation,
)
from peerstage.system_errors import resource_error

#: Their class, our class, the reason unless the class implies it, and the message with ``{}`` for the exception's text
#: and ``{advice}`` for what to check first.
_Row: TypeAlias = tuple[type[BaseException], type[StageError], "Reason | None", str]

_CHECK_PORT = "Check that an SSH server listens on this port."
_CHECK_LOG = "See the log of its sshd."
_BEFORE_LOGIN: tuple[_Row, ...] = (
    (PeerViolation, ProtocolError, None, "The server violated the SSH protocol: {}. {advice}"),
    (MessageOrderError, ProtocolError, None, "The server sent messages of the key exchange out of order: {}."),
    (Disconnected, ConnectError, Reason.CLOSED_BEFORE_LOGIN, "The SSH connection failed: {}."),
    (
        NoCommonAlgorithm,
        ConnectError,
        Reason.NO_COMMON_ALGORITHM,
        "No common algorithm: {}. Update the peer's sshd, or correct the list in ssh_config.",
    ),
    (IncompatiblePeer, ConnectError, Reason.NOT_SSH, "The server does not speak SSH 2.0: {}. Update it."),
    (paramiko.AuthenticationException, LoginError, Reason.LOGIN_REFUSED, "The server refused the login: {}."),
    (paramiko.SSHException, ConnectError, Reason.KEY_EXCHANGE_FAILED, "The SSH connection failed: {}. {advice}"),
    (
        EOFError,
        ConnectError,
        Reason.CLOSED_BEFORE_LOGIN,
        "The server closed the connection before the login. Check its log, and MaxStartups in its sshd_config.",
    ),
    (OSError, ConnectError, Reason.CLOSED_BEFORE_LOGIN, "The connection failed: {}. {advice}"),
)
_AFTER_LOGIN: tuple[_Row, ...] = (
    (PeerViolation, ProtocolError, None, "The peer violated the SSH protocol: {}."),
    (MessageOrderError, ProtocolError, None, "The peer sent messages of the key exchange out of order: {}."),
    (
        paramiko.ChannelException,
        RemoteError,
        Reason.SESSION_REFUSED,
        "The peer refused to open a channel: {}. See MaxSessions in its sshd_config.",
    ),
    (paramiko.SSHException, ConnectionLost, None, "The connection was lost: {}."),
    (EOFError, ConnectionLost, None, "The connection was lost: the peer closed it."),
    (OSError, ConnectionLost, None, "The connection was lost: {}."),
)


def translate_exception(
    exc: BaseException | None, *, logged_in: bool, has_identified_itself: bool = False
) -> StageError:
    """Return the error for *exc*, to be raised from it.

    Args:
        exc: The exception of paramiko or a socket; None if the connection ended without one. An exception that is in
            neither table comes from paramiko parsing an invalid message, and becomes a `ProtocolError`.
        logged_in: Whether the login is done.
        has_identified_itself: Whether the server has: then it is an SSH server.
    """
    if isinstance(exc, StageError):
        return exc
    if exc is None:
        exc = EOFError()
    if (exhausted := resource_error(exc)) is not None:
        return exhausted
    for theirs, ours, reason, message in _AFTER_LOGIN if logged_in else _BEFORE_LOGIN:
        if isinstance(exc, theirs):
            advice = _CHECK_LOG if has_identified_itself else _CHECK_PORT
            failure = ours(message.format(_text_of(exc), advice=advice), reason=reason)
            if isinstance(failure, ConnectError):
                _refine(failure, exc)
            return failure
    if type(exc).__name__ == "InvalidTag":  # of the package cryptography
        return ConnectionLost("The connection was lost: a packet failed authentication, damaged in transit.")
    return ProtocolError(f"The peer sent an invalid message ({type(exc).__name__}: {_text_of(exc)}).")


def _refine(failure: ConnectError, exc: BaseException) -> None:
    """Add the details that only *exc*, or its context, has."""
    if isinstance(exc, NoCommonAlgorithm):
        failure.algorithm_kind = exc.kind
    elif isinstance(exc.__context__, ClosedBeforeIdentification):
        failure.reason = Reason.NOT_SSH if exc.__context__.is_another_protocol else Reason.CLOSED_BEFORE_LOGIN


def _text_of(exc: BaseException) -> str:
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    text = text.removeprefix("Error reading SSH protocol banner")  # paramiko's words before ours
    return (text or type(exc).__name__).rstrip(".")[:300]
