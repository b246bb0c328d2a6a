"""SFTP, and SCP on the same connection from the moment the peer turns out to have no SFTP."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from peerstage.errors import NoSFTP, escape
from peerstage.landing.base import Landing
from peerstage.transport.base import Transport

log = logging.getLogger("peerstage.transport")

T = TypeVar("T")


class FallingBack(Transport):
    """Uses *first*, and *second* instead once *first* has met a peer without SFTP; it goes no way back.

    Args:
        first: Raises `NoSFTP` before it has done anything else.
        second: Makes the transport to use then, on the connection that *first* has.
        on_fallback: Told, so that the choice can be remembered.
    """

    def __init__(self, first: Transport, second: Callable[[], Transport], on_fallback: Callable[[], object]) -> None:
        self.capabilities = first.capabilities
        self.host_key = first.host_key
        self._transport = first
        self._second: Callable[[], Transport] | None = second
        self._on_fallback = on_fallback

    def pull(self, directory: bytes, landing: Landing) -> None:
        self._attempt(lambda transport: transport.pull(directory, landing))

    def exists(self, path: bytes) -> bool:
        return self._attempt(lambda transport: transport.exists(path))

    def touch(self, path: bytes) -> None:
        self._attempt(lambda transport: transport.touch(path))

    def close(self) -> None:
        self._transport.close()

    def _attempt(self, operation: Callable[[Transport], T]) -> T:
        try:
            return operation(self._transport)
        except NoSFTP as exc:
            if self._second is None:
                raise
            log.info("%s Falling back to SCP.", escape(str(exc)))
            self._transport, self._second = self._second(), None
            self.capabilities = self._transport.capabilities
            self._on_fallback()
        return operation(self._transport)
