"""Runs of fleets in memory: verdicts, the tree, the record, and what happens to the peers."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from peerstage import (
    BandwidthLimit,
    FleetPlan,
    FleetReport,
    Limits,
    Reason,
    Retry,
    StageOptions,
    Verdict,
    stage_fleet,
)
from peerstage.errors import ConnectError, RemoteError, RunLocked, StageError
from peerstage.fleet import schedule, thread_workers
from peerstage.fleet.events import Event, PeerStarted
from peerstage.fleet.pool.run_lock import RunLock
from peerstage.fleet.pool.run_records import RunRecords
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.fleet.shares import share_out
from peerstage.records import FileResult
from peerstage.testing import MemoryFile, MemoryPeer, memory_job
from support.fleet import (
    READY,
    FrozenClock,
    InlineThreads,
    broken_job,
    files_in,
    make_run,
    results_of,
    run,
    scripted_job,
)

pytestmark = pytest.mark.usefixtures("leaves_nothing")

REFUSED = ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED)
BAD_ENTRY = MemoryFile(error=RemoteError("Permission denied.", reason=Reason.PERMISSION_DENIED))


def staged(report: FleetReport, *peers: str) -> dict[str, bytes]:
    """Return the files of a pool in which *peers* have staged `READY`."""
    tree = {f"{report.day}/{peer}/{name}": data for peer in peers for name, data in READY.items()}
    return {**tree, f"{report.day}/cback.stage": b""}


def test_a_run_stages_and_marks_every_peer_that_is_ready(pool: Path) -> None:
    ready, waiting, dead = (
        memory_job("db1", READY),
        memory_job("db2", {"dump": b"half"}),
        memory_job("db3", error=REFUSED),
    )
    report = run(pool, ready, waiting, dead)
    assert results_of(report) == {
        "db1": "staged",
        "db2": "not-ready: not-ready",
        "db3": "failed: connection-refused",
    }
    assert report.exit == 4
    assert files_in(pool) == staged(report, "db1")
    assert b"cback.stage" in ready.files
    assert b"cback.stage" not in waiting.files
    assert (pool / "latest").resolve() == Path(report.target)


def test_the_function_runs_a_plan(pool: Path) -> None:
    plan = make_run(pool, memory_job("db1", READY), memory_job("db2", READY, group="office"))._plan
    assert stage_fleet(plan, peers=("office",)).counts == {"staged": 1}
    with pytest.raises(ValueError, match="no peer and no group 'db3'"):
        stage_fleet(plan, peers=("db3",))


def test_one_login_serves_check_stage_and_mark(pool: Path) -> None:
    job = memory_job("db1", READY)
    run(pool, job)
    assert job.memory_host.connection_count == 1


def test_the_record_in_the_pool_is_the_report(pool: Path) -> None:
    report = run(pool, memory_job("db1", READY), memory_job("db2"))
    with RunsDirectory(str(pool)) as runs:
        assert list(RunRecords(runs).newest_first()) == [report]


def test_a_result_is_a_summary_and_not_every_file(pool: Path) -> None:
    files = {"cback.collect": b"", **{f"f{number}": b"x" for number in range(500)}}
    events: list[Event] = []
    run(pool, memory_job("db1", files), on_event=events.append)
    assert max(len(str(event.to_dict())) for event in events) < 2000


def test_events_tell_of_every_peer_once(pool: Path) -> None:
    events: list[Event] = []
    report = run(pool, memory_job("db1", READY), memory_job("db2"), on_event=events.append)
    names = [event.name for event in events]
    assert names[0] == "run-started"
    assert names[-1] == "run-finished"
    assert sorted(names[1:-1]) == ["peer-finished", "peer-finished", "peer-started", "peer-started"]
    finished = [event.to_dict() for event in events if event.name == "peer-finished"]
    by_peer = {values["peer"]: values["verdict"] for values in finished}
    assert by_peer == {result.peer: result.verdict for result in report.results}


# What a peer may be


def test_a_peer_that_is_not_to_be_marked_is_only_read(pool: Path) -> None:
    job = memory_job("db1", READY, writable=False, mark=False)
    result = run(pool, job).results[0]
    assert (result.verdict, result.marked, result.exit) == (Verdict.STAGED, False, 0)


def test_a_peer_that_cannot_be_marked_has_failed_although_its_files_are_there(pool: Path) -> None:
    report = run(pool, memory_job("db1", READY, writable=False))
    assert results_of(report) == {"db1": "failed: permission-denied"}
    assert report.results[0].report is not None
    assert report.results[0].report.files == 1
    assert not report.results[0].marked
    assert files_in(pool) == staged(report, "db1")


def test_a_peer_with_an_entry_that_cannot_be_staged_is_incomplete_and_not_marked(pool: Path) -> None:
    job = memory_job("db1", {**READY, "bad": BAD_ENTRY})
    report = run(pool, job)
    assert results_of(report) == {"db1": "incomplete: incomplete-stage"}
    assert report.exit == 5
    assert files_in(pool) == staged(report, "db1")
    assert b"cback.stage" not in job.files


def test_an_empty_peer_is_incomplete_and_not_marked_unless_that_is_allowed(pool: Path) -> None:
    empty, allowed = (
        memory_job("db1", {"cback.collect": b""}),
        memory_job("db2", {"cback.collect": b""}, allow_empty=True),
    )
    nothing = memory_job("db3", {"x": b""}, collect_indicator="x")
    report = run(pool, empty, allowed, nothing)
    assert results_of(report) == {
        "db1": "incomplete: nothing-to-stage",
        "db2": "staged",
        "db3": "incomplete: nothing-to-stage",
    }
    assert b"cback.stage" not in empty.files
    assert b"cback.stage" in allowed.files


def test_names_and_modes_of_the_job_are_used(pool: Path) -> None:
    job = memory_job(
        "db1", {"done": b"", "dump": b"x"}, collect_indicator="done", stage_indicator="fetched", permissions=0o640
    )
    report = run(pool, job, directory_mode=0o750)
    assert results_of(report) == {"db1": "staged"}
    assert b"fetched" in job.files
    assert (pool / report.day / "db1" / "dump").stat().st_mode & 0o777 == 0o640
    assert (pool / report.day / "db1").stat().st_mode & 0o777 == 0o750


def test_a_peer_that_was_marked_since_it_collected_is_stale_until_it_collects_again(pool: Path) -> None:
    job = memory_job(
        "db1", {"cback.collect": MemoryFile(mtime=100), "cback.stage": MemoryFile(mtime=101), "dump": b"x"}
    )
    assert results_of(run(pool, job)) == {"db1": "not-ready: stale"}
    assert results_of(run(pool, job, again=True)) == {"db1": "staged"}


def test_an_ignored_failure_is_told_and_does_not_count(pool: Path) -> None:
    report = run(pool, memory_job("db1", READY), memory_job("laptop", error=REFUSED, ignore_failures="all"))
    assert [result.ignored for result in report.results] == [False, True]
    assert report.exit == 0


WEDNESDAY_NOON = 1_700_049_600.0


@pytest.mark.parametrize(
    ("mode", "starting_day", "is_ignored"),
    [("daily", 0, True), ("daily", 2, False), ("weekly", 0, False), ("weekly", 2, True), ("none", 0, False)],
)
def test_failures_are_ignored_by_the_weekday_on_which_the_run_started(
    pool: Path, mode: str, starting_day: int, is_ignored: bool
) -> None:
    job = memory_job("db1", ignore_failures=mode)
    report = run(pool, job, starting_day=starting_day, clock=FrozenClock(WEDNESDAY_NOON), executor=InlineThreads())
    assert report.results[0].ignored == is_ignored


# What a peer may do


@pytest.mark.parametrize(
    "bug",
    [KeyError("bug"), MemoryError(), SystemExit(1), KeyboardInterrupt(), RecursionError(), OSError(5, "bug")],
    ids=lambda bug: type(bug).__name__,
)
def test_a_bug_in_one_peer_costs_the_others_nothing(pool: Path, bug: BaseException) -> None:
    events: list[Event] = []
    report = run(
        pool, memory_job("db1", READY), broken_job("db2", bug), memory_job("db3", READY), on_event=events.append
    )
    assert [result.verdict for result in report.results] == [Verdict.STAGED, Verdict.FAILED, Verdict.STAGED]
    assert [event.name for event in events].count("peer-finished") == 3
    assert files_in(pool) == staged(report, "db1", "db3")


def test_a_callback_that_raises_costs_nothing(pool: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Event) -> None:
        raise KeyError(event.name)

    report = run(pool, memory_job("db1", READY), memory_job("db2"), on_event=fail)
    assert report.counts == {"staged": 1, "not-ready": 1}
    assert "on_event failed for run-finished" in caplog.text


def test_a_lost_connection_is_made_again_and_a_hostile_peer_ends_alone(pool: Path) -> None:
    files = {**READY, "big": bytes(300_000)}
    flaky = memory_job("flaky", files, lose_after=100_000, faulty_connections=1)
    hostile = memory_job("hostile", files, limits=Limits(total_bytes=1000))
    report = run(pool, flaky, hostile, memory_job("db1", READY))
    assert results_of(report) == {"flaky": "staged", "hostile": "failed: limit-exceeded", "db1": "staged"}
    assert report.results[0].report is not None
    assert report.results[0].report.retries == 1


def test_all_peers_together_are_limited_to_the_bandwidth_of_the_plan(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[BandwidthLimit, int]] = []

    class CountingLimit(BandwidthLimit):
        def take(self, received: int) -> tuple[int, float]:
            size, _ = super().take(received)
            taken.append((self, size))
            return size, 0.0

    monkeypatch.setattr("peerstage.fleet.thread_workers.BandwidthLimit", CountingLimit)
    files = {**READY, "big": bytes(100_000)}
    own = StageOptions(bwlimit=1024)
    report = run(pool, memory_job("db1", files), memory_job("db2", files, stage=own), bwlimit=1 << 20)
    assert report.counts == {"staged": 2}
    assert sum(size for _, size in taken) >= 150_000
    assert [limit.rate for limit in {limit for limit, _ in taken}] == [1 << 20]


def test_the_secret_of_a_job_is_read_when_the_peer_is_staged(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peerstage import Secret

    job = memory_job("db1", READY, password=Secret(env="NIGHTLY_PASSWORD"))
    assert results_of(run(pool, job)) == {"db1": "failed: configuration-unreadable"}
    monkeypatch.setenv("NIGHTLY_PASSWORD", "secret")
    assert results_of(run(pool, job)) == {"db1": "staged"}


def test_a_run_lets_go_of_everything_but_summaries(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "STARTS_PER_SECOND", 1e6)
    alive: list[int] = []

    def count(event: Event) -> None:
        if event.name == "peer-finished" and event.to_dict()["peer"].endswith("9"):
            alive.append(sum(isinstance(value, FileResult) for value in gc.get_objects()))

    files = {"cback.collect": b"", **{f"f{number}": b"x" for number in range(30)}}
    run(pool, *(memory_job(f"db{number}", files) for number in range(100)), on_event=count)
    assert len(alive) == 10
    assert max(alive) < 1000, "not those of a hundred peers, which are 3,100"


def test_a_system_that_refuses_threads_stages_fewer_peers_at_a_time(
    pool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, peak = thread_workers.start_thread, [0]

    def refuse(thread: threading.Thread) -> None:
        running = sum(other.name.startswith("peerstage-db") for other in threading.enumerate())
        if running >= 2:
            raise StageError("The system refuses another thread.", reason=Reason.OUT_OF_THREADS)
        peak[0] = max(peak[0], running + 1)
        start(thread)

    monkeypatch.setattr(thread_workers, "start_thread", refuse)
    monkeypatch.setattr(schedule, "STARTS_PER_SECOND", 1e6)
    both = threading.Barrier(2)
    jobs = [scripted_job(f"db{number}", lambda host: both.wait(10)) for number in range(6)]
    report = run(pool, *jobs, parallel=4)
    assert report.counts == {"staged": 6}
    assert peak == [2]
    assert "2 peers at a time" in caplog.text


def test_peers_share_the_memory_for_what_is_in_flight_and_pause_by_chance(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[int, float]] = {}
    stage = MemoryPeer.stagePeer

    def look(peer: MemoryPeer, *args: Any) -> int:
        seen[peer.name] = (peer.limits.in_flight_bytes, peer.retry.jitter)
        return stage(peer, *args)

    monkeypatch.setattr(MemoryPeer, "stagePeer", look)
    modest = memory_job("db0", READY, limits=Limits(in_flight_bytes=2**20), retry=Retry(jitter=0.1))
    jobs = [modest, *(memory_job(f"db{number}", READY) for number in range(1, 64))]
    run(pool, *jobs, parallel=64)
    assert seen.pop("db0") == (2**20, 0.1)
    assert set(seen.values()) == {
        (share_out(FleetPlan(staging="/s", peers=tuple(jobs), parallel=64), jobs).in_flight, 0.5)
    }


# Continuing


def test_a_peer_that_was_staged_today_is_not_asked_again(pool: Path) -> None:
    job, late = memory_job("db1", READY), memory_job("db2")
    first = run(pool, job, late)
    late.files.update({name.encode(): MemoryFile(data) for name, data in READY.items()})
    events: list[Event] = []
    second = run(pool, job, late, on_event=events.append)
    assert second.counts == {"staged": 2}
    assert second.results[0].earlier_run == first.run
    assert second.results[0].marked
    assert second.results[0].report == first.results[0].report
    assert job.memory_host.connection_count == 1
    assert [event.name for event in events].count("peer-finished") == 2
    assert run(pool, job, late).results[0].earlier_run == first.run, "that of the run which staged it"


def test_it_is_asked_again_on_request_or_if_its_directory_is_gone(pool: Path) -> None:
    job = memory_job("db1", READY)
    report = run(pool, job)
    again = run(pool, job, again=True)
    assert (again.results[0].earlier_run, job.memory_host.connection_count) == (None, 2)
    os.rename(pool / report.day / "db1", pool / "away")
    job.files[b"cback.collect"] = MemoryFile(mtime=2**33)
    assert run(pool, job).results[0].earlier_run is None
    assert files_in(pool)[f"{report.day}/db1/dump"] == b"content"


def test_a_later_stage_of_the_day_that_was_incomplete_is_what_counts(pool: Path) -> None:
    job = memory_job("db1", READY)
    run(pool, job)
    job.files[b"bad"] = BAD_ENTRY
    assert results_of(run(pool, job, again=True)) == {"db1": "incomplete: incomplete-stage"}
    del job.files[b"bad"]
    third = run(pool, job)
    assert (third.counts, third.results[0].earlier_run) == ({"staged": 1}, None)


def test_a_later_stage_of_the_day_that_failed_is_repeated_since_it_may_have_replaced_some_files(pool: Path) -> None:
    job = memory_job("db1", READY)
    run(pool, job)
    job.memory_host.error = REFUSED
    assert results_of(run(pool, job, again=True)) == {"db1": "failed: connection-refused"}
    job.memory_host.error = None
    third = run(pool, job)
    assert (third.counts, third.results[0].earlier_run) == ({"staged": 1}, None)


def test_a_later_stage_of_the_day_that_found_the_peer_not_ready_changes_nothing(pool: Path) -> None:
    job = memory_job("db1", READY)
    first = run(pool, job)
    del job.files[b"cback.collect"]
    assert results_of(run(pool, job, again=True)) == {"db1": "not-ready: not-ready"}
    assert run(pool, job).results[0].earlier_run == first.run


# The pool


def test_two_runs_at_once_are_refused_and_say_who_holds_the_pool(pool: Path) -> None:
    job = memory_job("db1", READY)
    with RunsDirectory(str(pool)) as runs, RunLock(runs, "a long run"):
        with pytest.raises(RunLocked, match="a long run"):
            run(pool, job)
        assert job.memory_host.connection_count == 0
    assert run(pool, job).counts == {"staged": 1}


def test_a_pool_that_is_missing_is_an_error_before_anything_is_asked(pool: Path) -> None:
    job = memory_job("db1", READY)
    with pytest.raises(StageError) as caught:
        run(pool / "unmounted", job)
    assert caught.value.reason is Reason.TARGET_MISSING
    assert job.memory_host.connection_count == 0


def test_what_killed_runs_left_is_swept(pool: Path) -> None:
    leftover = pool / "2020" / "01" / "02" / "db9" / ".peerstage-0123abcd"
    leftover.mkdir(parents=True, mode=0o700)
    (leftover / "lock").touch()
    (leftover / "0").write_bytes(b"partial")
    run(pool, memory_job("db1", READY))
    assert not leftover.exists()


def test_too_little_free_space_keeps_the_run_from_asking_anybody(pool: Path) -> None:
    jobs = memory_job("db1", READY), memory_job("db2", READY)
    events: list[Event] = []
    report = run(pool, *jobs, min_free=2**60, on_event=events.append)
    assert results_of(report) == {"db1": "not-started: no-space", "db2": "not-started: no-space"}
    assert (report.exit, report.reason) == (6, Reason.NO_SPACE)
    assert str(2**60) in (report.error or "")
    assert [job.memory_host.connection_count for job in jobs] == [0, 0]
    assert [event.name for event in events].count("peer-finished") == 2
    assert files_in(pool) == {}
    with RunsDirectory(str(pool)) as runs:
        assert list(RunRecords(runs).newest_first()) == [report]


def test_no_peer_may_fill_the_disk_beyond_the_minimum(pool: Path) -> None:
    status = os.statvfs(pool)
    free = status.f_bfree * status.f_frsize
    big = memory_job("big", {**READY, "big": MemoryFile(listed_size=2**30)})
    report = run(pool, big, memory_job("db1", READY), min_free=free - 2**29)
    assert results_of(report) == {"big": "failed: no-space", "db1": "staged"}


def test_the_masters_indicator_is_written_at_the_end_of_every_run_that_reaches_it(pool: Path) -> None:
    report = run(pool, memory_job("db1", error=REFUSED))
    assert files_in(pool) == {f"{report.day}/cback.stage": b""}


def test_complete_only_holds_the_indicator_back_until_every_peer_that_counts_is_staged(pool: Path) -> None:
    ready, late = memory_job("db1", READY), memory_job("db2")
    ignored = memory_job("db3", error=REFUSED, ignore_failures="all")
    report = run(pool, ready, late, ignored, complete_only=True)
    indicator = pool / report.day / "cback.stage"
    assert not indicator.exists()
    late.files.update({name.encode(): MemoryFile(data) for name, data in READY.items()})
    run(pool, ready, late, ignored, complete_only=True, peers=("db1",))
    assert not indicator.exists(), "the plan has another peer"
    run(pool, ready, late, ignored, complete_only=True, peers=("db2",))
    assert indicator.exists()


def test_a_night_without_a_file_is_not_the_latest(pool: Path) -> None:
    run(pool, memory_job("db1", error=REFUSED))
    assert not (pool / "latest").is_symlink()


def test_a_disk_that_fails_ends_the_run_with_a_result_for_everybody(pool: Path) -> None:
    (pool / make_run(pool, memory_job("a"))._report.day.split("/")[0]).write_bytes(b"not a directory")
    report = run(pool, memory_job("db1", READY), memory_job("db2", READY))
    assert results_of(report) == dict.fromkeys(("db1", "db2"), "not-started: target-not-a-directory")
    assert report.exit == 6


def test_a_run_runs_once(pool: Path) -> None:
    once = make_run(pool, memory_job("db1", READY))
    once.run()
    with pytest.raises(StageError, match="has run"):
        once.run()


def test_peers_that_could_not_be_reached_are_asked_last_by_the_next_run(pool: Path) -> None:
    jobs = memory_job("dead", error=REFUSED), memory_job("db1"), memory_job("db2")
    for expected in (["dead", "db1", "db2"], ["db1", "db2", "dead"]):
        events: list[Event] = []
        report = run(pool, *jobs, executor=InlineThreads(), on_event=events.append)
        assert [event.peer for event in events if isinstance(event, PeerStarted)] == expected
        assert [result.peer for result in report.results] == ["dead", "db1", "db2"]


# Hooks


def test_a_failing_hook_keeps_the_run_from_starting_and_its_status_is_told(pool: Path) -> None:
    job = memory_job("db1", READY)
    report = run(pool, job, before=("/bin/sh", "-c", "exit 3"), after=("/bin/sh", "-c", f"touch {pool}/after"))
    assert results_of(report) == {"db1": "not-started: hook-failed"}
    assert "status 3" in (report.error or "")
    assert job.memory_host.connection_count == 0
    assert not (pool / "after").exists()


def test_hooks_run_before_after_each_peer_and_at_the_end_when_the_pool_is_free_again(pool: Path) -> None:
    def hook(text: str) -> tuple[str, ...]:
        return ("/bin/sh", "-c", f"echo {text} >> {pool}/log")

    free = "$(flock -n .peerstage-runs/run.lock echo free || echo locked)"
    report = run(
        pool,
        memory_job("db1", READY),
        before=hook("before"),
        after_peer=hook("$PEERSTAGE_PEER $PEERSTAGE_VERDICT"),
        after=("/bin/sh", "-c", f"cd {pool}; echo after {free} >> log"),
    )
    assert report.error is None
    assert (pool / "log").read_text().splitlines() == ["before", "db1 staged", "after free"]


def test_a_failing_hook_at_the_end_is_in_the_record(pool: Path) -> None:
    report = run(pool, memory_job("db1", READY), after=("/bin/false",))
    assert (report.reason, report.exit) == (Reason.HOOK_FAILED, 6)
    with RunsDirectory(str(pool)) as runs:
        assert list(RunRecords(runs).newest_first()) == [report]


def test_a_hook_may_mount_the_pool(pool: Path) -> None:
    """A mount is a directory in the place of another, which this test renames into place."""
    mountpoint, disk = pool / "mountpoint", pool / "disk"
    mountpoint.mkdir()
    disk.mkdir()
    report = run(
        mountpoint,
        memory_job("db1", READY),
        before=("/bin/sh", "-c", f"mv {mountpoint} {pool}/hidden && mv {disk} {mountpoint}"),
    )
    assert report.counts == {"staged": 1}
    assert files_in(mountpoint) == staged(report, "db1")
    with RunsDirectory(str(mountpoint)) as runs:
        assert list(RunRecords(runs).newest_first()) == [report]


def test_the_log_names_each_peer_that_was_not_staged(pool: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "peerstage.fleet"):
        run(pool, memory_job("db1", READY), memory_job("db2", error=REFUSED))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("peerstage.fleet")]
    assert "db1: staged." in lines
    assert "db2: failed: Connection refused. [connection-refused]" in lines


def test_jobs_are_values(pool: Path) -> None:
    job: Any = memory_job("db1", READY)
    assert dataclasses.replace(job, name="db2").memory_host is job.memory_host
    assert scripted_job("db1", lambda host: None).files.keys() == {b"cback.collect", b"dump"}
