"""Runs of fleets in memory: verdicts, the tree, the record, and what happens to the peers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peerstage import FleetPlan, FleetReport, PeerJob, Reason, Verdict, stage_fleet
from peerstage.errors import ConnectError
from peerstage.fleet.events import Event
from peerstage.fleet.run_records import RunRecords
from peerstage.fleet.runs_directory import RunsDirectory
from peerstage.testing import MemoryJob, memory_job
from support.quick import quick_directory

pytestmark = pytest.mark.usefixtures("leaves_nothing")

READY = {"cback.collect": b"", "dump": b"content"}


@pytest.fixture
def pool() -> Iterator[Path]:
    """An empty staging pool in memory."""
    with quick_directory() as path:
        yield path


def run(pool: Path, *jobs: PeerJob, **options: Any) -> FleetReport:
    """Run a plan of *jobs*."""
    run_options = {name: options.pop(name) for name in ("executor", "peers", "again", "on_event") if name in options}
    return stage_fleet(FleetPlan(staging=str(pool), peers=jobs, **options), **run_options)


def files_in(pool: Path) -> dict[str, bytes]:
    """Return the staged files of a pool, without manifests, by their paths below the daily directory."""
    found = {}
    for path in sorted(pool.glob("*/*/*/**/*")):
        if path.is_file() and not path.name.startswith("peerstage."):
            found["/".join(path.relative_to(pool).parts[3:])] = path.read_bytes()
    return found


def test_a_run_stages_and_marks_every_peer_that_is_ready(pool: Path) -> None:
    ready, waiting = memory_job("db1", READY), memory_job("db2", {"dump": b"half"})
    dead = memory_job("db3", error=ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED))
    report = run(pool, ready, waiting, dead)
    assert [(result.peer, result.verdict) for result in report.results] == [
        ("db1", Verdict.STAGED),
        ("db2", Verdict.NOT_READY),
        ("db3", Verdict.FAILED),
    ]
    assert report.exit == 4
    assert files_in(pool) == {"db1/cback.collect": b"", "db1/dump": b"content", "cback.stage": b""}
    assert b"cback.stage" in ready.files
    assert b"cback.stage" not in waiting.files
    assert (pool / "latest").resolve() == Path(report.target)


def test_the_record_in_the_pool_is_the_report(pool: Path) -> None:
    report = run(pool, memory_job("db1", READY), memory_job("db2"))
    with RunsDirectory(str(pool)) as runs:
        assert next(RunRecords(runs).newest_first()) == report


def test_events_tell_of_every_peer_once(pool: Path) -> None:
    events: list[Event] = []
    report = run(pool, memory_job("db1", READY), memory_job("db2"), on_event=events.append)
    names = [event.name for event in events]
    assert names[0] == "run-started"
    assert names[-1] == "run-finished"
    assert sorted(names[1:-1]) == ["peer-finished", "peer-finished", "peer-started", "peer-started"]
    assert {event.result.peer: event.result for event in events if event.name == "peer-finished"} == {  # type: ignore[attr-defined]
        result.peer: result for result in report.results
    }


def test_a_peer_that_was_staged_today_is_not_asked_again(pool: Path) -> None:
    job, late = memory_job("db1", READY), memory_job("db2")
    first = run(pool, job, late)
    late.memory_host.directories[b"/collect"] |= MemoryJob.files.fget(job)  # type: ignore[attr-defined]
    connections = job.memory_host.connection_count
    second = run(pool, job, late)
    assert second.counts == {"staged": 2}
    assert second.results[0].earlier_run == first.run
    assert job.memory_host.connection_count == connections
