"""SFTP, and legacy SCP over the same session if the peer has no SFTP."""

from __future__ import annotations

from collections.abc import Callable

from peerstage.errors import NoSFTP, format_log_line
from peerstage.peer_log import PeerLog
from peerstage.transport.base import T, Transport, TransportWrapper


class FallbackTransport(TransportWrapper):
    """Uses *sftp* until it raises `NoSFTP`, then SCP for good.

    Args:
        sftp: The SFTP transport; it raises `NoSFTP` before it has done anything else.
        build_scp: Returns the SCP transport over the same session.
        on_fallback: Called when SCP is chosen.
        peer: The peer's name, for the log.
    """

    def __init__(
        self, sftp: Transport, build_scp: Callable[[], Transport], on_fallback: Callable[[], object], *, peer: str = ""
    ) -> None:
        super().__init__(sftp)
        self._build_scp: Callable[[], Transport] | None = build_scp
        self._on_fallback = on_fallback
        self._log = PeerLog("peerstage.transport", peer)

    def _run(self, operation: Callable[[Transport], T]) -> T:
        try:
            return operation(self._transport)
        except NoSFTP as exc:
            if self._build_scp is None:
                raise
            self._log.info("%s Falling back to SCP.", format_log_line(exc))
            self._transport, self._build_scp = self._build_scp(), None
            self._on_fallback()
        return operation(self._transport)
