"""How a verb gets to a peer: the options of the command line, and the stack of transports that they lead to."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

from peerstage.cli.signals import cancelling
from peerstage.cli.spec import Spec
from peerstage.isolation.transport import assemble_as
from peerstage.isolation.users import copying_user
from peerstage.peer.attributes import host_of
from peerstage.peer.remote import RemotePeer
from peerstage.records import Limits, Progress
from peerstage.session.options import SSHOptions
from peerstage.session.watchdog import Watchdog
from peerstage.staging import naming
from peerstage.transport.base import Transport
from peerstage.transport.choose import Route, TransportName
from peerstage.transport.retry import Retry

#: What ``--transport`` may be beside the names of transports.
GUARDED = "guarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How peers are reached, and how much of them is taken."""

    ssh: SSHOptions
    limits: Limits
    retry: Retry = field(default_factory=Retry)
    transport: str = "auto"
    local_user: str | None = None

    @property
    def _guarded(self) -> bool:
        return self.transport == GUARDED

    @property
    def _transport(self) -> TransportName:
        return "scp" if self._guarded else cast(TransportName, self.transport)  # any other is refused where it is used

    def peer(
        self,
        spec: Spec,
        *,
        durable: bool = True,
        preserve_times: bool = False,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> RemotePeer:
        """Return the peer that *spec* names. Nothing is connected.

        Raises:
            ValueError: What *spec* holds can not be meant.
        """
        return RemotePeer(
            spec.host,
            spec.directory,
            tempfile.gettempdir(),
            spec.user,
            localUser=self.local_user,
            ssh=self.ssh,
            transport=self._transport,
            guarded=self._guarded,
            limits=self.limits,
            retry=self.retry,
            durable=durable,
            preserve_times=preserve_times,
            on_progress=on_progress,
        )

    @contextlib.contextmanager
    def stack(self, spec: Spec) -> Iterator[Transport]:
        """Yield the transport to *spec*; a signal cancels what it does.

        Raises:
            StageError: On use, what a `RemotePeer` would hide behind ``False``.
        """
        watchdog = Watchdog(self.limits, peer=spec.host)
        with contextlib.closing(watchdog), self.watched(spec, watchdog) as transport, cancelling(watchdog.cancel):
            yield transport

    @contextlib.contextmanager
    def watched(self, spec: Spec, watchdog: Watchdog) -> Iterator[Transport]:
        """Yield the transport to *spec*, in whatever thread; *watchdog* cancels what it does. See `stack`."""
        with naming(spec.host):
            user, route = copying_user(self.local_user), self.route(spec)
            stack = assemble_as(user, route, isolated=False, limits=self.limits, retry=self.retry, watchdog=watchdog)
            with stack as transport:
                yield transport

    def route(self, spec: Spec) -> Route:
        """Return the way to *spec*."""
        return Route(
            name=host_of(spec.host),
            user=spec.user,
            ssh=self.ssh,
            transport=self._transport,
            guarded=self._guarded,
            working_directory=tempfile.gettempdir(),
        )
