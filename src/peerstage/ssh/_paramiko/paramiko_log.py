"""Log what paramiko logs of a connection at DEBUG, with the peer's name."""

from __future__ import annotations

import logging
from typing import Any, cast

import paramiko

from peerstage.peer_log import PeerLog
from peerstage.printable import escape
from peerstage.ssh._paramiko.internals import ChannelInternals, TransportInternals


class ParamikoLog(PeerLog):
    """Receives paramiko's log messages of one connection, and logs them at DEBUG whatever their level.

    paramiko logs each connection that fails at ERROR with a traceback; we raise that error instead. paramiko's own
    loggers stay unchanged for other code in this process.

    Args:
        peer: The peer's name, escaped in every line.
    """

    def __init__(self, peer: str) -> None:
        super().__init__("peerstage.ssh.paramiko", peer)

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log *msg* at DEBUG, escaped, since the server chose parts of it."""
        if self.isEnabledFor(logging.DEBUG):
            super().log(logging.DEBUG, "%s", escape(str(msg) % args if args else str(msg)))

    def attach_to_channel(self, channel: paramiko.Channel) -> None:
        """Receive the messages of *channel*, which would otherwise look up a logger by name later."""
        cast(ChannelInternals, channel)._log = self.log  # type: ignore[method-assign]

    def attach_to_transport(self, transport: paramiko.Transport) -> None:
        """Receive the messages of *transport*: its packet layer, key exchange and authentication."""
        internals = cast(TransportInternals, transport)
        internals.logger = self
        internals.packetizer.set_log(self)
