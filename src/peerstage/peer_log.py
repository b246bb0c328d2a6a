"""Loggers that begin every line with the peer's name."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from peerstage.printable import escape

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class PeerLog(_Adapter):
    """A logger that begins every line with the name of a peer.

    Args:
        name: The logger's name, such as ``peerstage.transport``.
        peer: The peer's name, which is escaped; "" for lines without one.
    """

    def __init__(self, name: str, peer: str = "") -> None:
        super().__init__(logging.getLogger(name), {})
        self._subject = f"{escape(peer)}: " if peer else ""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log *msg* as `logging.Logger.log` does, after the peer's name."""
        if self.isEnabledFor(level):
            self.logger.log(level, f"%s{msg}", self._subject, *args, **kwargs)
