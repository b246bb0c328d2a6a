"""Peers that are not ready are asked again until the end of the night, on a clock that only waits move."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerstage import FleetReport, PeerJob, Reason
from peerstage.errors import ConnectError
from peerstage.fleet.events import Event
from peerstage.testing import MemoryFile, memory_job
from support.fleet import (
    READY,
    FrozenClock,
    InlineThreads,
    ScriptedHost,
    files_in,
    make_run,
    results_of,
    run,
    scripted_job,
)

pytestmark = pytest.mark.usefixtures("leaves_nothing")

HOUR = 3600.0


def run_until(pool: Path, clock: FrozenClock, *jobs: PeerJob, seconds: float, **options: Any) -> FleetReport:
    """Run a plan whose end is *seconds* from now."""
    until = datetime.datetime.fromtimestamp(clock.time() + seconds).time()
    return make_run(pool, *jobs, until=until, clock=clock, executor=InlineThreads(), **options).run()


def ready_at(clock: FrozenClock, moment: float) -> Callable[[ScriptedHost], None]:
    """Let a host become ready at *moment*."""

    def look(host: ScriptedHost) -> None:
        if clock.time() >= moment:
            host.directories[b"/collect"][b"cback.collect"] = MemoryFile()

    return look


def test_a_peer_is_staged_soon_after_it_is_ready(pool: Path) -> None:
    clock = FrozenClock()
    start = clock.time()
    job = scripted_job("db1", ready_at(clock, start + HOUR), {"dump": b"content"})
    report = run_until(pool, clock, job, seconds=3 * HOUR)
    assert results_of(report) == {"db1": "staged"}
    assert HOUR <= report.results[0].seconds <= HOUR + 15 * 60
    assert report.results[0].attempts > 3
    assert report.results[0].started == start


def test_a_peer_that_never_is_ready_has_its_verdict_at_the_end(pool: Path) -> None:
    clock = FrozenClock()
    report = run_until(pool, clock, memory_job("db1"), memory_job("db2", READY), seconds=2 * HOUR)
    assert results_of(report) == {"db1": "not-ready: not-ready", "db2": "staged"}
    assert report.seconds == pytest.approx(2 * HOUR, abs=10)
    assert report.exit == 3


def test_a_peer_that_becomes_ready_just_before_the_end_is_staged(pool: Path) -> None:
    clock = FrozenClock()
    job = scripted_job("db1", ready_at(clock, clock.time() + 2 * HOUR - 1), {"dump": b"content"})
    assert results_of(run_until(pool, clock, job, seconds=2 * HOUR)) == {"db1": "staged"}


def test_a_stale_peer_is_asked_again_too(pool: Path) -> None:
    clock = FrozenClock()

    def collect_again(host: ScriptedHost) -> None:
        if host.connection_count == 3:
            host.directories[b"/collect"][b"cback.collect"] = MemoryFile(mtime=102)

    job = scripted_job("db1", collect_again)
    job.files.update({b"cback.collect": MemoryFile(mtime=100), b"cback.stage": MemoryFile(mtime=101)})
    report = run_until(pool, clock, job, seconds=2 * HOUR)
    assert (results_of(report), report.results[0].attempts) == ({"db1": "staged"}, 4)


def test_a_peer_that_failed_is_not_asked_again(pool: Path) -> None:
    clock = FrozenClock()
    job = memory_job("db1", error=ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED))
    report = run_until(pool, clock, job, seconds=2 * HOUR)
    assert (results_of(report), report.results[0].attempts) == ({"db1": "failed: connection-refused"}, 1)
    assert report.seconds < 60


def test_a_peer_that_fails_while_it_is_awaited_has_failed(pool: Path) -> None:
    clock = FrozenClock()

    def die(host: ScriptedHost) -> None:
        if host.connection_count == 2:
            raise ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED)

    report = run_until(pool, clock, scripted_job("db1", die, {}), seconds=2 * HOUR)
    assert results_of(report) == {"db1": "failed: connection-refused"}


def test_peers_that_are_awaited_keep_no_slot_and_no_connection(pool: Path) -> None:
    clock = FrozenClock()
    waiting = [memory_job(f"w{number}") for number in range(5)]
    late = scripted_job("late", ready_at(clock, clock.time() + 60), {"dump": b"x"})
    report = run_until(pool, clock, *waiting, late, memory_job("db1", READY), seconds=HOUR, parallel=1)
    assert report.counts == {"staged": 2, "not-ready": 5}


def test_a_run_that_lasts_beyond_midnight_stays_in_the_directory_of_its_first_day(
    pool: Path, time_zone: Callable[[str], None]
) -> None:
    time_zone("UTC0")
    clock = FrozenClock(datetime.datetime(2026, 11, 23, 23, 50).timestamp())
    job = scripted_job("db1", ready_at(clock, clock.time() + HOUR), {"dump": b"content"})
    report = run_until(pool, clock, job, seconds=3 * HOUR)
    assert report.day == "2026/11/23"
    assert set(files_in(pool)) == {"2026/11/23/db1/cback.collect", "2026/11/23/db1/dump", "2026/11/23/cback.stage"}
    assert clock.time() > datetime.datetime(2026, 11, 24).timestamp()


@pytest.mark.parametrize(
    ("start", "hours"), [("2026-03-08T01:00:00", 4), ("2026-11-01T00:30:00", 6.5)], ids=["spring", "autumn"]
)
def test_the_night_ends_by_the_clock_on_the_wall_although_clocks_change(
    pool: Path, time_zone: Callable[[str], None], start: str, hours: float
) -> None:
    time_zone("EST5EDT,M3.2.0,M11.1.0")
    clock = FrozenClock(datetime.datetime.fromisoformat(start).timestamp())
    run = make_run(pool, memory_job("db1"), until=datetime.time(6), clock=clock, executor=InlineThreads())
    assert run.run().seconds == pytest.approx(hours * HOUR, abs=10)
    assert datetime.datetime.fromtimestamp(clock.time()).hour == 6


def test_events_number_the_attempts(pool: Path) -> None:
    clock = FrozenClock()
    events: list[Event] = []
    job = scripted_job("db1", ready_at(clock, clock.time() + 100), {"dump": b"content"})
    run_until(pool, clock, job, seconds=HOUR, on_event=events.append)
    started = [event.to_dict() for event in events if event.name == "peer-started"]
    assert [event["attempt"] for event in started] == [1, 2, 3]


def test_events_tell_until_when_a_peer_is_asked_again(pool: Path) -> None:
    clock = FrozenClock()
    end = round(clock.time() + HOUR)
    events: list[Event] = []
    job = scripted_job("db1", ready_at(clock, clock.time() + 30), {"dump": b"content"})
    run_until(pool, clock, job, seconds=HOUR, on_event=events.append)
    assert [event.name for event in events[1:-1]] == ["peer-started", "peer-waiting", "peer-started", "peer-finished"]
    told = events[2].details()
    assert told == {"peer": "db1", "reason": "not-ready", "error": "There is no cback.collect.", "until": end}


def test_no_event_tells_of_waiting_without_an_end(pool: Path) -> None:
    events: list[Event] = []
    run(pool, memory_job("db1"), on_event=events.append)
    assert [event.name for event in events[1:-1]] == ["peer-started", "peer-finished"]


def test_a_cancelled_run_keeps_what_is_known_of_peers_that_were_not_ready(pool: Path) -> None:
    clock = FrozenClock()

    def cancel(host: ScriptedHost) -> None:
        if host.connection_count == 2:
            run.cancel()

    jobs = memory_job("db1"), scripted_job("db2", cancel, {}), scripted_job("db3", lambda host: None, {})
    until = datetime.datetime.fromtimestamp(clock.time() + HOUR).time()
    run = make_run(pool, *jobs, until=until, clock=clock, executor=InlineThreads())
    report = run.run()
    assert report.ended_by == "signal"
    assert results_of(report)["db1"] == "not-ready: not-ready"
    assert results_of(report)["db3"] == "not-ready: not-ready"
    assert not (pool / report.day / "cback.stage").exists()
