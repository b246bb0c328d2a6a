"""SFTP, and SCP on the same connection from the moment the peer turns out to have no SFTP."""

from __future__ import annotations

from collections.abc import Callable

from peerstage.errors import NoSFTP, log_line
from peerstage.peer_log import PeerLog
from peerstage.records import Capabilities
from peerstage.transport.base import Transport
from peerstage.transport.wrapper import T, Wrapper


class FallingBack(Wrapper):
    """Uses *first*, and *second* instead once *first* has met a peer without SFTP; it goes no way back.

    Args:
        first: Raises `NoSFTP` before it has done anything else.
        second: Makes the transport to use then, on the connection that *first* has.
        on_fallback: Told, so that the choice can be remembered.
        peer: The peer's name, for the log.
    """

    def __init__(
        self, first: Transport, second: Callable[[], Transport], on_fallback: Callable[[], object], *, peer: str = ""
    ) -> None:
        self.host_key = first.host_key
        self._transport = first
        self._second: Callable[[], Transport] | None = second
        self._on_fallback = on_fallback
        self._log = PeerLog("peerstage.transport", peer)

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
            self._log.info("%s Falling back to SCP.", log_line(exc))
            self._transport, self._second = self._second(), None
            self._on_fallback()
        return operation(self._transport)
