"""What earlier runs say about peers: which were staged today already, and when each was last staged, or complete."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice

from peerstage.errors import TargetError
from peerstage.fleet.pool.pool_days import open_day
from peerstage.fleet.pool.run_records import RunRecords
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.fleet.results import PeerResult, Verdict
from peerstage.reasons import Reason
from peerstage.system_errors import target_errors
from peerstage.target.file_descriptors import closing, open_directory

#: Runs to look back at.
_MAX_RUNS = 100
#: Reasons of peers that do not answer, or of their names.
_UNREACHABLE = (
    Reason.NAME_NOT_RESOLVED,
    Reason.RESOLVER_TIMEOUT,
    Reason.CONNECTION_REFUSED,
    Reason.CONNECT_TIMEOUT,
    Reason.HOST_UNREACHABLE,
    Reason.CONNECT_FAILED,
    Reason.HOP_CANNOT_CONNECT,
    Reason.BANNER_TIMEOUT,
)
#: Verdicts after which files of the peer may have been replaced.
_PUBLISHING = (Verdict.STAGED, Verdict.INCOMPLETE, Verdict.FAILED)


@dataclass
class History:
    """What earlier runs say.

    Attributes:
        staged: The results of peers that were staged on the same day, and whose directories still exist.
        nights: The day of each linking peer's last complete night before, if its directory still exists.
        unreachable: The peers that could not be reached when they were last asked, on the same day or by the last run
            before it.
    """

    staged: dict[str, PeerResult] = field(default_factory=dict)
    nights: dict[str, str] = field(default_factory=dict)
    unreachable: set[str] = field(default_factory=set)


def read_history(
    records: RunRecords, staging: str, day: str, peers: Collection[str], linking: Collection[str] = ()
) -> History:
    """Return what the last hundred runs say about *peers*.

    Of several results of one day, the last one that may have published files counts. One that failed may have: if it
    was killed or given up while it renamed them, no report tells.

    Args:
        records: The records of the pool.
        staging: The staging pool.
        day: The daily directory of the new run.
        peers: The names of its peers.
        linking: The names of those whose files are linked to an earlier night.

    Raises:
        TargetError: If the records cannot be read.
    """
    history = History()
    undecided = set(peers)  # their last result of the day is unknown
    asked: set[str] = set()  # it is known what became of them when they were last asked
    unlinked = set(linking)  # their last complete night is unknown
    with (
        target_errors("The staging pool cannot be read", staging),
        closing(open_directory(staging, follow=True)) as pool_fd,
    ):
        reports = records.newest_first(wants=lambda peer: peer in undecided or peer in unlinked)
        for report in islice(reports, _MAX_RUNS):
            for result in report.results:
                peer = result.peer
                is_staged = result.verdict is Verdict.STAGED
                if peer in undecided and peer not in asked and result.attempts:
                    asked.add(peer)
                    if result.verdict is Verdict.FAILED and result.reason in _UNREACHABLE:
                        history.unreachable.add(peer)
                if report.day != day:
                    if is_staged and peer in unlinked and _exists(pool_fd, report.day, peer):
                        unlinked.remove(peer)
                        history.nights[peer] = report.day
                elif peer in undecided and (result.verdict in _PUBLISHING or result.report is not None):
                    undecided.remove(peer)
                    if is_staged and _exists(pool_fd, day, peer):
                        run = result.earlier_run or report.run
                        history.staged[peer] = dataclasses.replace(result, earlier_run=run)
            if report.day < day:
                undecided.clear()
            if not undecided and not unlinked:
                break
    return history


def _exists(pool_fd: int, day: str, peer: str) -> bool:
    """Return whether there is a directory of *peer* in the daily directory *day*; no symlink is followed."""
    with contextlib.suppress(OSError), open_day(pool_fd, day) as day_fd:
        return stat.S_ISDIR(os.stat(peer, dir_fd=day_fd, follow_symlinks=False).st_mode)
    return False


def find_latest_night(staging: str, peer: str) -> str:
    """Return the directory into which a peer was last staged, wholly or in part.

    Args:
        staging: The staging pool.
        peer: The peer's name in the plan.

    Raises:
        TargetError: If no run has staged the peer, its directories are gone, or the records cannot be read.
    """
    runs = RunsDirectory.find(staging)
    if runs is not None:
        with runs:
            for report in RunRecords(runs).newest_first():
                is_staged = any(result.peer == peer and result.report is not None for result in report.results)
                path = os.path.join(staging, report.day, peer)
                if is_staged and os.path.isdir(path):
                    return path
    message = "No run has staged this peer, or its directories are gone. Name a directory instead."
    raise TargetError(message, peer=peer, path=staging, reason=Reason.TARGET_MISSING)
