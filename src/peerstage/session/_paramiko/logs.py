"""What paramiko logs: at DEBUG of a logger of ours, behind the peer's name."""

from __future__ import annotations

import logging
from typing import Any

import paramiko

from peerstage.errors import escape
from peerstage.peer_log import PeerLog


class ParamikoLog(PeerLog):
    """Takes what paramiko logs of one connection, and logs it at DEBUG whatever its level is.

    paramiko logs each connection that ends with a traceback, at ERROR. That error is raised here, and logged by
    whoever catches it. Its own loggers are left as they are: other code of this process may use them.

    Args:
        peer: The peer's name, escaped in every line.
    """

    def __init__(self, peer: str) -> None:
        super().__init__("peerstage.ssh", peer)

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log *msg* at DEBUG; the server has a say in it, so that it is escaped."""
        if self.isEnabledFor(logging.DEBUG):
            super().log(logging.DEBUG, "%s", escape(str(msg) % args if args else str(msg)))

    def take_channel(self, channel: paramiko.Channel) -> None:
        """Log what *channel* logs, too; paramiko gives it a logger by name only after it was made."""
        channel._log = self.log  # type: ignore[attr-defined]

    def take_transport(self, transport: paramiko.Transport) -> None:
        """Log what *transport*, its packet layer, its key exchange and its login log."""
        hidden: Any = transport
        hidden.logger = self
        hidden.packetizer.set_log(self)
