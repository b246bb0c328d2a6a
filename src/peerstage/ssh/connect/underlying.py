"""The byte stream under an SSH connection: TCP, a channel of a jump host, or a ProxyCommand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from peerstage.errors import ConfigurationError, ConnectError, ConnectionLost, LimitExceeded, ProtocolError, StageError
from peerstage.reasons import Reason
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.config.proxy_jump import MAX_HOPS
from peerstage.ssh.config.resolve import hop_options, resolve_destination
from peerstage.ssh.connect.proxy_command import ProxyCommand
from peerstage.ssh.connect.tcp import connect_tcp
from peerstage.ssh.options import SSHOptions
from peerstage.ssh.steps import OnStep
from peerstage.ssh.stream import ChannelSocket
from peerstage.watchdog import Watchdog


class HopSession(Protocol):
    """The session with a jump host, as far as connections through it use it."""

    def open_direct_tcpip(self, host: str, port: int, timeout: float) -> ChannelSocket:
        """Open a channel to *host*; close the session if that fails."""

    def add_command_output(self, failure: StageError) -> StageError:
        """See `UnderlyingConnection`."""

    def close(self) -> None:
        """Close the session."""


class ConnectSession(Protocol):
    """The signature of `Session.connect`, passed as an argument to avoid an import cycle."""

    def __call__(
        self, destination: Destination, options: SSHOptions, *, watchdog: Watchdog, depth: int = 0
    ) -> HopSession:
        """Connect and log in."""


@dataclass(frozen=True, slots=True)
class UnderlyingConnection:
    """A connected byte stream, and what to close after it.

    Attributes:
        sock: The socket, or an object with its methods; its user closes it.
        seconds_left: The rest of the time to connect.
        hop: The session with the last jump host.
        command: The ProxyCommand.
    """

    sock: Any
    seconds_left: float
    hop: HopSession | None = None
    command: ProxyCommand | None = None

    def add_command_output(self, failure: StageError, *, logged_in: bool) -> StageError:
        """Return *failure* with what the ProxyCommand wrote to stderr, if there is one; call before `close`."""
        if self.hop is not None:
            return self.hop.add_command_output(failure)
        if self.command is None or not isinstance(
            failure, (ConnectError, ConnectionLost, LimitExceeded, ProtocolError)
        ):
            return failure
        output = self.command.describe()
        if output is None:
            return failure
        if not logged_in and self.command.has_failed():  # which caused *failure*
            return ConnectError(
                f"The SSH connection failed. {output} Run the ProxyCommand by hand to see why.",
                reason=Reason.PROXY_COMMAND_FAILED,
            )
        failure.message = f"{failure.message} {output}"
        return failure

    def close(self) -> None:
        """Close everything but `sock`. May be called again."""
        if self.command is not None:
            self.command.close()
        if self.hop is not None:
            self.hop.close()


def open_underlying_connection(
    destination: Destination,
    options: SSHOptions,
    *,
    watchdog: Watchdog,
    depth: int,
    on_step: OnStep,
    connect_session: ConnectSession,
) -> UnderlyingConnection:
    """Return the caller's socket, or connect through jump hosts, by the ProxyCommand or by TCP.

    See `open_client_connection` for the arguments.

    Raises:
        ConfigurationError: If the caller's socket is closed, or a jump host jumps through itself.
        StageError: If the connection fails; see `Session.connect`.
    """
    timeout = destination.connect_timeout
    if options.sock is not None:
        if options.sock.fileno() < 0:  # type: ignore[union-attr]
            raise ConfigurationError("SSHOptions(sock=...) is closed: a socket serves one session. Use a with block.")
        return UnderlyingConnection(options.sock, timeout)
    if destination.hops:
        *before, hop = destination.hops
        if depth >= MAX_HOPS:
            raise ConfigurationError(
                f"More than {MAX_HOPS} jump hosts. Check whether {hop} jumps through itself (its ProxyJump)."
            )
        through = hop_options(options, hop, tuple(before))
        try:
            label = f"{destination.label}, jump host {hop}"
            hop_destination = resolve_destination(hop.host, hop.user, through, watchdog=watchdog, label=label)
            session = connect_session(hop_destination, through, watchdog=watchdog, depth=depth + 1)
        except StageError as exc:
            if not exc.hop:
                exc.hop = str(hop)
                exc.message = f"Jump host {hop}: {exc.message}"
            raise
        on_step("jump host", ", ".join(map(str, destination.hops)))
        channel = session.open_direct_tcpip(destination.host, destination.port, timeout)
        on_step("connection", f"{destination.host} port {destination.port}, through {hop}")
        return UnderlyingConnection(channel, timeout, hop=session)
    if destination.proxy_command is not None:
        command = ProxyCommand(destination.proxy_command)
        on_step("connection", f"through the ProxyCommand {destination.proxy_command}")
        return UnderlyingConnection(command.sock, timeout, command=command)
    sock, seconds_left = connect_tcp(
        destination.host,
        destination.port,
        family=destination.address_family,
        timeout=timeout,
        watchdog=watchdog,
        attempts=destination.connection_attempts,
        bind_address=destination.bind_address,
        log=destination.log,
        on_step=on_step,
    )
    return UnderlyingConnection(sock, seconds_left)
