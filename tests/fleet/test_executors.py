"""Runs whose workers are elsewhere: what they share, what becomes of lost ones, and what those may still do."""

from __future__ import annotations

import dataclasses
import datetime
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from peerstage import RemotePeer, Secret, SSHOptions
from peerstage.fleet import coordinator, executor_workers, schedule
from peerstage.fleet.events import Event
from peerstage.fleet.pool import peer_claim
from peerstage.fleet.pool.peer_claim import PeerClaim
from peerstage.fleet.run_peer import PeerWork
from peerstage.testing import MemoryFile, memory_job
from support.fleet import (
    READY,
    Elsewhere,
    FrozenClock,
    Idle,
    ScriptedHost,
    broken_job,
    files_in,
    make_run,
    results_of,
    run,
    scripted_job,
)
from support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as executor:
        yield executor


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets workers send no heartbeat, and the run give them up soon."""
    monkeypatch.setattr(peer_claim, "_HEARTBEAT", 1e9)
    monkeypatch.setattr(executor_workers, "_MAX_SILENCE", 0.3)
    monkeypatch.setattr(coordinator, "_POLL_INTERVAL", 0.05)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that is set at the end of the test, at the latest."""
    event = threading.Event()
    yield event
    event.set()


def test_workers_elsewhere_stage_and_mark(pool: Path, elsewhere: Elsewhere) -> None:
    jobs = memory_job("db1", READY), memory_job("db2"), broken_job("db3", KeyError("bug")), memory_job("db4", READY)
    report = run(pool, *jobs, executor=elsewhere)
    assert [str(result.verdict) for result in report.results] == ["staged", "not-ready", "failed", "staged"]
    assert sorted(files_in(pool)) == sorted(
        [f"{report.day}/{peer}/{name}" for peer in ("db1", "db4") for name in READY] + [f"{report.day}/cback.stage"]
    )


def test_every_worker_gets_its_share_of_the_bandwidth_and_of_the_memory(pool: Path) -> None:
    works: list[PeerWork] = []

    def note(work: PeerWork) -> PeerWork:
        works.append(work)
        return work

    with Elsewhere(change=note) as executor:
        run(pool, *(memory_job(f"db{n}", READY) for n in range(4)), executor=executor, bwlimit=400_000, parallel=4)
    assert [work.bwlimit for work in works] == [100_000] * 4
    assert [work.in_flight for work in works] == [16 * 2**20] * 4


def test_a_job_with_a_secret_is_not_sent_to_a_worker(pool: Path, elsewhere: Elsewhere) -> None:
    secret = memory_job("db1", READY, ssh=SSHOptions(password="secret"))
    report = run(pool, secret, memory_job("db2", READY), executor=elsewhere)
    assert results_of(report) == {"db1": "failed: invalid-argument", "db2": "staged"}
    assert "Secret(file=" in (report.results[0].error or "")
    assert run(pool, secret).counts == {"staged": 1}, "threads need not send it"


def test_secrets_are_read_where_the_peer_is_staged_and_never_sent(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    def note(work: PeerWork) -> PeerWork:
        sent.append(pickle.dumps(work))
        return pickle.loads(sent[-1])  # type: ignore[no-any-return]

    monkeypatch.setenv("NIGHTLY_PASSWORD", "hunter2")
    with Elsewhere(change=note) as executor:
        report = run(pool, memory_job("db1", READY, password=Secret(env="NIGHTLY_PASSWORD")), executor=executor)
    assert report.counts == {"staged": 1}
    assert b"NIGHTLY_PASSWORD" in sent[0]
    assert b"hunter2" not in sent[0]


def test_a_worker_that_does_not_see_the_pool_says_so(pool: Path, tmp_path: Path) -> None:
    def hide(work: PeerWork) -> PeerWork:
        return dataclasses.replace(work, staging=str(tmp_path)) if work.job.name == "db1" else work

    jobs = memory_job("db1", READY), memory_job("db2", READY)
    with Elsewhere(change=hide) as executor:
        report = run(pool, *jobs, executor=executor)
    assert results_of(report) == {"db1": "failed: pool-not-visible", "db2": "staged"}
    assert jobs[0].memory_host.connection_count == 0
    assert list(tmp_path.iterdir()) == []


class WithoutPeerstage(Executor):
    """A worker that imports nothing of peerstage. Messages that it cannot unpickle end it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        message = pickle.dumps((fn, args, kwargs))
        with pytest.MonkeyPatch.context() as patched:
            for name in [name for name in sys.modules if name.partition(".")[0] == "peerstage"]:
                patched.setitem(sys.modules, name, None)
            function, arguments, options = pickle.loads(message)
            try:
                done.set_result(function(*arguments, **options))
            except Exception as exc:
                done.set_exception(exc)
        return done


def test_a_worker_without_peerstage_says_so_at_once_and_goes_on(pool: Path) -> None:
    report = run(pool, memory_job("db1", READY), memory_job("db2", READY), executor=WithoutPeerstage())
    assert results_of(report) == {"db1": "failed: worker-lost", "db2": "failed: worker-lost"}
    assert "Its worker has no peerstage, or another version" in (report.results[0].error or "")


# Lost workers


def test_an_executor_that_never_begins_with_anything_ends_in_a_result_for_everybody(
    pool: Path,
) -> None:
    jobs = [memory_job(f"db{number}", READY) for number in range(20)]
    idle = Idle()
    report = run(pool, *jobs, executor=idle, clock=FrozenClock(), parallel=2)
    assert set(results_of(report).values()) == {"not-started: worker-lost"}
    assert 600 < report.seconds < 700, "ten minutes for all, and not for each two of them"
    assert report.exit == 6
    assert {result.attempts for result in report.results} == {0}
    assert all(future.cancelled() for future in idle.futures), "so that it begins with nothing afterwards"


def test_a_pause_in_which_there_is_nothing_to_do_is_no_reason_to_give_up(
    pool: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Elsewhere
) -> None:
    monkeypatch.setattr(executor_workers, "_MAX_IDLE", 0.2)
    monkeypatch.setattr(coordinator, "_POLL_INTERVAL", 0.05)
    monkeypatch.setattr(schedule, "FIRST_PAUSE", 0.5)

    def become_ready(host: ScriptedHost) -> None:
        if host.connection_count == 1:
            host.directories[b"/collect"][b"cback.collect"] = MemoryFile()

    until = (datetime.datetime.now() + datetime.timedelta(hours=1)).time()
    report = run(pool, scripted_job("db1", become_ready, {"dump": b"x"}), executor=elsewhere, until=until)
    assert (results_of(report), report.results[0].attempts) == ({"db1": "staged"}, 2)


def test_work_that_waits_for_a_busy_worker_is_not_lost(
    pool: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_workers, "_MAX_IDLE", 0.5)
    monkeypatch.setattr(peer_claim, "_INTERVAL", 0.05)
    monkeypatch.setattr(peer_claim, "_HEARTBEAT", 0.05)
    monkeypatch.setattr(coordinator, "_POLL_INTERVAL", 0.05)
    slow = scripted_job("slow", lambda host: gate.wait(1.5))
    with Elsewhere(1) as executor:
        report = run(pool, slow, memory_job("db1", READY), executor=executor)
    assert results_of(report) == {"slow": "staged", "db1": "staged"}


@pytest.mark.usefixtures("silence")
def test_a_worker_without_a_sign_of_life_is_given_up(pool: Path, gate: threading.Event, elsewhere: Elsewhere) -> None:
    hung = scripted_job("hung", lambda host: gate.wait(20))
    report = run(pool, hung, memory_job("db1", READY), executor=elsewhere)
    assert results_of(report) == {"hung": "failed: worker-lost", "db1": "staged"}
    gate.set()
    elsewhere.shutdown()
    assert not [path for path in files_in(pool) if "hung" in path]
    assert hung.files.keys() == {b"cback.collect", b"dump"}


def test_a_given_up_worker_publishes_nothing_while_the_run_goes_on(
    pool: Path, gate: threading.Event, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes up while another peer is being staged, so that the run is still the current one."""
    monkeypatch.setattr(peer_claim, "_INTERVAL", 0.02)
    monkeypatch.setattr(peer_claim, "_HEARTBEAT", 0.02)
    monkeypatch.setattr(executor_workers, "_MAX_SILENCE", 0.3)
    monkeypatch.setattr(coordinator, "_POLL_INTERVAL", 0.05)
    keep = PeerClaim.keep
    monkeypatch.setattr(PeerClaim, "keep", lambda claim: None if claim.peer == "hung" else keep(claim))
    hung = scripted_job("hung", lambda host: gate.wait(20))
    events: list[Event] = []

    def wait_for_hung(host: ScriptedHost) -> None:
        wait_until(lambda: "peer-finished" in [event.name for event in events])
        gate.set()
        wait_until(lambda: not list(pool.glob("*/*/*/hung/.peerstage-*")) and elsewhere.done_count == 1)

    report = run(pool, hung, scripted_job("db1", wait_for_hung), executor=elsewhere, on_event=events.append)
    assert results_of(report) == {"hung": "failed: worker-lost", "db1": "staged"}
    assert not [path for path in files_in(pool) if "hung" in path]
    assert hung.files.keys() == {b"cback.collect", b"dump"}


@pytest.mark.usefixtures("silence")
def test_a_worker_that_is_given_up_after_it_published_does_not_mark(
    pool: Path, gate: threading.Event, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = RemotePeer.stagePeer

    def stage_and_hang(peer: RemotePeer, *args: Any) -> int:
        count = stage(peer, *args)
        gate.wait(20)
        return count

    monkeypatch.setattr(RemotePeer, "stagePeer", stage_and_hang)
    job = memory_job("db1", READY)
    report = run(pool, job, executor=elsewhere)
    gate.set()
    elsewhere.shutdown()
    assert results_of(report) == {"db1": "failed: worker-lost"}
    assert b"cback.stage" not in job.files
    monkeypatch.setattr(RemotePeer, "stagePeer", stage)
    assert results_of(run(pool, job)) == {"db1": "staged"}, "the next run finds it, and marks it"


@pytest.mark.parametrize("error", [BrokenProcessPool("a worker was killed"), KeyError("bug")])
def test_a_worker_that_could_not_run_its_job_is_that_peers_failure(pool: Path, error: Exception) -> None:
    class Failing(Elsewhere):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if fn.work.job.name != "db1":
                return super().submit(fn, *args, **kwargs)
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    with Failing() as executor:
        report = run(pool, memory_job("db1", READY), memory_job("db2", READY), executor=executor)
    assert results_of(report) == {"db1": "failed: worker-lost", "db2": "staged"}
    assert type(error).__name__ in (report.results[0].error or "")


@pytest.mark.parametrize("kind", [Elsewhere, ThreadPoolExecutor])
def test_an_executor_that_takes_no_more_work_leaves_the_rest_not_started(pool: Path, kind: type[Executor]) -> None:
    executor = kind()
    executor.shutdown()
    report = run(pool, memory_job("db1", READY), memory_job("db2", READY), executor=executor)
    assert results_of(report) == dict.fromkeys(("db1", "db2"), "not-started: worker-lost")


def test_an_executor_that_returns_something_else_is_a_failure(pool: Path) -> None:
    class Odd(Elsewhere):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            odd: Future[Any] = Future()
            odd.set_result(None)
            return odd

    with Odd() as executor:
        assert results_of(run(pool, memory_job("db1", READY), executor=executor)) == {"db1": "failed: worker-lost"}


# Ending early


def test_workers_elsewhere_notice_that_the_run_is_cancelled(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_claim, "_INTERVAL", 0.05)
    with Elsewhere(1) as executor:
        slow = memory_job("slow", {**READY, "big": bytes(10_000_000)})
        fleet = make_run(pool, slow, memory_job("db1", READY), executor=executor, bwlimit=4096, parallel=2)

        def cancel() -> None:
            wait_until(lambda: list(pool.glob("*/*/*/slow/.peerstage-*/*")))
            fleet.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        report = fleet.run()
        thread.join()
    assert results_of(report) == {"slow": "failed: cancelled", "db1": "not-started: cancelled"}
    assert "given up" not in (report.results[0].error or "")
    assert files_in(pool) == {}


def test_a_hung_worker_elsewhere_delays_no_cancelled_run(
    pool: Path, gate: threading.Event, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "_SECONDS_TO_END", 0.3)
    reached = threading.Event()
    fleet = make_run(pool, scripted_job("hung", lambda host: (reached.set(), gate.wait(20))), executor=elsewhere)
    thread = threading.Thread(target=lambda: (reached.wait(10), fleet.cancel()))
    thread.start()
    report = fleet.run()
    thread.join()
    assert results_of(report) == {"hung": "failed: cancelled"}
    gate.set()
    elsewhere.shutdown()
    assert files_in(pool) == {}
