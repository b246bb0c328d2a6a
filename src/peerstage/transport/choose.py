"""Which transport a remote peer is reached by, and what is wrapped around it: here the stack is assembled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peerstage.errors import NotAvailable
from peerstage.records import Limits, Progress
from peerstage.session.options import SSHOptions
from peerstage.session.watchdog import Watchdog
from peerstage.transport.base import Transport
from peerstage.transport.observe import Observing
from peerstage.transport.retry import Retry, Retrying

#: What ``transport=`` may be.
TRANSPORTS = ("auto", "sftp", "scp", "rcp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How a remote peer is reached, as its owner asked for it.

    Attributes:
        name: The peer: a host name, an address, or an alias of ssh_config.
        user: Who logs in there.
        ssh: How, where ssh's configuration does not say it.
        transport: One of `TRANSPORTS`.
        rcp_command: An rcp-like command, under ``auto`` and ``rcp``.
        guarded: Whether the peer's key is behind a forced command written for the original.
    """

    name: str
    user: str
    ssh: SSHOptions
    transport: str = "auto"
    rcp_command: str | None = None
    guarded: bool = False

    def check(self) -> None:
        """Refuse what contradicts itself, or is not there.

        Raises:
            ValueError: ``guarded`` together with what it excludes.
            NotAvailable: SCP or an rcp command was asked for.
        """
        by_command = self.transport == "rcp" or (self.transport == "auto" and self.rcp_command is not None)
        if self.guarded and (by_command or self.transport == "sftp"):
            raise ValueError("guarded=True means SCP: it excludes sftp, rcp and an rcpCommand.")
        if by_command:
            raise NotAvailable(
                'Copying by an rcp command is not there yet. Leave rcpCommand out, or say transport="sftp".'
            )
        if self.guarded or self.transport == "scp":
            raise NotAvailable('SCP is not there yet, and so neither is guarded=True. Use transport="sftp".')


def assemble(
    route: Route,
    *,
    limits: Limits,
    retry: Retry,
    watchdog: Watchdog,
    on_progress: Callable[[Progress], object] | None = None,
) -> Transport:
    """Return the stack of transports for *route*; it connects when it is first used.

    From the inside out: SFTP over a session; made anew after a lost connection; observed, if somebody wants to know.

    Raises:
        ValueError, NotAvailable: As `Route.check`.
    """
    route.check()

    def open_sftp() -> Transport:
        from peerstage.session.config import resolve_destination
        from peerstage.session.session import Session
        from peerstage.transport.sftp.transport import SFTPTransport

        destination = resolve_destination(route.name, route.user, route.ssh)
        session = Session.connect(destination, route.ssh, limits=limits, watchdog=watchdog)
        return SFTPTransport(session, limits, watchdog)

    from peerstage.transport.sftp.transport import SFTPTransport as Inner

    if route.ssh.sock is not None:  # a connection that was handed in can not be made anew
        retry = Retry(tries=1)
    stack: Transport = Retrying(open_sftp, Inner.capabilities, retry, watchdog)
    if on_progress is not None:
        stack = Observing(stack, on_progress)
    return stack
