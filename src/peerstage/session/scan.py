"""What a host shows as its key: a key exchange on the way that a stage would take, and not a word about who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from peerstage.errors import HostKeyError
from peerstage.records import Limits
from peerstage.session.config import Destination
from peerstage.session.host_key import HostKeys, Verdict
from peerstage.session.options import SSHOptions
from peerstage.session.reach import reach
from peerstage.session.session import Session
from peerstage.session.watchdog import Watchdog


class Scanned(NamedTuple):
    """What a host has shown, proved and not trusted, and what is known about it.

    Attributes:
        shown: The key or certificate, as SSH encodes it: the one that a stage would be shown, or the one sought.
        verdict: Why it may be trusted, None if it may not.
        error: Why it may not be trusted.
        against: The place of the known_hosts line that speaks against it; empty if none does.
        is_new_host: Whether nothing is known of the host.
        unsought: All that the host has shown, if it was asked for each of its keys and none was the one sought.
    """

    shown: bytes
    verdict: Verdict | None
    error: HostKeyError | None
    against: str
    is_new_host: bool
    unsought: tuple[bytes, ...]


def scan(
    destination: Destination,
    options: SSHOptions,
    *,
    limits: Limits,
    watchdog: Watchdog,
    is_sought: Callable[[bytes], bool] | None = None,
) -> Scanned:
    """Return what the host at *destination* shows. It is not logged in there; at hops on the way it is.

    Nothing is sent after the key exchange, and nothing is written.

    Args:
        destination: Where to.
        options: What *destination* was made of.
        limits: Bounds for what the host sends.
        watchdog: Ends it.
        is_sought: Returns whether a public key is the one sought. A host of which nothing is known is then asked for
            each of its keys, on a connection each, until it shows that one. A host that is known is not: on another
            connection, whoever answers could have passed the question on to the real host.

    Raises:
        ConnectError, ProtocolError: There is no SSH server, or none with algorithms that do.
        HostKeyError, LoginError: A hop's key or login was refused.
        LimitExceeded, Cancelled: It took too long, or was cancelled.
    """
    watchdog.renew()
    hosts = HostKeys.read(destination)
    if is_sought is not None and hosts.is_new_host:
        hosts.seek(is_sought)
    reached = reach(destination, options, hosts, limits=limits, watchdog=watchdog, connect=Session.connect)
    reached.close()
    shown = reached.transport.shown
    unsought = tuple(hosts.unsought) if shown in hosts.unsought else ()
    if unsought:
        shown = unsought[0]
    try:
        return Scanned(shown, hosts.look_up(shown), None, "", hosts.is_new_host, unsought)
    except HostKeyError as exc:
        return Scanned(shown, None, exc, hosts.place_against(shown), hosts.is_new_host, unsought)
