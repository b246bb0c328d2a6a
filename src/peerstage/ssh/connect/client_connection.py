"""Connect to a host and exchange keys; send nothing after that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

from peerstage.errors import StageError
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.ssh._paramiko.client_transport import ClientTransport, make_transport
from peerstage.ssh._paramiko.self_check import check_paramiko
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.connect.underlying import ConnectSession, UnderlyingConnection, open_underlying_connection
from peerstage.ssh.handshake import exchange_keys
from peerstage.ssh.hostkeys.verifier import HostKeyVerifier
from peerstage.ssh.options import SSHOptions
from peerstage.ssh.steps import OnStep, ignore_step
from peerstage.system_errors import system_error
from peerstage.watchdog import Watchdog

#: The largest window of a channel, in bytes: 2^32 - 1 is the most that the protocol allows (RFC 4254, section 5.2).
_MAX_WINDOW_SIZE = 1 << 30
#: The largest piece of channel data in one SSH packet, in bytes.
MAX_PACKET_SIZE = 128 * 1024
#: Seconds to wait for paramiko's thread to end.
_JOIN_SECONDS = 2.0


def window_size(limits: Limits) -> int:
    """Return the window of a channel, in bytes: what may be in flight, and a sixth more for the replies around it."""
    return min(limits.in_flight_bytes + limits.in_flight_bytes // 6, _MAX_WINDOW_SIZE)


class ClientConnection(NamedTuple):
    """A connection after the key exchange.

    Attributes:
        transport: The SSH transport.
        underlying: The byte stream under it.
        connected_at: When that was connected, by the monotonic clock.
    """

    transport: ClientTransport
    underlying: UnderlyingConnection
    connected_at: float

    @contextlib.contextmanager
    def closed_on_failure(self, watchdog: Watchdog) -> Iterator[None]:
        """Let *watchdog* abort the block; if it fails, close the connection and add a ProxyCommand's output."""
        try:
            with watchdog.on_failure(self.transport.abort):
                yield
        except BaseException as exc:
            failure = self.underlying.add_command_output(exc, logged_in=False) if isinstance(exc, StageError) else exc
            self.close()
            if failure is exc:
                raise
            raise failure from exc

    def close(self) -> None:
        """Close the connection, the jump hosts' connections and the ProxyCommand."""
        self.transport.abort()
        if self.transport.is_alive():
            self.transport.join(_JOIN_SECONDS)
        self.underlying.close()


def open_client_connection(
    destination: Destination,
    options: SSHOptions,
    verifier: HostKeyVerifier,
    *,
    watchdog: Watchdog,
    connect_session: ConnectSession,
    depth: int = 0,
    on_step: OnStep = ignore_step,
) -> ClientConnection:
    """Connect to *destination* and exchange keys; send nothing after that.

    A host may have several keys, and presents one of the requested type. If the verifier wants another key (a pinned
    one, or see `HostKeyVerifier.search_for`), ask for each of the host's other types in turn, on a new connection each.
    All of these together may take the destination's time to connect once more.

    For the other arguments and the errors see `Session.connect`.

    Args:
        destination: The host.
        options: The options that *destination* was resolved from.
        verifier: Chooses the host key algorithms; see `HostKeyVerifier.remaining_algorithms`.
        connect_session: `Session.connect`, for jump hosts.
        on_step: Called after each step of the first connection.
    """
    check_paramiko()

    def connect(key_types: tuple[str, ...], on_step: OnStep) -> tuple[ClientConnection, tuple[str, ...]]:
        """Return a connection, and the host key algorithms to try next."""
        underlying = open_underlying_connection(
            destination, options, watchdog=watchdog, depth=depth, on_step=on_step, connect_session=connect_session
        )
        transport = _make_transport(underlying, watchdog.limits, destination)
        connection = ClientConnection(transport, underlying, time.monotonic())
        with (
            connection.closed_on_failure(watchdog),
            watchdog.phase("complete the login", watchdog.limits.login_timeout, Reason.LOGIN_TIMEOUT),
        ):
            timeout = max(0.1, underlying.seconds_left)
            exchange_keys(transport, destination, key_types, watchdog, timeout, on_step)
            return connection, verifier.remaining_algorithms(
                transport.presented_key, key_types, transport.host_key_algorithms
            )

    connection, other_types = connect(verifier.order_algorithms(destination.algorithms.host_keys), on_step)
    if not other_types or options.sock is not None:  # the caller's socket cannot be connected again
        return connection
    with watchdog.phase("present the wanted host key", destination.connect_timeout, Reason.CONNECT_TIMEOUT):
        while other_types:
            destination.log.info("presents a key other than the wanted one; asking for %s.", ", ".join(other_types))
            connection.close()
            connection, other_types = connect(other_types, ignore_step)
    return connection


def _make_transport(underlying: UnderlyingConnection, limits: Limits, destination: Destination) -> ClientTransport:
    """Return a transport on *underlying*, which is closed if that fails."""
    try:
        window = window_size(limits)
        return make_transport(
            underlying.sock, limits, window, MAX_PACKET_SIZE, destination.algorithms, peer=destination.label
        )
    except BaseException as exc:
        underlying.sock.close()
        underlying.close()
        if isinstance(exc, OSError) and not isinstance(exc, StageError):
            raise system_error("The connection cannot be used", exc) from exc
        raise
