"""Loggers that name the peer in front of every line."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from peerstage.errors import escape

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class PeerLog(_Adapter):
    """A logger whose lines begin with the name of a peer.

    Args:
        name: The logger's name, such as ``peerstage.transport``.
        peer: The peer's name, escaped in every line; "" where no peer is concerned.
    """

    def __init__(self, name: str, peer: str = "") -> None:
        super().__init__(logging.getLogger(name), {})
        self._subject = f"{escape(peer)}: " if peer else ""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log *msg* as `logging.Logger.log` does, the peer's name before it."""
        if self.isEnabledFor(level):
            self.logger.log(level, f"%s{msg}", self._subject, *args, **kwargs)
