"""A run prunes at its end, and says what a prune would free if there is too little space to begin."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from peerstage import FleetPlan, FleetReport, Reason, stage_fleet
from peerstage.errors import ConnectError
from peerstage.exit_codes import ExitCode
from peerstage.fleet.pool.run_records import RunRecords
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.fleet.prune import prune_pool
from peerstage.fleet.runner import FleetRun
from peerstage.testing import memory_job
from support.fleet import FrozenClock
from support.quick import quick_directory
from support.staged_pool import StagedPool, noon

READY = {"cback.collect": b"", "dump": b"content"}
OLD, YESTERDAY, TODAY = "2026/11/01", "2026/11/23", "2026/11/24"


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[StagedPool]:
    """A pool with two days, and a run's clock that stands at noon of a third."""
    monkeypatch.setattr("peerstage.fleet.runner.Clock", lambda: FrozenClock(noon(TODAY)))
    with quick_directory() as path:
        pool = StagedPool(path, "db1")
        for day in (OLD, YESTERDAY):
            pool.run(day, {"db1": {"dump": day.encode() * 1000}})
        yield pool


def run(pool: StagedPool, *, keep_days: int | None = 2, is_dead: bool = False, **options: Any) -> FleetReport:
    error = ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED) if is_dead else None
    job = memory_job("db1", READY, error=error)
    return stage_fleet(FleetPlan(staging=str(pool.path), peers=(job,), keep_days=keep_days, **options))


def test_a_run_removes_old_days_at_its_end_and_counts_itself(pool: StagedPool) -> None:
    report = run(pool)
    assert (report.exit, report.error, report.day) == (ExitCode.DONE, None, TODAY)
    assert pool.days() == [YESTERDAY, TODAY]


def test_a_run_without_keep_days_removes_nothing(pool: StagedPool) -> None:
    assert run(pool, keep_days=None).exit == ExitCode.DONE
    assert pool.days() == [OLD, YESTERDAY, TODAY]


def test_a_run_that_staged_nothing_removes_nothing(pool: StagedPool) -> None:
    assert run(pool, keep_days=1, is_dead=True).exit == ExitCode.UNREACHED
    assert pool.days() == [OLD, YESTERDAY, TODAY]


def test_a_run_with_a_dead_peer_removes_old_days_all_the_same(pool: StagedPool) -> None:
    dead = memory_job("db2", error=ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED))
    jobs = (memory_job("db1", READY), dead)
    report = stage_fleet(FleetPlan(staging=str(pool.path), peers=jobs, keep_days=2))
    assert report.exit == ExitCode.UNREACHED
    assert pool.days() == [YESTERDAY, TODAY]


def test_a_cancelled_run_removes_nothing(pool: StagedPool) -> None:
    plan = FleetPlan(staging=str(pool.path), peers=(memory_job("db1", READY),), keep_days=1)
    fleet_run = FleetRun(plan)
    fleet_run.cancel()
    assert fleet_run.run().ended_by == "signal"
    assert {OLD, YESTERDAY} <= set(pool.days())


def test_a_run_that_is_cancelled_after_its_peer_was_staged_removes_nothing(pool: StagedPool) -> None:
    plan = FleetPlan(staging=str(pool.path), peers=(memory_job("db1", READY),), keep_days=1)
    fleet_run = FleetRun(plan, on_event=lambda event: event.name == "peer-finished" and fleet_run.cancel())
    report = fleet_run.run()
    assert (report.ended_by, report.counts) == ("signal", {"staged": 1})
    assert pool.days() == [OLD, YESTERDAY, TODAY]


def test_a_day_that_cannot_be_removed_is_an_error_of_the_run_and_in_its_record(
    pool: StagedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("peerstage.fleet.prune.pruning.move_aside", refuse)
    report = run(pool)
    assert (report.exit, report.reason) == (ExitCode.LOCAL, Reason.TARGET_NOT_WRITABLE)
    assert f"{OLD} could not be removed: {OLD}: Operation not permitted." in (report.error or "")
    assert [str(result.verdict) for result in report.results] == ["staged"]
    with RunsDirectory(str(pool.path)) as runs:
        assert next(RunRecords(runs).newest_first()) == report


def test_something_foreign_is_logged_and_no_error(pool: StagedPool, caplog: pytest.LogCaptureFixture) -> None:
    (pool.path / OLD / "notes").touch()
    with caplog.at_level(logging.INFO, "peerstage.fleet"):
        assert run(pool).exit == ExitCode.DONE
    assert f"{pool.path / OLD} is kept: notes was not made by a run." in caplog.text
    (pool.path / OLD / "notes").unlink()
    with caplog.at_level(logging.INFO, "peerstage.fleet"):
        run(pool)
    assert f"Removed {pool.path / OLD}: 5 files, " in caplog.text


def test_too_little_space_names_what_a_prune_would_free(pool: StagedPool) -> None:
    pool.run(TODAY, {"db1": {"dump": b"x"}})
    with RunsDirectory(str(pool.path)) as runs:
        plan = FleetPlan(staging=str(pool.path), peers=(memory_job("db1"),), keep_days=2)
        bytes_freed = prune_pool(plan, runs, dry_run=True, now=noon(TODAY)).bytes
    report = run(pool, min_free=1 << 60)
    assert report.reason is Reason.NO_SPACE
    assert f"`peerstage prune` would free {bytes_freed} bytes. Or lower min_free." in (report.error or "")
    assert len(pool.days()) == 3
    assert "Free some space. Or lower min_free." in (run(pool, keep_days=None, min_free=1 << 60).error or "")
