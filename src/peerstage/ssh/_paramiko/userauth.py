"""User authentication requests, and paramiko's handler of the replies (RFC 4252)."""

from __future__ import annotations

import threading

import paramiko
from paramiko.common import cMSG_USERAUTH_REQUEST
from paramiko.message import Message

from peerstage.ssh._paramiko.exceptions import PasswordExpired, PeerViolation
from peerstage.ssh._paramiko.internals import TypedAuthHandler


def userauth_request(user: str, method: str, *fields: str | bytes | bool) -> Message:
    """Return SSH_MSG_USERAUTH_REQUEST with the *fields* of that method (RFC 4252, section 5)."""
    request = Message()
    request.add_byte(cMSG_USERAUTH_REQUEST)
    request.add(user, "ssh-connection", method, *fields)
    return request


class _KeyAcceptable(paramiko.AuthenticationException):
    """The server sent SSH_MSG_USERAUTH_PK_OK."""


class UserAuthHandler(TypedAuthHandler):
    """Sends one authentication request at a time, and waits for the reply."""

    _probed: tuple[str, bytes] | None = None

    def probe_key(self, user: str, algorithm: str, key: bytes) -> bool:
        """Return whether the server asks for a signature by this key; False if it let the user in without one.

        Raises:
            paramiko.AuthenticationException, paramiko.SSHException, EOFError, OSError: As `request`.
        """
        self._probed = algorithm, key
        try:
            self.request(user, "publickey", userauth_request(user, "publickey", False, algorithm, key))
        except _KeyAcceptable:
            self.transport.saved_exception = None
            return True
        finally:
            self._probed = None
        return False

    def request(self, user: str, method: str, request: Message) -> list[str]:
        """Send *request*; return the methods that the server wants in addition, empty if the user is logged in.

        Raises:
            paramiko.AuthenticationException: If the server refuses.
            paramiko.SSHException, EOFError, OSError: If the connection ends.
        """
        self.auth_method, self.username = method, user
        self.transport.saved_exception = None  # of an earlier attempt
        self.auth_event = threading.Event()
        self.transport._send_user_message(request)  # waits during a key exchange (RFC 4253, section 7.1)
        return self.wait_for_response(self.auth_event)

    def _parse_userauth_info_request(self, m: Message) -> None:
        """Handle message number 60: SSH_MSG_USERAUTH_PK_OK after a probe, or SSH_MSG_USERAUTH_PASSWD_CHANGEREQ."""
        if self._probed is not None:
            if (m.get_text(), m.get_binary()) != self._probed:
                raise PeerViolation("a reply about a key that was not offered")
            outcome: paramiko.SSHException = _KeyAcceptable()
        elif self.auth_method == "password":
            outcome = PasswordExpired("it has expired, and the peer demands a new one")
        else:
            raise PeerViolation("a reply that matches no request")
        self.transport.saved_exception = outcome  # `wait_for_response` raises it
        if self.auth_event is not None:
            self.auth_event.set()
