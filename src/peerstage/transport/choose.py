"""Which transport a remote peer is reached by, and what is wrapped around it: here the stack is assembled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from peerstage.records import Capabilities, Limits, Progress
from peerstage.session.options import SSHOptions
from peerstage.session.watchdog import Watchdog
from peerstage.transport import capabilities
from peerstage.transport.base import Transport
from peerstage.transport.fallback import FallingBack
from peerstage.transport.observe import Observing
from peerstage.transport.rcp.command import DEFAULT_COMMAND, split_command_line
from peerstage.transport.rcp.transport import RcpTransport
from peerstage.transport.retry import Retry, Retrying

if TYPE_CHECKING:
    from peerstage.session.session import Session
    from peerstage.transport.scp.transport import SCPTransport
    from peerstage.transport.sftp.transport import SFTPTransport

#: What ``transport=`` may be.
TransportName: TypeAlias = Literal["auto", "sftp", "scp", "rcp"]
TRANSPORTS: tuple[str, ...] = get_args(TransportName)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How a remote peer is reached, as its owner asked for it.

    Attributes:
        name: The peer: a host name, an address, or an alias of ssh_config.
        user: Who logs in there.
        ssh: How, where ssh's configuration does not say it.
        transport: One of `TRANSPORTS`.
        rcp_command: An rcp-like command, under ``auto`` and ``rcp``.
        rsh_command: An rsh-like command, for commands.
        guarded: Whether the peer's key is behind a forced command written for the original.
        preserve_times: Whether modification times are wanted.
        working_directory: A local directory for the temporary files of an rcp-like command.
    """

    name: str
    user: str
    ssh: SSHOptions
    transport: str = "auto"
    rcp_command: str | None = None
    rsh_command: str | None = None
    guarded: bool = False
    preserve_times: bool = False
    working_directory: str | None = None

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ValueError: ``guarded`` or ``elevate`` together with what it excludes, or a command that can not be split.
        """
        if self.ssh.elevate is not None and (self.guarded or self.by_command or self.transport == "scp"):
            raise ValueError(
                "The option elevate means SFTP: it excludes the transports scp, rcp and guarded, and an rcp command."
            )
        if self.guarded and (self.by_command or self.transport == "sftp"):
            raise ValueError("guarded=True means SCP: it excludes sftp, rcp and an rcpCommand.")
        if self.guarded and self.preserve_times:
            raise ValueError("guarded=True sends the original's commands, which ask for no times: no preserve_times.")
        if self.by_command:
            self.split_command()
            self.split_rsh_command()

    def for_commands(self) -> Route:
        """Return the route on which commands are run: this one, unless an rsh-like or an rcp-like one is asked for."""
        if self.rsh_command is not None:
            return Route(
                name=self.name, user=self.user, ssh=SSHOptions(), transport="rcp", rsh_command=self.rsh_command
            )
        return dataclasses.replace(self, transport="auto", rcp_command=None) if self.by_command else self

    @property
    def starts_with_scp(self) -> bool:
        """Whether SFTP is not tried."""
        return self.guarded or self.transport == "scp"

    @property
    def falls_back(self) -> bool:
        """Whether SCP is used on a peer without SFTP; with ``elevate`` it would run as the login, and see less."""
        return self.transport == "auto" and not self.guarded and self.ssh.elevate is None

    @property
    def by_command(self) -> bool:
        """Whether an rcp-like command copies."""
        return self.transport == "rcp" or (self.transport == "auto" and self.rcp_command is not None)

    def split_command(self) -> list[str]:
        """Return the words of the command.

        Raises:
            ValueError: A quote is not closed, or there is no word.
        """
        return _split(self.rcp_command or DEFAULT_COMMAND, "rcpCommand")

    def split_rsh_command(self) -> list[str]:
        """Return the words of the rsh-like command, none if there is none.

        Raises:
            ValueError: A quote is not closed, or there is no word.
        """
        return [] if self.rsh_command is None else _split(self.rsh_command, "rshCommand")


def _split(command: str, name: str) -> list[str]:
    words = split_command_line(command)
    if not words:
        raise ValueError(f"There is no command in {name}: {command!r}")
    return words


def assemble(
    route: Route,
    *,
    limits: Limits,
    retry: Retry,
    watchdog: Watchdog,
    on_progress: Callable[[Progress], object] | None = None,
    on_fallback: Callable[[], object] | None = None,
) -> Transport:
    """Return the stack of transports for *route*; it connects when it is first used.

    An rcp-like command stands alone: it connects by itself, and what it did can not be gone on with. Else, from the
    inside out: SFTP or SCP over a session, under ``auto`` SCP where there is no SFTP; made anew after a lost
    connection; observed, if somebody wants to know. *on_fallback* is called when a peer turns out to have no SFTP.

    Raises:
        ValueError: As `Route.check`.
    """
    route.check()
    stack: Transport
    if route.by_command:
        stack = RcpTransport(
            route.split_command(),
            rsh=route.split_rsh_command(),
            user=route.user,
            host=route.name,
            working_directory=route.working_directory,
            limits=limits,
            watchdog=watchdog,
        )
        return stack if on_progress is None else Observing(stack, on_progress)
    way = _Way(route, limits, watchdog, on_fallback or (lambda: None))
    if route.ssh.sock is not None:  # a connection that was handed in can not be made anew
        retry = Retry(tries=1)
    stack = Retrying(way.open, way.capabilities, retry, watchdog, peer=route.name)
    if on_progress is not None:
        stack = Observing(stack, on_progress)
    return stack


def sftp_over(session: Session, route: Route, *, limits: Limits, watchdog: Watchdog) -> SFTPTransport:
    """Return SFTP over *session*, as *route* asks for it."""
    from peerstage.transport.sftp.transport import SFTPTransport

    return SFTPTransport(session, limits, watchdog, elevate=route.ssh.elevate, peer=route.name)


def scp_over(
    session: Session, route: Route, connect: Callable[[], Session], *, limits: Limits, watchdog: Watchdog
) -> SCPTransport:
    """Return SCP over *session*, as *route* asks for it; *connect* logs in once more."""
    from peerstage.transport.scp.transport import SCPTransport

    again = connect if route.ssh.sock is None else None  # a connection that was handed in can be used once
    return SCPTransport(session, limits, watchdog, guarded=route.guarded, times=route.preserve_times, connect=again)


class _Way:
    """Connects along a route, and remembers that the peer has no SFTP once that is known."""

    def __init__(self, route: Route, limits: Limits, watchdog: Watchdog, on_fallback: Callable[[], object]) -> None:
        self._route = route
        self._limits = limits
        self._watchdog = watchdog
        self._on_fallback = on_fallback
        self._by_scp = route.starts_with_scp

    @property
    def capabilities(self) -> Capabilities:
        """What the transport can do that is tried first."""
        return capabilities.SCP if self._by_scp else capabilities.SFTP

    def open(self) -> Transport:
        """Connect, and return a transport over the connection."""
        from peerstage.session.config import resolve_destination
        from peerstage.session.session import Session

        route, limits, watchdog = self._route, self._limits, self._watchdog
        destination = resolve_destination(route.name, route.user, route.ssh, watchdog=watchdog)

        def connect() -> Session:
            return Session.connect(destination, route.ssh, limits=limits, watchdog=watchdog)

        session = connect()

        def by_scp() -> Transport:
            return scp_over(session, route, connect, limits=limits, watchdog=watchdog)

        if self._by_scp:
            return by_scp()
        by_sftp = sftp_over(session, route, limits=limits, watchdog=watchdog)
        return FallingBack(by_sftp, by_scp, self._fell_back, peer=route.name) if route.falls_back else by_sftp

    def _fell_back(self) -> None:
        self._by_scp = True
        self._on_fallback()
