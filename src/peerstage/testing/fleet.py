"""Jobs of fleets in memory, for tests of scripts that run a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peerstage.errors import StageError
from peerstage.fleet.plan import PeerJob
from peerstage.peer.base import BackupPeer
from peerstage.records import Limits
from peerstage.stage_options import StageOptions
from peerstage.testing.peers import Files, MemoryHost, MemoryPeer


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryJob(PeerJob):
    """A `PeerJob` whose peer is in memory.

    In other processes, the host is a copy: a worker's marks do not appear on the original.

    Attributes:
        memory_host: The host that it reaches.
    """

    memory_host: MemoryHost = field(default_factory=lambda: MemoryHost({}))

    def build_peer(
        self, *, stage: StageOptions | None = None, limits: Limits | None = None, reads_secrets: bool = False
    ) -> BackupPeer:
        """Return the peer; see `PeerJob.build_peer`."""
        if reads_secrets:
            self.read_secrets()
        return MemoryPeer(
            self.memory_host,
            self.host or self.name,
            self.collect_dir,
            remoteUser=self.user,
            ignoreFailureMode=self.ignore_failures,
            ssh=self.ssh,
            stage=stage or self.stage,
            retry=self.retry,
            limits=limits or self.limits,
        )

    @property
    def files(self) -> dict[bytes, Any]:
        """The entries of its collect directory by name, with the stage indicator once it is marked."""
        return self.memory_host.directories[self.collect_dir.encode()]


def memory_job(
    name: str,
    files: Files = {},  # noqa: B006 - it is copied
    *,
    error: StageError | None = None,
    lose_after: int | None = None,
    faulty_connections: int | None = None,
    writable: bool = True,
    **options: Any,
) -> MemoryJob:
    """Return a job for `FleetPlan` whose collect directory is in memory::

        plan = FleetPlan(staging="/srv/staging", peers=(memory_job("db1", {"cback.collect": b"", "dump": b"content"}),))
        assert stage_fleet(plan).counts == {"staged": 1}

    Args:
        name: The peer's name in the plan.
        files: The entries of its collect directory by name; without ``cback.collect``, the peer is not ready.
        error: As for `MemoryHost`.
        lose_after: As for `MemoryHost`.
        faulty_connections: As for `MemoryHost`.
        writable: As for `MemoryHost`.
        options: Keyword arguments of `PeerJob`, such as ``ignore_failures``.
    """
    directory = options.setdefault("collect_dir", "/collect")
    host = MemoryHost(
        {directory: files},
        error=error,
        lose_after=lose_after,
        faulty_connections=faulty_connections,
        writable=writable,
    )
    return MemoryJob(name=name, memory_host=host, **{"user": "backup", **options})
