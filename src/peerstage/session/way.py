"""The way to a peer's SSH server: a TCP connection, a channel through a hop, or a ProxyCommand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peerstage.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    LimitExceeded,
    ProtocolError,
    StageError,
)
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.session import jump
from peerstage.session.config import Destination, hop_options, resolve_destination
from peerstage.session.dial import dial
from peerstage.session.handshake import Note
from peerstage.session.options import SSHOptions
from peerstage.session.proxy import ProxyCommand
from peerstage.session.watchdog import Watchdog

if TYPE_CHECKING:
    from peerstage.session.session import Session


@dataclass(frozen=True, slots=True)
class Way:
    """What carries a connection, and what has to be closed behind it.

    Attributes:
        sock: What is read from and written to; whoever uses it closes it.
        left: Seconds of the time to connect that are left.
        hop: The session with the host that is jumped through.
        command: The command that reaches the peer.
    """

    sock: Any
    left: float
    hop: Session | None = None
    command: ProxyCommand | None = None

    def explain(self, failure: StageError, *, logged_in: bool) -> StageError:
        """Return *failure* with what a command on the way has to say to it; to be called before that is closed."""
        if self.hop is not None:
            return self.hop.explain(failure)
        concerns_the_way = isinstance(failure, (ConnectError, ConnectionLost, LimitExceeded, ProtocolError))
        words = self.command.last_words() if self.command is not None and concerns_the_way else None
        if words is None:
            return failure
        if not logged_in and self.command is not None and self.command.has_failed:  # then the rest follows from that
            return ConnectError(
                f"No SSH session came about. {words} Run it by hand to see why.", reason=Reason.PROXY_COMMAND_FAILED
            )
        failure.message = f"{failure.message} {words}"
        return failure

    def close(self) -> None:
        """Close what lies behind `sock`. Closing again is allowed."""
        if self.command is not None:
            self.command.close()
        if self.hop is not None:
            self.hop.close()


def find_way(
    destination: Destination,
    options: SSHOptions,
    *,
    limits: Limits,
    watchdog: Watchdog,
    depth: int,
    note: Note,
    connect: Callable[..., Session],
) -> Way:
    """Return a way to *destination*: the socket that was handed in, the hops, the command, or a connection.

    Args:
        destination: Where to.
        options: What `destination` was made of.
        limits: Bounds for each hop.
        watchdog: Ends it.
        depth: How many hops lie behind this one.
        note: Told of the steps of a connection.
        connect: `Session.connect`, for a hop.

    Raises:
        ConfigurationError: The socket that was handed in is closed, or a hop jumps through itself.
        StageError: There is no way; see `Session.connect`.
    """
    timeout = destination.connect_timeout
    if options.sock is not None:
        if options.sock.fileno() < 0:  # type: ignore[union-attr]
            raise ConfigurationError("SSHOptions(sock=...) is closed: a socket serves one session. Use a with block.")
        return Way(options.sock, timeout)
    if destination.hops:
        hop = _reach_hop(destination, options, limits, watchdog, depth, connect)
        note("jump host", ", ".join(str(one) for one in destination.hops))
        channel = hop.open_way(destination.host, destination.port, timeout)
        note("connection", f"{destination.host} port {destination.port}, through {destination.hops[-1]}")
        return Way(channel, timeout, hop=hop)
    if destination.proxy_command is not None:
        command = ProxyCommand(destination.proxy_command)
        note("connection", f"through the ProxyCommand {destination.proxy_command}")
        return Way(command.sock, timeout, command=command)
    sock, left = dial(
        destination.host,
        destination.port,
        family=destination.family,
        timeout=timeout,
        watchdog=watchdog,
        attempts=destination.attempts,
        bind_address=destination.bind_address,
        log=destination.log,
        note=note,
    )
    return Way(sock, left)


def _reach_hop(
    destination: Destination,
    options: SSHOptions,
    limits: Limits,
    watchdog: Watchdog,
    depth: int,
    connect: Callable[..., Session],
) -> Session:
    """Return a session with the last hop before *destination*; its configuration, keys and host key are its own."""
    *before, hop = destination.hops
    if depth >= jump.MOST_HOPS:
        raise ConfigurationError(f"More than {jump.MOST_HOPS} hops: does {hop} jump through itself? See its ProxyJump.")
    theirs = hop_options(options, hop, tuple(before))
    try:
        label = f"{destination.label}, jump host {hop}"
        next_one = resolve_destination(hop.host, hop.user, theirs, watchdog=watchdog, label=label)
        return connect(next_one, theirs, limits=limits, watchdog=watchdog, depth=depth + 1)
    except StageError as exc:
        if not exc.hop:
            exc.hop = str(hop)
            exc.message = f"Jump host {hop}: {exc.message}"
        raise
