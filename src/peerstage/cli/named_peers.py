"""Peers as they are named on the command line: USER@HOST:DIR, a host, or the name of a peer in the plan.

A name in the plan stands for that peer with all its options; connection options on the command line override them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass

from peerstage.cli.access import Access
from peerstage.cli.arguments import PeerSpec
from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.fleet.plan_file import DEFAULT_PLAN, read_plan
from peerstage.peer.attributes import strip_brackets
from peerstage.printable import escape
from peerstage.stage_options import StageOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPeer:
    """A peer, and how it is reached.

    Attributes:
        spec: The peer.
        access: How it is reached.
        job: The peer in the plan; None if it was named in another way.
        plan: The plan; None if it was named in another way.
    """

    spec: PeerSpec
    access: Access
    job: PeerJob | None = None
    plan: FleetPlan | None = None

    def __str__(self) -> str:
        return self.spec.location

    def stage_options(self, given: StageOptions) -> StageOptions:
        """Return what is wanted of a stage: what the plan says, except where *given* differs from its defaults."""
        if self.job is None or self.plan is None:
            return given
        default = StageOptions()
        names = [field.name for field in dataclasses.fields(StageOptions)]
        changes = {name: value for name in names if (value := getattr(given, name)) != getattr(default, name)}
        if self.job.stage.bwlimit is None and self.job.can_limit_bandwidth:
            changes.setdefault("bwlimit", self.plan.bwlimit)
        return dataclasses.replace(self.job.stage, **changes)


class PlanNames:
    """The names of the peers of a plan, which is read when it is first needed.

    Args:
        path: The file of the plan; None for the default one, if there is one that this user may read.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path or (DEFAULT_PLAN if os.access(DEFAULT_PLAN, os.R_OK) else None)
        self._plan: FleetPlan | None = None

    def find(self, text: str) -> tuple[FleetPlan, PeerJob] | None:
        """Return the plan and its peer of the name *text*; None if there is none.

        Raises:
            PlanError: If the plan is wrong.
            StageError: If it cannot be read.
        """
        plan = None if {"@", "/"} & set(text) else self.read()  # no name has these, and USER@HOST:DIR has both
        job = None if plan is None else plan.peer(text)
        return None if plan is None or job is None else (plan, job)

    def read(self) -> FleetPlan | None:
        """Return the plan; None if there is no default one."""
        if self._plan is None and self.path is not None:
            self._plan = read_plan(self.path)
        return self._plan

    def resolve(self, text: str, parse: Callable[[str], PeerSpec], access: Access) -> NamedPeer:
        """Return the peer that *text* names.

        Args:
            text: The argument.
            parse: Parses an argument that is no name in the plan, or raises `ValueError`.
            access: How the command line says that peers are reached.

        Raises:
            ValueError: If *text* names no peer.
            PlanError: If the plan is wrong.
            StageError: If the plan, or a secret that it refers to, cannot be read.
        """
        found = self.find(text)
        if found is None:
            try:
                return NamedPeer(spec=parse(text), access=access)
            except ValueError as exc:
                if {"@", "/", ":"} & set(text):
                    raise
                raise ValueError(f"{str(exc).rstrip('.')}; {self._describe_missing()}") from None
        plan, job = found
        host = strip_brackets(job.host or job.name)
        spec = PeerSpec(job.user, host, directory=job.collect_dir, label=job.name)
        return NamedPeer(spec=spec, access=access.for_job(job), job=job, plan=plan)

    def _describe_missing(self) -> str:
        if self.path is None:
            return f"nor is there a plan {escape(DEFAULT_PLAN)} with a peer of this name."
        return f"nor has the plan {escape(self.path)} a peer of this name."


def require_ssh(peer: NamedPeer, verb: str) -> None:
    """Raise `ValueError` if *peer* is a directory of this machine, on which *verb* has nothing to do."""
    if peer.access.is_local:
        raise ValueError(f"{peer} is a directory of this machine: {verb} has nothing to do there. Use check.")
