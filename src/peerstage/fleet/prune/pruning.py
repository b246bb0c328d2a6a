"""`prune`: remove the daily directories that are older than a plan's `keep_days`.

A daily directory is removed whole or not at all: if the records say that a run made it, everything in it was staged, no
peer needs it, and ``latest`` does not point to it. While there is a daily directory of a day in the future, nothing is
removed, because the clock is or was wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable

from peerstage.errors import StageError
from peerstage.fleet.plan import FleetPlan
from peerstage.fleet.pool.pool_days import remove_if_empty
from peerstage.fleet.pool.run_lock import RunLock
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.fleet.prune.day_contents import Foreign
from peerstage.fleet.prune.day_removal import Removal, move_aside, remove_aside
from peerstage.fleet.prune.decision import Decision, Stopped, decide, time_limit
from peerstage.fleet.prune.report import FailedDay, KeptDay, Kind, PruneReport, RemovedDay
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
    max_seconds: float | None = None,
) -> PruneReport:
    """Do what `prune` does, for a run that holds the pool's lock and has written its record.

    Args:
        plan: The plan.
        runs: The pool's runs directory.
        dry_run: Whether nothing is removed.
        is_cancelled: Called again and again; once it returns True, the prune ends.
        now: The time, in seconds since the epoch; None for the present.
        max_seconds: Seconds after which it ends; None for an hour.

    Raises:
        ValueError, TargetError: As for `prune`.
    """
    keep_days = _require_keep_days(plan)
    check = time_limit(_MAX_SECONDS if max_seconds is None else max_seconds, is_cancelled)
    failed: list[FailedDay] = []
    with (
        runs.errors("The staging pool cannot be pruned"),
        closing(open_directory(plan.staging, follow=True)) as pool_fd,
    ):
        decision = decide(plan, keep_days, runs, pool_fd, time.time() if now is None else now, check)
        removed = decision.remove
        if not dry_run:
            removed, failed = _execute(decision, plan.staging, runs, pool_fd, check)
    return PruneReport(
        staging=plan.staging,
        keep_days=keep_days,
        dry_run=dry_run,
        removed=tuple(removed),
        kept=tuple(sorted(decision.kept, key=lambda kept: kept.day)),
        failed=tuple(failed),
        is_unfinished=decision.is_unfinished,
    )


def prune_after_run(
    plan: FleetPlan, runs: RunsDirectory, is_cancelled: Callable[[], bool], now: float
) -> StageError | None:
    """Prune at the end of a run, and log what happens; return the error that needs attention, or None.

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
        return prune_pool(plan, runs, dry_run=True, now=now, max_seconds=_MAX_SECONDS_TO_ESTIMATE).bytes
    except StageError:
        return 0


def _execute(
    decision: Decision, staging: str, runs: RunsDirectory, pool_fd: int, check: Callable[[], object]
) -> tuple[list[RemovedDay], list[FailedDay]]:
    """Remove what was decided; return the days that were removed, and those that could not be."""
    removed: list[RemovedDay] = []
    failed: list[FailedDay] = []
    try:
        for found in decision.remove:
            check()
            day = found.day
            removal = Removal(os.path.join(staging, day))
            try:
                if not found.is_rest:
                    move_aside(pool_fd, day, runs, decision.peers[day], check)
                removal = remove_aside(day, runs, check)
            except Foreign as exc:
                decision.kept.append(KeptDay(day=day, kind=Kind.FOREIGN, why=str(exc)))
                continue
            except OSError as exc:
                removal.fail(day, exc)
            if removal.failure is None:
                removed.append(dataclasses.replace(found, files=removal.files, bytes=removal.bytes))
            else:
                failed.append(_describe_failure(day, removal))
            remove_if_empty(pool_fd, day[:-3])
        for path in sorted(decision.empty, reverse=True):
            remove_if_empty(pool_fd, path)
    except Stopped:
        decision.is_unfinished = True
    return removed, failed


def _describe_failure(day: str, removal: Removal) -> FailedDay:
    more = f" ({removal.failures - 1} more entries could not be removed)" if removal.failures > 1 else ""
    return FailedDay(
        day=day,
        path=removal.path,
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
