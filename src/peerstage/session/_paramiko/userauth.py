"""The requests of a login, and paramiko's reader of their answers (RFC 4252)."""

from __future__ import annotations

import threading
from typing import Any, cast

import paramiko
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.common import cMSG_USERAUTH_REQUEST
from paramiko.message import Message

from peerstage.session.pipe import PasswordExpired, Violation

#: The service that a login is for (RFC 4254).
SERVICE = "ssh-connection"


def key_request(user: str, algorithm: str, key: bytes, *, signed: bool) -> Message:
    """Return a request to log in by a key, up to the signature (RFC 4252, 7)."""
    request = Message()
    request.add_byte(cMSG_USERAUTH_REQUEST)
    for text in (user, SERVICE, "publickey"):
        request.add_string(text)
    request.add_boolean(signed)
    request.add_string(algorithm)
    request.add_string(key)
    return request


class _WouldAccept(paramiko.AuthenticationException):
    """The server would let the user in by the key that it was asked about."""


class Login(AuthOnlyHandler):
    """paramiko's reader of the server's answers; it is asked for one at a time."""

    _asked_about: tuple[str, bytes] | None = None

    def would_accept(self, user: str, algorithm: str, key: bytes) -> bool:
        """Return whether the server wants a signature by this key; False if it let the user in without one.

        Raises:
            paramiko.AuthenticationException, paramiko.SSHException, EOFError, OSError: As for `ask`.
        """
        self._asked_about = algorithm, key
        try:
            self.ask(user, "publickey", key_request(user, algorithm, key, signed=False))
        except _WouldAccept:
            cast(Any, self).transport.saved_exception = None
            return True
        finally:
            self._asked_about = None
        return False

    def _parse_userauth_info_request(self, m: Message) -> None:
        """Take a message of a number that has several meanings; here SSH_MSG_USERAUTH_PK_OK or PASSWD_CHANGEREQ."""
        hidden: Any = self
        if self._asked_about is not None:
            if (m.get_text(), m.get_binary()) != self._asked_about:
                raise Violation("an answer about another key than was asked about")
            hidden.transport.saved_exception = _WouldAccept()
            hidden.auth_event.set()
            return
        if hidden.auth_method != "password":
            raise Violation("an answer that belongs to no question")
        hidden.transport.saved_exception = PasswordExpired("it has expired, and the peer wants another one")
        hidden.auth_event.set()

    def ask(self, user: str, method: str, request: Message) -> list[str]:
        """Send *request*, and return the methods that the server wants besides; empty if that was enough.

        Raises:
            paramiko.AuthenticationException, paramiko.SSHException, EOFError, OSError: If it was refused, or the
                connection ended.
        """
        hidden: Any = self
        hidden.auth_method, hidden.username = method, user
        hidden.transport.saved_exception = None  # what an earlier attempt came to
        hidden.auth_event = threading.Event()
        hidden.transport._send_user_message(request)  # not while the server wants new keys (RFC 4253, 7.1)
        return cast("list[str]", hidden.wait_for_response(hidden.auth_event))
