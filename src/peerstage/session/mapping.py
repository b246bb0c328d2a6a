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
from peerstage.session.pipe import Disconnected, Violation

_BEFORE_LOGIN: tuple[tuple[type[BaseException], type[StageError], str], ...] = (
    (Violation, ProtocolError, "The server broke the SSH protocol: {}. Is this an SSH server?"),
    (MessageOrderError, ProtocolError, "The server broke the order of the key exchange: {}."),
    (Disconnected, ConnectError, "No SSH session came about: {}."),
    (IncompatiblePeer, ConnectError, "No algorithm in common: {}. Update the peer's SSH server."),
    (ConfigParseError, ConfigurationError, "ssh's configuration can not be read: {}."),
    (CouldNotCanonicalize, ConfigurationError, "The host name could not be made canonical: {}."),
    (paramiko.AuthenticationException, LoginError, "The login was refused: {}."),
    (paramiko.SSHException, ConnectError, "No SSH session came about: {}. Is an SSH server listening there?"),
    (EOFError, ConnectError, "The server closed the connection before the login. Is it an SSH server, and not full?"),
    (OSError, ConnectError, "The connection failed: {}. Is the peer up, and is that its port?"),
)
_AFTER_LOGIN: tuple[tuple[type[BaseException], type[StageError], str], ...] = (
    (Violation, ProtocolError, "The peer broke the SSH protocol: {}."),
    (MessageOrderError, ProtocolError, "The peer broke the order of the key exchange: {}."),
    (
        paramiko.ChannelException,
        RemoteError,
        "The peer refused to open a channel: {}. See MaxSessions in its sshd_config.",
    ),
    (paramiko.SSHException, ConnectionLost, "The connection was lost: {}."),
    (EOFError, ConnectionLost, "The connection was lost: the peer closed it."),
    (OSError, ConnectionLost, "The connection was lost: {}."),
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
    for kind, ours, message in _AFTER_LOGIN if logged_in else _BEFORE_LOGIN:
        if isinstance(exc, kind):
            return ours(message.format(_words(exc)))
    if type(exc).__name__ == "InvalidTag":  # cryptography: a packet was damaged on its way
        return ConnectionLost("The connection was lost: a packet arrived damaged.")
    return ProtocolError(f"The peer sent what can not be understood ({type(exc).__name__}: {_words(exc)}).")


def _words(exc: BaseException) -> str:
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    text = text.removeprefix("Error reading SSH protocol banner")  # what follows is ours, and says it better
    return (text or type(exc).__name__).rstrip(".")[:300]
