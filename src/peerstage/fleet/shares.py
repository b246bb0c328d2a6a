"""Shares of what all peers of a run have together: the bandwidth, and the memory for bytes in flight."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple

from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.records import KIB, MIB

log = logging.getLogger("peerstage.fleet")

#: Bytes in flight over all peers. They take about twice as much memory.
_MAX_IN_FLIGHT = 64 * MIB
_MIN_IN_FLIGHT = 64 * KIB
#: Files that a process has open anyway, and those for each peer: its connection, directories and files, and the
#: connections of peers that do not answer.
_OPEN_FILES = 64
_OPEN_FILES_PER_PEER = 30
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


def share_out(plan: FleetPlan, jobs: Collection[PeerJob], *, open_files: int | None = None) -> Shares:
    """Return the shares of a run of *jobs*.

    Fewer peers than `FleetPlan.parallel` are staged at a time if the process may not open enough files, or if the share
    of the bandwidth would fall below twice the `Limits.min_rate` of any of them: one that gets less would be given up
    as too slow.

    Args:
        plan: The plan.
        jobs: The peers to be asked.
        open_files: How many files the process may open in which they are all staged; None for any number.
    """
    parallel = max(1, min(plan.parallel, len(jobs)))
    affordable = parallel if open_files is None else max(1, (open_files - _OPEN_FILES) // _OPEN_FILES_PER_PEER)
    if affordable < parallel:
        log.warning("Only %d peers at a time are staged with %d open files: raise ulimit -n.", affordable, open_files)
        parallel = affordable
    bwlimit = None
    if plan.bwlimit is not None:
        min_rate = max((job.limits.min_rate for job in jobs), default=1)
        parallel = max(1, min(parallel, plan.bwlimit // (_MIN_SHARE * min_rate)))
        bwlimit = plan.bwlimit // parallel
    return Shares(parallel, bwlimit, max(_MIN_IN_FLIGHT, _MAX_IN_FLIGHT // parallel))
