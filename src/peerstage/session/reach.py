"""From a destination to a host whose keys were exchanged, and that has not been told anything since."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from peerstage.errors import StageError
from peerstage.reasons import Reason
from peerstage.records import MIB, Limits
from peerstage.session._paramiko.transport import ClientTransport, make_transport
from peerstage.session.config import Destination
from peerstage.session.handshake import Note, exchange_keys, say_nothing
from peerstage.session.host_key import HostKeys
from peerstage.session.options import SSHOptions
from peerstage.session.watchdog import Watchdog
from peerstage.session.way import Way, find_way
from peerstage.system_errors import system_error

if TYPE_CHECKING:
    import paramiko

    from peerstage.session.session import Session
    from peerstage.session.stream import Stream

#: Bytes that the peer may send before we have read them: what may be in flight, and the replies around it.
WINDOW = 28 * MIB
#: The largest piece of channel data in one SSH packet.
PACKET = 128 * 1024


class Reached(NamedTuple):
    """The way to a host, a transport on it, and since when SSH is spoken there (monotonic)."""

    transport: ClientTransport
    way: Way
    since: float

    @contextlib.contextmanager
    def watched(self, watchdog: Watchdog) -> Iterator[None]:
        """Have *watchdog* end what is done inside; what fails there is explained, and everything closed."""
        try:
            with watchdog.ending(Ending(self.transport, [])):
                yield
        except BaseException as exc:
            failure = self.way.explain(exc, logged_in=False) if isinstance(exc, StageError) else exc
            self.close()
            if failure is exc:
                raise
            raise failure from exc

    def close(self) -> None:
        """Go back all the way."""
        Ending(self.transport, [])()
        if self.transport.is_alive():
            self.transport.join(2.0)
        self.way.close()


class Ending:
    """Ends a connection at once, from any thread: what waits for it wakes up. Calling it again is allowed."""

    def __init__(self, transport: paramiko.Transport | None, streams: list[Stream]) -> None:
        self._transport = transport
        self._streams = streams
        self._process = os.getpid()

    def __call__(self) -> None:
        if os.getpid() != self._process:  # a shutdown of the socket would end the parent's connection
            return
        if self._transport is None:
            for stream in list(self._streams):
                stream.close()
            return
        sock = self._transport.sock
        with contextlib.suppress(OSError, AttributeError):
            sock.shutdown(socket.SHUT_RDWR)
        for close in (self._transport.close, sock.close):
            with contextlib.suppress(OSError):
                close()


def _on(way: Way, limits: Limits, destination: Destination) -> ClientTransport:
    """Return a transport on *way*, or close that."""
    try:
        return make_transport(way.sock, limits, WINDOW, PACKET, destination.algorithms, peer=destination.label)
    except BaseException as exc:
        way.sock.close()
        way.close()
        if isinstance(exc, OSError):
            raise system_error("The connection cannot be used", exc) from exc
        raise


def reach(
    destination: Destination,
    options: SSHOptions,
    hosts: HostKeys,
    *,
    limits: Limits,
    watchdog: Watchdog,
    connect: Callable[..., Session],
    depth: int = 0,
    note: Note = say_nothing,
) -> Reached:
    """Find the way to the host at *destination* and exchange keys; nothing is sent to it after that.

    A host may have several keys and shows the one of the type that it is asked for. Where a fingerprint is pinned and
    another key is shown, it is asked again, on a connection of its own, for each further type that it says it has. All
    these together may take the destination's time to connect once more.

    Args:
        destination: Where to.
        options: What `destination` was made of.
        hosts: What is known of its host key.
        limits: Bounds for what the peer may send, and each hop.
        watchdog: Ends it.
        connect: `Session.connect`, for a hop.
        depth: How many hops lie behind this one.
        note: Told of each step that is done on the first connection.

    Raises:
        StageError: As `Session.connect`.
    """

    def attempt(key_types: tuple[str, ...], note: Note) -> tuple[Reached, tuple[str, ...]]:
        way = find_way(destination, options, limits=limits, watchdog=watchdog, depth=depth, note=note, connect=connect)
        transport = _on(way, limits, destination)
        reached = Reached(transport, way, time.monotonic())
        with (
            reached.watched(watchdog),
            watchdog.phase("complete the login", limits.login_timeout, Reason.LOGIN_TIMEOUT),
        ):
            exchange_keys(transport, destination, key_types, watchdog, max(0.1, way.left), note)
            return reached, hosts.further_types(transport.shown, key_types, transport.host_key_algorithms)

    reached, further = attempt(hosts.order(destination.algorithms.host_keys), note)
    if not further or options.sock is not None:  # a connection that was handed in cannot be made again
        return reached
    with watchdog.phase("show the pinned host key", destination.connect_timeout, Reason.CONNECT_TIMEOUT):
        while further:
            destination.log.info("shows another key than the pinned one; asking for %s.", ", ".join(further))
            reached.close()
            reached, further = attempt(further, say_nothing)
    return reached
