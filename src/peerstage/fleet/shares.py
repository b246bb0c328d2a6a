"""Shares of what all peers of a run have together: the bandwidth, and the memory for bytes in flight."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.records import KIB, MIB

#: Bytes in flight over all peers. They take about twice as much memory.
_MAX_IN_FLIGHT = 64 * MIB
_MIN_IN_FLIGHT = 64 * KIB
#: A peer's share of the bandwidth is at least this multiple of its minimum rate: peers do not share it evenly.
_MIN_SHARE = 2


class Shares(NamedTuple):
    """What each peer may use.

    Attributes:
        parallel: Peers staged at a time.
        bwlimit: Bytes per second for each of them, where they cannot share one limit; None for no limit.
        in_flight: Bytes in flight for each of them.
    """

    parallel: int
    bwlimit: int | None
    in_flight: int


def share_out(plan: FleetPlan, jobs: Collection[PeerJob]) -> Shares:
    """Return the shares of a run of *jobs*.

    Fewer peers than `FleetPlan.parallel` are staged at a time if the share of the bandwidth would otherwise fall below
    twice the `Limits.min_rate` of any of them: one that gets less would be given up as too slow.
    """
    parallel = max(1, min(plan.parallel, len(jobs)))
    bwlimit = None
    if plan.bwlimit is not None:
        min_rate = max((job.limits.min_rate for job in jobs), default=1)
        parallel = max(1, min(parallel, plan.bwlimit // (_MIN_SHARE * min_rate)))
        bwlimit = plan.bwlimit // parallel
    return Shares(parallel, bwlimit, max(_MIN_IN_FLIGHT, _MAX_IN_FLIGHT // parallel))
