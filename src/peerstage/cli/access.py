"""How the command line reaches peers: the values of its options, and the transports that they lead to."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar, cast

from peerstage.cli.arguments import PeerSpec
from peerstage.cli.signals import cancel_on_signal
from peerstage.fleet.plan import PeerJob
from peerstage.isolation.parent.isolated_transport import build_isolated_transport
from peerstage.isolation.users import find_local_user
from peerstage.peer.local import LocalPeer
from peerstage.peer.remote import RemotePeer
from peerstage.records import Limits, Progress
from peerstage.ssh.options import SSHOptions
from peerstage.stage_options import StageOptions
from peerstage.staging import with_peer_name
from peerstage.transport.base import Transport
from peerstage.transport.factory import TransportName, TransportOptions
from peerstage.transport.local import LocalTransport
from peerstage.transport.retry import Retry
from peerstage.watchdog import Watchdog

T = TypeVar("T", Limits, Retry)


class TransportChoice(str, Enum):
    """The values of ``--transport``."""

    AUTO = "auto"
    SFTP = "sftp"
    SCP = "scp"
    GUARDED = "guarded"
    RCP = "rcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How peers are reached, and the limits on what they send.

    Attributes:
        is_local: Whether the peer is a directory of this machine, which only a plan can say.
        given: The fields of `Limits` and `Retry`, and the transport, that were given; a plan's do not replace them.
    """

    ssh: SSHOptions
    limits: Limits
    retry: Retry = field(default_factory=Retry)
    transport: TransportChoice = TransportChoice.AUTO
    rcp_command: str | None = None
    local_user: str | None = None
    is_local: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)

    def for_job(self, job: PeerJob) -> Access:
        """Return how a peer of a plan is reached: as the plan says, except for the options that were given.

        Raises:
            ConfigurationError: If a secret cannot be read.
        """
        names = [item.name for item in dataclasses.fields(SSHOptions)]
        given = {name: value for name in names if (value := getattr(self.ssh, name)) is not None}
        of_job = TransportChoice.AUTO if job.is_local else TransportChoice(job.transport)
        transport = self.given.get("transport", of_job)
        return dataclasses.replace(
            self,
            ssh=dataclasses.replace(job.ssh, **{**job.read_secrets(), **given}),
            limits=_replace_given(job.limits, self.given),
            retry=_replace_given(job.retry, self.given),
            transport=transport,
            rcp_command=self.rcp_command or (job.rcp_command if transport is TransportChoice.RCP else None),
            local_user=self.local_user or job.local_user,
            is_local=job.is_local,
        )

    @property
    def is_guarded(self) -> bool:
        """Whether peers are behind a forced command that accepts only CedarBackup2's commands."""
        return self.transport is TransportChoice.GUARDED

    @property
    def _transport_name(self) -> TransportName:
        return "scp" if self.is_guarded else cast(TransportName, self.transport.value)

    def ssh_for(self, spec: PeerSpec) -> SSHOptions:
        """Return the options for *spec*, whose own port counts first."""
        return self.ssh if spec.port is None else dataclasses.replace(self.ssh, port=spec.port)

    def peer(
        self,
        spec: PeerSpec,
        *,
        stage: StageOptions | None = None,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> RemotePeer | LocalPeer:
        """Return the peer that *spec* names. Nothing is connected.

        Raises:
            ValueError: If *spec* or an option has an invalid value.
        """
        if self.is_local:
            return LocalPeer(str(spec), spec.directory or "", stage=stage, limits=self.limits)
        return RemotePeer(
            spec.name,
            spec.directory,
            tempfile.gettempdir(),
            spec.user,
            rcpCommand=self.rcp_command,
            localUser=self.local_user,
            ssh=self.ssh_for(spec),
            transport=self._transport_name,
            guarded=self.is_guarded,
            limits=self.limits,
            retry=self.retry,
            stage=stage,
            on_progress=on_progress,
        )

    @contextlib.contextmanager
    def connect(self, spec: PeerSpec) -> Iterator[Transport]:
        """Yield the transport to *spec*; a signal cancels its operations. It connects when it is first used."""
        watchdog = Watchdog(self.limits, peer=spec.name)
        with (
            contextlib.closing(watchdog),
            self.transport_to(spec, watchdog) as transport,
            cancel_on_signal(watchdog.cancel),
        ):
            yield transport

    @contextlib.contextmanager
    def transport_to(self, spec: PeerSpec, watchdog: Watchdog) -> Iterator[Transport]:
        """Yield the transport to *spec*, in any thread; *watchdog* cancels its operations."""
        with with_peer_name(str(spec) if spec.label else spec.name):
            if self.is_local:
                yield LocalTransport(watchdog, include_hidden=True, follow_symlinks=False)
                return
            stack = build_isolated_transport(
                find_local_user(self.local_user),
                self.transport_options(spec),
                isolated=False,
                retry=self.retry,
                watchdog=watchdog,
            )
            with stack as transport:
                yield transport

    def transport_options(self, spec: PeerSpec) -> TransportOptions:
        """Return the options of the transport to *spec*."""
        return TransportOptions(
            name=spec.host,
            user=spec.user or "",
            ssh=self.ssh_for(spec),
            transport=self._transport_name,
            rcp_command=self.rcp_command,
            guarded=self.is_guarded,
            working_directory=tempfile.gettempdir(),
        )


def _replace_given(values: T, given: Mapping[str, Any]) -> T:
    """Return *values* with those fields replaced that *given* has."""
    names = {item.name for item in dataclasses.fields(values)}
    return dataclasses.replace(values, **{name: value for name, value in given.items() if name in names})
