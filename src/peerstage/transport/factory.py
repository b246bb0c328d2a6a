"""Choice of the transport to a remote peer, and assembly of its stack of wrappers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from peerstage.records import Capabilities, Progress
from peerstage.ssh.options import SSHOptions
from peerstage.transport import capabilities
from peerstage.transport.base import Transport
from peerstage.transport.fallback import FallbackTransport
from peerstage.transport.progress import ProgressTransport
from peerstage.transport.rcp.command_line import DEFAULT_COMMAND, split_command_line
from peerstage.transport.rcp.rcp_transport import RCPTransport
from peerstage.transport.retry import Retry, RetryingTransport
from peerstage.watchdog import Watchdog

if TYPE_CHECKING:
    from peerstage.ssh.session import Session
    from peerstage.transport.scp.scp_transport import SCPTransport
    from peerstage.transport.sftp.sftp_transport import SFTPTransport

#: Values of ``transport=``.
TransportName: TypeAlias = Literal["auto", "sftp", "scp", "rcp"]
TRANSPORTS: tuple[str, ...] = get_args(TransportName)
#: Means ``transport="scp", guarded=True`` on the command line and in configuration files.
GUARDED = "guarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """How the caller wants a remote peer to be reached.

    Attributes:
        name: The peer: a host name, an address, or an alias of ssh_config.
        user: The login name on the peer.
        ssh: Options of the SSH connection.
        transport: One of `TRANSPORTS`.
        rcp_command: An rcp-like command, for ``auto`` and ``rcp``.
        rsh_command: An rsh-like command, which runs other commands.
        guarded: Whether a forced command that was written for CedarBackup2 guards the key on the peer.
        preserve_times: Whether modification times are wanted.
        bwlimit: Bytes per second to receive at most, which the watchdog enforces; None for no limit.
        link_dest: Whether unchanged files are not to be sent, which takes modification times, too.
        manifest: Whether a manifest records the files: with their modification times, unless the transport cannot
            request them, so that a later stage can link to these files.
        needs_ranges: Whether parts of files are wanted, which SCP and rcp-like commands cannot request. If the peer
            turns out to have no SFTP, files are fetched as a whole.
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
    bwlimit: int | None = None
    link_dest: bool = False
    manifest: bool = False
    needs_ranges: bool = False
    working_directory: str | None = None

    def validate(self) -> None:
        """Raise `ValueError` if options exclude each other, or a command cannot be split."""
        rcp, scp, sftp = self.uses_rcp_command, self.transport == "scp", self.transport == "sftp"
        if self.ssh.elevate is not None and (self.guarded or rcp or scp):
            raise ValueError(
                "The option elevate requires SFTP: it excludes the transports scp, rcp and guarded, and an rcp command."
            )
        if self.guarded and (rcp or sftp):
            raise ValueError("guarded=True requires SCP: it excludes sftp, rcp and an rcpCommand.")
        if self.guarded and self.preserve_times:
            raise ValueError(
                "guarded=True sends CedarBackup2's commands, which request no times. Omit "
                "StageOptions(preserve_times=True) or guarded=True."
            )
        if rcp and self.bwlimit is not None:
            raise ValueError(
                "StageOptions(bwlimit=...) cannot limit an rcp command, which connects by itself. Omit it, and give "
                "the command its own limit, such as scp -l."
            )
        if self.link_dest and (self.guarded or rcp):
            raise ValueError(
                "StageOptions(link_dest=...) needs the peer's modification times and asks before a file is sent, which "
                "guarded=True and an rcp command do not allow. Omit it, or use SFTP or SCP."
            )
        if self.needs_ranges and (self.guarded or rcp or scp):
            raise ValueError(
                "StageOptions(partial_dir=...) requires SFTP: over SCP, rcp and guarded=True parts of a file cannot be "
                "requested. Omit it, or use another transport."
            )
        if rcp:
            self.split_commands()

    def for_execute(self) -> TransportOptions:
        """Return the options of the transport that runs commands: these, unless they name an rsh or rcp command."""
        if self.rsh_command is not None:
            return TransportOptions(
                name=self.name, user=self.user, ssh=SSHOptions(), transport="rcp", rsh_command=self.rsh_command
            )
        return dataclasses.replace(self, transport="auto", rcp_command=None) if self.uses_rcp_command else self

    @property
    def uses_rcp_command(self) -> bool:
        """Whether an rcp-like command copies the files."""
        return self.transport == "rcp" or (self.transport == "auto" and self.rcp_command is not None)

    @property
    def starts_with_scp(self) -> bool:
        """Whether to use SCP without trying SFTP first."""
        return self.guarded or self.transport == "scp"

    @property
    def may_fall_back(self) -> bool:
        """Whether SCP is used if the peer has no SFTP; not with ``elevate``: SCP would run as the login user."""
        return self.transport == "auto" and not self.guarded and self.ssh.elevate is None

    @property
    def capabilities(self) -> Capabilities:
        """Capabilities of the transport that is tried first."""
        if self.uses_rcp_command:
            return capabilities.RCP
        return capabilities.SCP if self.starts_with_scp else capabilities.SFTP

    def split_commands(self) -> tuple[list[str], list[str]]:
        """Return the words of the rcp-like command, and those of the rsh-like command, if any.

        Raises:
            ValueError: If a quote is not closed, or a command has no word.
        """
        rcp = _split(self.rcp_command or DEFAULT_COMMAND, "rcpCommand")
        return rcp, [] if self.rsh_command is None else _split(self.rsh_command, "rshCommand")


def _split(command: str, name: str) -> list[str]:
    words = split_command_line(command)
    if not words:
        raise ValueError(f"{name} names no command: {command!r}")
    return words


def build_transport(
    options: TransportOptions,
    *,
    retry: Retry,
    watchdog: Watchdog,
    on_progress: Callable[[Progress], object] | None = None,
    on_fallback: Callable[[], object] = lambda: None,
) -> Transport:
    """Return the stack of transports for *options*; it connects when it is first used.

    An rcp-like command makes its own connection and cannot resume a transfer, so it is not retried and *retry* is
    ignored. Otherwise, from the inside out: SFTP or SCP over a session, or with ``auto`` SCP if there is no SFTP;
    retries; progress if *on_progress* is given. *on_fallback* is called when the peer turns out to have no SFTP. The
    limits are those of *watchdog*.

    Raises:
        ValueError: As `TransportOptions.validate`.
    """
    options.validate()
    stack: Transport
    if options.uses_rcp_command:
        rcp, rsh = options.split_commands()
        stack = RCPTransport(
            rcp,
            rsh=rsh,
            user=options.user,
            host=options.name,
            working_directory=options.working_directory,
            watchdog=watchdog,
        )
    else:
        if options.ssh.sock is not None:  # a socket from the caller can be used once
            retry = Retry(tries=1)
        factory = TransportFactory(options, watchdog, on_fallback)
        stack = RetryingTransport(factory.connect, options.capabilities, retry, watchdog, peer=options.name)
    return stack if on_progress is None else ProgressTransport(stack, on_progress)


def build_sftp(session: Session, options: TransportOptions, watchdog: Watchdog) -> SFTPTransport:
    """Return the SFTP transport over *session*."""
    from peerstage.transport.sftp.sftp_transport import SFTPTransport

    return SFTPTransport(session, watchdog, elevate=options.ssh.elevate, peer=options.name)


def build_scp(
    session: Session, options: TransportOptions, watchdog: Watchdog, connect: Callable[[], Session]
) -> SCPTransport:
    """Return the SCP transport over *session*; *connect* returns another session."""
    from peerstage.transport.scp.scp_transport import SCPTransport

    reconnect = connect if options.ssh.sock is None else None  # a socket from the caller can be used once
    records_times = options.manifest and not options.guarded
    return SCPTransport(
        session,
        watchdog,
        guarded=options.guarded,
        preserve_times=options.preserve_times or options.link_dest or records_times,
        connect=reconnect,
    )


class TransportFactory:
    """Connects to a peer, and remembers if the peer has no SFTP."""

    def __init__(self, options: TransportOptions, watchdog: Watchdog, on_fallback: Callable[[], object]) -> None:
        self._options = options
        self._watchdog = watchdog
        self._on_fallback = on_fallback
        self._uses_scp = options.starts_with_scp

    def connect(self) -> Transport:
        """Return a transport over a new session."""
        from peerstage.ssh.config.resolve import resolve_destination
        from peerstage.ssh.session import Session

        options, watchdog = self._options, self._watchdog
        destination = resolve_destination(options.name, options.user, options.ssh, watchdog=watchdog)

        def connect_session() -> Session:
            return Session.connect(destination, options.ssh, watchdog=watchdog)

        session = connect_session()

        def build_scp_transport() -> Transport:
            return build_scp(session, options, watchdog, connect_session)

        if self._uses_scp:
            return build_scp_transport()
        sftp = build_sftp(session, options, watchdog)
        if not options.may_fall_back:
            return sftp
        return FallbackTransport(sftp, build_scp_transport, self._fall_back, peer=options.name)

    def _fall_back(self) -> None:
        self._uses_scp = True
        self._on_fallback()
