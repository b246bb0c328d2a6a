"""Find the directory of a peer's latest night."""

from __future__ import annotations

import os

from peerstage.errors import TargetError
from peerstage.fleet.run_records import RunRecords
from peerstage.fleet.runs_directory import RunsDirectory
from peerstage.reasons import Reason


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
