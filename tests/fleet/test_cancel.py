"""Ending a run early: what is being staged is cancelled, the rest is not started, and nobody waits for a peer."""

from __future__ import annotations

import dataclasses
import datetime
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from peerstage import BackupPeer, FleetReport, FleetRun, Reason, StageOptions, Verdict
from peerstage.fleet import coordinator
from peerstage.fleet.events import Event, PeerFinished
from peerstage.fleet.pool.run_records import RunRecords
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.testing import MemoryHost, MemoryJob, memory_job
from support.fleet import READY, ScriptedHost, files_in, make_run, results_of, run, scripted_job
from support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[ScriptedHost], None]]:
    """Lets a host hang in connect, where nothing interrupts it, until the test ends; runs do not wait long for it.

    The function's attribute `reached` counts the connections that hang.
    """
    monkeypatch.setattr(coordinator, "_SECONDS_TO_END", 0.3)
    released = threading.Event()

    def hang(host: ScriptedHost) -> None:
        hang.reached += 1  # type: ignore[attr-defined]
        released.wait(30)

    hang.reached = 0  # type: ignore[attr-defined]
    hang.release = released.set  # type: ignore[attr-defined]
    yield hang
    released.set()


def cancel_when(run: FleetRun, condition: Callable[[], object]) -> FleetReport:
    """Run, cancel as soon as *condition* is true, and return the report."""

    def cancel() -> None:
        wait_until(condition)
        run.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    report = run.run()
    thread.join()
    return report


def finished(events: list[Event]) -> list[str]:
    """Return the names of the peers that have their results."""
    return [event.result.peer for event in list(events) if isinstance(event, PeerFinished)]


def slow_job(name: str, size: int = 10_000_000) -> MemoryJob:
    """Return a job whose transfer takes hours."""
    return memory_job(name, {**READY, "big": bytes(size)}, stage=StageOptions(bwlimit=1024))


def test_peers_that_are_staged_are_cancelled_and_the_others_not_started(pool: Path) -> None:
    slow = [slow_job("slow1"), slow_job("slow2")]
    fleet = make_run(pool, memory_job("db1", READY), *slow, memory_job("late", READY), parallel=2)
    report = cancel_when(fleet, lambda: all(list(pool.glob(f"*/*/*/{job.name}/.peerstage-*/*")) for job in slow))
    assert results_of(report) == {
        "db1": "staged",
        "slow1": "failed: cancelled",
        "slow2": "failed: cancelled",
        "late": "not-started: cancelled",
    }
    assert report.ended_by == "signal"
    assert set(files_in(pool)) == {f"{report.day}/db1/{name}" for name in READY}
    with RunsDirectory(str(pool)) as runs:
        assert list(RunRecords(runs).newest_first()) == [report]


def test_a_cancelled_run_is_continued_by_the_next(pool: Path) -> None:
    first, second = memory_job("db1", READY), memory_job("db2", READY)
    events: list[Event] = []
    fleet = make_run(pool, first, slow_job("slow"), second, parallel=1, on_event=events.append)
    cancel_when(fleet, lambda: any(event.to_dict().get("peer") == "slow" for event in events))
    report = run(pool, first, memory_job("slow", READY), second)
    assert report.counts == {"staged": 3}
    assert [bool(result.earlier_run) for result in report.results] == [True, False, False]


def test_a_run_that_is_cancelled_before_it_starts_asks_nobody(pool: Path) -> None:
    job = memory_job("db1", READY)
    fleet = make_run(pool, job)
    fleet.cancel()
    report = fleet.run()
    assert results_of(report) == {"db1": "not-started: cancelled"}
    assert job.memory_host.connection_count == 0


def test_a_wait_for_peers_that_are_not_ready_ends_at_once(pool: Path) -> None:
    until = (datetime.datetime.now() + datetime.timedelta(hours=2)).time()
    job = memory_job("db1")
    report = cancel_when(make_run(pool, job, until=until), lambda: job.memory_host.connection_count)
    assert results_of(report) == {"db1": "not-ready: not-ready"}
    assert report.ended_by == "signal"


def test_nobody_waits_for_a_peer_that_hangs(pool: Path, hangs: Callable[[ScriptedHost], None]) -> None:
    events: list[Event] = []
    fleet = make_run(pool, scripted_job("hung", hangs), memory_job("db1", READY), on_event=events.append)
    report = cancel_when(fleet, lambda: hangs.reached and finished(events) == ["db1"])  # type: ignore[attr-defined]
    assert results_of(report) == {"hung": "failed: cancelled", "db1": "staged"}
    assert "given up" in (report.results[0].error or "")


def test_a_thread_that_was_given_up_neither_publishes_nor_marks(
    pool: Path, hangs: Callable[[ScriptedHost], None]
) -> None:
    job = scripted_job("hung", hangs)
    report = cancel_when(make_run(pool, job), lambda: hangs.reached)  # type: ignore[attr-defined]
    hangs.release()  # type: ignore[attr-defined]
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "peerstage-hung"])
    assert files_in(pool) == {}
    assert job.files.keys() == {b"cback.collect", b"dump"}
    assert (report.results[0].verdict, report.results[0].marked) == (Verdict.FAILED, False)


def test_queued_work_of_a_pool_of_threads_is_not_started(pool: Path, hangs: Callable[[ScriptedHost], None]) -> None:
    with ThreadPoolExecutor(1) as executor:
        fleet = make_run(pool, scripted_job("hung", hangs), memory_job("db1", READY), executor=executor)
        report = cancel_when(fleet, lambda: hangs.reached and executor._work_queue.qsize())  # type: ignore[attr-defined]
        hangs.release()  # type: ignore[attr-defined]
    assert results_of(report) == {"hung": "failed: cancelled", "db1": "not-started: cancelled"}
    assert report.results[1].attempts == 0


def test_a_keyboard_interrupt_ends_the_run_with_a_record_and_is_raised(pool: Path) -> None:
    events: list[Event] = []

    def interrupt(event: Event) -> None:
        events.append(event)
        if event.to_dict().get("peer") == "db1" and event.name == "peer-finished":
            raise KeyboardInterrupt

    jobs = memory_job("db1", READY), slow_job("slow"), memory_job("db2", READY)
    with pytest.raises(KeyboardInterrupt):
        run(pool, *jobs, parallel=2, on_event=interrupt)
    with RunsDirectory(str(pool)) as runs:
        record = next(RunRecords(runs).newest_first())
    assert record.results[0].verdict is Verdict.STAGED
    assert {result.reason for result in record.results[1:]} == {Reason.CANCELLED}
    assert record.ended_by == "signal"
    assert sorted(event.to_dict()["peer"] for event in events if event.name == "peer-finished") == [
        "db1",
        "db2",
        "slow",
    ]


def test_a_hook_that_hangs_is_ended(pool: Path) -> None:
    job = memory_job("db1", READY)
    fleet = make_run(pool, job, before=("/bin/sh", "-c", f"touch {pool}/began; sleep 100"))
    report = cancel_when(fleet, (pool / "began").exists)
    assert results_of(report) == {"db1": "not-started: cancelled"}
    assert report.ended_by == "signal"


def test_a_dead_peer_delays_no_other(
    pool: Path, hangs: Callable[[ScriptedHost], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one slot, two peers that never answer, and the other peers behind them."""
    monkeypatch.setattr("peerstage.fleet.slots.LEND_AFTER", 0.05)
    dead = [scripted_job(f"dead{number}", hangs) for number in range(2)]
    finished: list[Event] = []

    def note(event: Event) -> None:
        if event.name == "peer-finished":
            finished.append(event)

    fleet = make_run(pool, *dead, memory_job("db1", READY), memory_job("db2", READY), parallel=1, on_event=note)
    report = cancel_when(fleet, lambda: len(finished) == 2)
    assert [result.verdict for result in report.results[2:]] == [Verdict.STAGED, Verdict.STAGED]


def test_a_peer_that_answers_late_is_staged_when_a_slot_is_free(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerstage.fleet.slots.LEND_AFTER", 0.05)
    others_done = threading.Event()
    late = scripted_job("late", lambda host: others_done.wait(20))

    def note(event: Event) -> None:
        if event.name == "peer-finished" and event.to_dict()["peer"] == "db2":
            others_done.set()

    report = run(pool, late, memory_job("db1", READY), memory_job("db2", READY), parallel=1, on_event=note)
    assert report.counts == {"staged": 3}
    assert time.time() - report.started < 20


def test_a_bug_in_the_run_itself_is_raised_once_everybody_has_a_result(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(coordinator.Coordinator, "_handle", fail)
    monkeypatch.setattr(coordinator, "_SECONDS_TO_END", 0.3)
    events: list[Event] = []
    with pytest.raises(KeyError):
        run(pool, memory_job("db1", READY), memory_job("db2", READY), on_event=events.append)
    assert sorted(event.to_dict()["peer"] for event in events if event.name == "peer-finished") == ["db1", "db2"]
    with RunsDirectory(str(pool)) as runs:
        record = next(RunRecords(runs).newest_first())
    assert record.error == "Unexpected KeyError."


def test_a_peer_that_a_thread_has_just_begun_with_is_not_connected_any_more(pool: Path) -> None:
    """The run is cancelled between the moment when a thread begins and the one when it can be told."""
    runs: list[FleetRun] = []

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Late(MemoryJob):
        def build_peer(self, *, reads_secrets: bool = False, **options: Any) -> BackupPeer:
            if reads_secrets:
                runs[0].cancel()
                wait_until(lambda: len(told) > 2)
            return super(Late, self).build_peer(**options)

    told: list[Event] = []
    jobs = [Late(name="late", collect_dir="/collect", user="backup", memory_host=MemoryHost({"/collect": READY}))]
    jobs += [memory_job(f"db{number}", READY) for number in range(2)]
    runs.append(make_run(pool, *jobs, parallel=1, on_event=told.append))
    report = runs[0].run()
    assert results_of(report)["late"] == "failed: cancelled"
    assert jobs[0].memory_host.connection_count == 0
