"""Exceptions that our overrides raise inside paramiko, as subclasses of `paramiko.SSHException`."""

from __future__ import annotations

import re

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

#: Characters to quote of a server's text.
_MAX_TEXT = 200
_OTHER_PROTOCOLS = re.compile(r"HTTP/|\d{3}[ -]")


class PeerViolation(paramiko.SSHException):
    """The server broke a rule of the protocol or exceeded a bound. Raised in paramiko's thread, which then ends."""


class PasswordExpired(paramiko.SSHException):
    """The server demands a new password (RFC 4252, section 8)."""


class NoCommonAlgorithm(IncompatiblePeer):
    """Client and server have no algorithm of one kind in common (RFC 4253, section 7.1).

    Args:
        kind: "kex", "host key", "cipher" or "mac"; "" for another.
        text: paramiko's message.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class ClosedBeforeIdentification(PeerViolation):
    """The server closed the connection before it identified itself (RFC 4253, section 4.2).

    Args:
        text: What it sent before.

    Attributes:
        is_another_protocol: Whether the text begins as in HTTP, or in SMTP, FTP and similar protocols.
    """

    def __init__(self, text: str) -> None:
        sent = f" and sent {text[:_MAX_TEXT]!r}" if text else ""
        super().__init__(f"the server closed the connection before it identified itself{sent}")
        self.is_another_protocol = _OTHER_PROTOCOLS.match(text) is not None


class Disconnected(paramiko.SSHException):
    """The server sent SSH_MSG_DISCONNECT (RFC 4253, section 11.1).

    Args:
        reason: The reason code.
        text: The description, of which the message quotes the beginning.
    """

    def __init__(self, reason: int, text: str) -> None:
        why = f": {text[:_MAX_TEXT]!r}" if text else f" with reason code {reason}"
        super().__init__(f"the server disconnected{why}")
