"""`prune`: remove the daily directories that are older than a plan's `keep_days`.

A daily directory is removed whole or not at all: if the records say that a run made it, everything in it was staged, no
peer needs it, and ``latest`` does not point to it. While there is a daily directory of a day in the future, nothing is
removed, because the clock is or was wrong.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable

from peerstage.errors import StageError
from peerstage.fleet.day_contents import Foreign
from peerstage.fleet.day_removal import Removal, move_aside, name_aside, remove_aside
from peerstage.fleet.plan import FleetPlan
from peerstage.fleet.pool_days import remove_if_empty
from peerstage.fleet.prune_decision import Decision, Stopped, TimeLimit, decide
from peerstage.fleet.prune_report import FailedDay, KeptDay, Kind, PruneReport, RemovedDay
from peerstage.fleet.run_lock import RunLock
from peerstage.fleet.runs_directory import RunsDirectory
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.system_errors import target_reason_of
from peerstage.target.file_descriptors import closing, open_directory

log = logging.getLogger("peerstage.fleet")

#: Seconds after which a prune ends, so that the next run need not wait for it; the next prune continues.
_MAX_SECONDS = 3600.0
#: Seconds that an estimate may take.
_MAX_SECONDS_TO_ESTIMATE = 60.0


def prune(plan: FleetPlan, *, dry_run: bool = False, is_cancelled: Callable[[], bool] = lambda: False) -> PruneReport:
    """Remove the old daily directories of the plan's staging pool, the oldest first.

    A dry run writes nothing and takes no lock. It lists what a prune would then remove.

    Args:
        plan: The plan.
        dry_run: Whether nothing is removed.
        is_cancelled: Called again and again; once it returns True, the prune ends.

    Raises:
        ValueError: If the plan has no `keep_days`.
        RunLocked: If a run or another prune holds the pool's lock.
        TargetError: If there is a daily directory of a day in the future, or the pool or its records cannot be read.
            Days that cannot be removed do not raise: they are in the report.
    """
    keep_days = _require_keep_days(plan)
    with contextlib.ExitStack() as stack:
        runs = RunsDirectory.find(plan.staging)
        if runs is None:
            return PruneReport(staging=plan.staging, keep_days=keep_days, dry_run=dry_run)
        stack.enter_context(runs)
        if not dry_run:
            stack.enter_context(RunLock(runs, "prune"))
        return prune_pool(plan, runs, dry_run=dry_run, is_cancelled=is_cancelled)


def prune_pool(
    plan: FleetPlan,
    runs: RunsDirectory,
    *,
    dry_run: bool = False,
    is_cancelled: Callable[[], bool] = lambda: False,
    now: float | None = None,
) -> PruneReport:
    """Do what `prune` does, for a run that holds the pool's lock and has written its record.

    Args:
        plan: The plan.
        runs: The pool's runs directory.
        dry_run: Whether nothing is removed.
        is_cancelled: Called again and again; once it returns True, the prune ends.
        now: The time, in seconds since the epoch; None for the present.

    Raises:
        ValueError, TargetError: As for `prune`.
    """
    return _Prune(plan, runs, TimeLimit(_MAX_SECONDS, is_cancelled), now).run(dry_run=dry_run)


def prune_after_run(
    plan: FleetPlan, runs: RunsDirectory, is_cancelled: Callable[[], bool], now: float
) -> StageError | None:
    """Prune at the end of a run, and log what happens; return what somebody has to look at, None for nothing.

    Args:
        plan: The plan. Without `keep_days`, nothing happens.
        runs: The pool's runs directory. The caller holds the pool's lock, and has written the record of the run.
        is_cancelled: Called again and again; once it returns True, the prune ends.
        now: The time, in seconds since the epoch.
    """
    if plan.keep_days is None:
        return None
    try:
        report = prune_pool(plan, runs, is_cancelled=is_cancelled, now=now)
    except StageError as exc:
        return exc
    for removed in report.removed:
        path = escape(os.path.join(plan.staging, removed.day))
        log.info("Removed %s: %d files, %d bytes freed.", path, removed.files, removed.bytes)
    for kept in report.kept:
        level = logging.WARNING if kept.kind in (Kind.FOREIGN, Kind.UNREADABLE) else logging.INFO
        log.log(level, "%s is kept: %s.", escape(os.path.join(plan.staging, kept.day)), kept.why)
    return report.failure()


def reclaimable_bytes(plan: FleetPlan, runs: RunsDirectory, now: float | None = None) -> int:
    """Return how many bytes a prune would free, at least; 0 if the plan has no `keep_days`, or a prune would fail."""
    if plan.keep_days is None:
        return 0
    try:
        return _Prune(plan, runs, TimeLimit(_MAX_SECONDS_TO_ESTIMATE), now).run(dry_run=True).bytes
    except StageError:
        return 0


class _Prune:
    """One prune of a pool."""

    def __init__(self, plan: FleetPlan, runs: RunsDirectory, limit: TimeLimit, now: float | None) -> None:
        self._plan = plan
        self._keep_days = _require_keep_days(plan)
        self._runs = runs
        self._check = limit.check
        self._now = time.time() if now is None else now
        self._removed: list[RemovedDay] = []
        self._kept: list[KeptDay] = []
        self._failed: list[FailedDay] = []

    def run(self, *, dry_run: bool) -> PruneReport:
        with (
            self._runs.errors("The staging pool cannot be pruned"),
            closing(open_directory(self._plan.staging, follow=True)) as pool_fd,
        ):
            decision = decide(self._plan, self._keep_days, self._runs, pool_fd, self._now, self._check)
            self._kept += decision.kept
            if dry_run:
                self._removed += decision.remove
            else:
                self._execute(decision, pool_fd)
        return PruneReport(
            staging=self._plan.staging,
            keep_days=self._keep_days,
            dry_run=dry_run,
            removed=tuple(self._removed),
            kept=tuple(sorted(self._kept, key=lambda kept: kept.day)),
            failed=tuple(self._failed),
            is_unfinished=decision.is_unfinished,
        )

    def _execute(self, decision: Decision, pool_fd: int) -> None:
        try:
            for day in decision.remove:
                self._check()
                if day.is_rest or self._move_aside(day.day, decision, pool_fd):
                    self._remove_aside(day)
                remove_if_empty(pool_fd, day.day[:-3])
            for path in sorted(decision.empty, reverse=True):
                remove_if_empty(pool_fd, path)
        except Stopped:
            decision.is_unfinished = True

    def _move_aside(self, day: str, decision: Decision, pool_fd: int) -> bool:
        """Move a day into the runs directory; return whether it is there."""
        try:
            move_aside(pool_fd, day, self._runs, decision.peers[day], self._check)
        except Foreign as exc:
            self._kept.append(KeptDay(day=day, kind=Kind.FOREIGN, why=str(exc)))
        except OSError as exc:
            removal = Removal()
            removal.fail(day, exc)
            self._failed.append(_failed(day, os.path.join(self._plan.staging, day), removal))
        else:
            return True
        return False

    def _remove_aside(self, day: RemovedDay) -> None:
        removal = remove_aside(day.day, self._runs, self._check)
        if removal.failure is None:
            self._removed.append(RemovedDay(day=day.day, files=removal.files, bytes=removal.bytes, is_rest=day.is_rest))
        else:
            self._failed.append(_failed(day.day, os.path.join(self._runs.path, name_aside(day.day)), removal))


def _failed(day: str, path: str, removal: Removal) -> FailedDay:
    more = f" ({removal.failures - 1} more entries could not be removed)" if removal.failures > 1 else ""
    return FailedDay(
        day=day,
        path=path,
        why=f"{removal.failure}{more}",
        reason=Reason.TARGET_INTERFERED if removal.error is None else target_reason_of(removal.error),
        files=removal.files,
        bytes=removal.bytes,
    )


def _require_keep_days(plan: FleetPlan) -> int:
    if plan.keep_days is not None:
        return plan.keep_days
    advice = f"Add keep_days = 14 to {escape(plan.source)}." if plan.source else "Give FleetPlan(keep_days=14)."
    raise ValueError(f"The plan has no keep_days, so every daily directory is kept. {advice}")
