"""SFTP, and SCP on the same connection from the moment the peer turns out to have no SFTP."""

from __future__ import annotations

import logging
from collections.abc import Callable

from peerstage.errors import NoSFTP, log_line
from peerstage.records import Capabilities
from peerstage.transport.base import Transport
from peerstage.transport.wrapper import T, Wrapper

log = logging.getLogger("peerstage.transport")


class FallingBack(Wrapper):
    """Uses *first*, and *second* instead once *first* has met a peer without SFTP; it goes no way back.

    Args:
        first: Raises `NoSFTP` before it has done anything else.
        second: Makes the transport to use then, on the connection that *first* has.
        on_fallback: Told, so that the choice can be remembered.
    """

    def __init__(self, first: Transport, second: Callable[[], Transport], on_fallback: Callable[[], object]) -> None:
        self.host_key = first.host_key
        self._transport = first
        self._second: Callable[[], Transport] | None = second
        self._on_fallback = on_fallback

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self._transport.capabilities

    def close(self) -> None:
        self._transport.close()

    def _attempt(self, operation: Callable[[Transport], T]) -> T:
        try:
            return operation(self._transport)
        except NoSFTP as exc:
            if self._second is None:
                raise
            log.info("%s Falling back to SCP.", log_line(exc))
            self._transport, self._second = self._second(), None
            self._on_fallback()
        return operation(self._transport)
