"""What paramiko and the socket raise, in our words: one table, most specific first."""

from __future__ import annotations

import paramiko
from paramiko.ssh_exception import ConfigParseError, CouldNotCanonicalize, IncompatiblePeer, MessageOrderError

from peerstage.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    LoginError,
    ProtocolError,
    RemoteError,
    StageError,
    exhausted,
)
from peerstage.reasons import Reason
from peerstage.session.pipe import Disconnected, HungUp, NoCommonAlgorithm, Violation

_BEFORE_LOGIN: tuple[tuple[type[BaseException], type[StageError], Reason, str], ...] = (
    (
        Violation,
        ProtocolError,
        Reason.PROTOCOL_VIOLATION,
        "The server broke the SSH protocol: {}. Is this an SSH server?",
    ),
    (
        MessageOrderError,
        ProtocolError,
        Reason.PROTOCOL_VIOLATION,
        "The server broke the order of the key exchange: {}.",
    ),
    (Disconnected, ConnectError, Reason.CLOSED_BEFORE_LOGIN, "No SSH session came about: {}."),
    (
        IncompatiblePeer,
        ConnectError,
        Reason.NO_COMMON_ALGORITHM,
        "No algorithm in common: {}. Update the peer's SSH server.",
    ),
    (ConfigParseError, ConfigurationError, Reason.INVALID_CONFIGURATION, "ssh's configuration can not be read: {}."),
    (
        CouldNotCanonicalize,
        ConfigurationError,
        Reason.INVALID_CONFIGURATION,
        "The host name could not be made canonical: {}.",
    ),
    (paramiko.AuthenticationException, LoginError, Reason.LOGIN_REFUSED, "The login was refused: {}."),
    (
        paramiko.SSHException,
        ConnectError,
        Reason.KEY_EXCHANGE_FAILED,
        "No SSH session came about: {}. Is an SSH server listening there?",
    ),
    (
        EOFError,
        ConnectError,
        Reason.CLOSED_BEFORE_LOGIN,
        "The server closed the connection before the login. Is it an SSH server, and not full?",
    ),
    (
        OSError,
        ConnectError,
        Reason.CLOSED_BEFORE_LOGIN,
        "The connection failed: {}. Is the peer up, and is that its port?",
    ),
)
_AFTER_LOGIN: tuple[tuple[type[BaseException], type[StageError], Reason, str], ...] = (
    (Violation, ProtocolError, Reason.PROTOCOL_VIOLATION, "The peer broke the SSH protocol: {}."),
    (MessageOrderError, ProtocolError, Reason.PROTOCOL_VIOLATION, "The peer broke the order of the key exchange: {}."),
    (
        paramiko.ChannelException,
        RemoteError,
        Reason.SESSION_REFUSED,
        "The peer refused to open a channel: {}. See MaxSessions in its sshd_config.",
    ),
    (paramiko.SSHException, ConnectionLost, Reason.CONNECTION_LOST, "The connection was lost: {}."),
    (EOFError, ConnectionLost, Reason.CONNECTION_LOST, "The connection was lost: the peer closed it."),
    (OSError, ConnectionLost, Reason.CONNECTION_LOST, "The connection was lost: {}."),
)


def translate(exc: BaseException | None, *, logged_in: bool) -> StageError:
    """Return the error that *exc*, raised by paramiko or a socket, leaves as; None is a connection that just ended.

    What is in no table is an answer that paramiko stumbled over, so `ProtocolError`. The caller chains it.
    """
    if isinstance(exc, StageError):
        return exc
    if exc is None:
        exc = EOFError()
    if (lack := exhausted(exc)) is not None:
        return lack
    for kind, ours, reason, message in _AFTER_LOGIN if logged_in else _BEFORE_LOGIN:
        if isinstance(exc, kind):
            failure = ours(message.format(_words(exc)), reason=reason)
            if isinstance(failure, ConnectError):
                _refine(failure, exc)
            return failure
    if type(exc).__name__ == "InvalidTag":  # cryptography: a packet was damaged on its way
        return ConnectionLost("The connection was lost: a packet arrived damaged.")
    return ProtocolError(f"The peer sent what can not be understood ({type(exc).__name__}: {_words(exc)}).")


def _refine(failure: ConnectError, exc: BaseException) -> None:
    """Give *failure* the reason that only *exc*, or what paramiko raised it for, tells."""
    if isinstance(exc, NoCommonAlgorithm):
        failure.algorithm = exc.kind
    elif isinstance(exc, IncompatiblePeer):  # a version of SSH that is none of ours
        failure.reason = Reason.NOT_SSH
    elif isinstance(exc.__context__, HungUp):
        failure.reason = Reason.NOT_SSH if exc.__context__.is_another_protocol else Reason.CLOSED_BEFORE_LOGIN


def _words(exc: BaseException) -> str:
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    text = text.removeprefix("Error reading SSH protocol banner")  # what follows is ours, and says it better
    return (text or type(exc).__name__).rstrip(".")[:300]
