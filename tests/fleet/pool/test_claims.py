"""Claims: nobody stages a peer twice at a time, and a worker that nobody waits for any more publishes nothing."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from peerstage.errors import Cancelled, StageError, TargetError
from peerstage.fleet.pool import peer_claim
from peerstage.fleet.pool.claims import RunClaims
from peerstage.fleet.pool.peer_claim import PeerClaim
from peerstage.fleet.pool.run_lock import RunLock
from peerstage.fleet.pool.runs_directory import NAME, RunsDirectory
from peerstage.reasons import Reason
from support.children import forked, run_in_fork
from support.clock import Clock
from support.filesystems import fill, tmpfs
from support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

RUN = "20261124T021502.417Z-9f3c"
NEXT = "20261125T021502.417Z-9f3c"
NOBODY = 65534


@contextlib.contextmanager
def running(runs: RunsDirectory, run: str = RUN, **options: Clock) -> Iterator[RunClaims]:
    """A run that is under way, with the job "db1"."""
    with RunLock(runs, run), RunClaims(runs, run, **options) as claims:
        claims.assign("db1")
        yield claims


@pytest.fixture
def claims(runs: RunsDirectory) -> Iterator[RunClaims]:
    with running(runs) as opened:
        yield opened


def claim(pool: Path, peer: str = "db1", run: str = RUN, **options: object) -> PeerClaim:
    return PeerClaim(str(pool), run, peer, **options)  # type: ignore[arg-type]


def refused(pool: Path, reason: Reason, peer: str = "db1", run: str = RUN, **options: object) -> str:
    with pytest.raises(StageError) as caught, claim(pool, peer, run, **options):
        pass
    assert caught.value.reason is reason, caught.value
    assert caught.value.peer == peer
    return str(caught.value)


# Publishing


def test_a_worker_of_the_run_that_is_under_way_may_publish(pool: Path, claims: RunClaims) -> None:
    with claim(pool) as worker:
        worker.require_current()


def stop(runs: RunsDirectory, claims: RunClaims) -> None:
    claims.stop()


def end(runs: RunsDirectory, claims: RunClaims) -> None:
    claims.__exit__()


def release(runs: RunsDirectory, claims: RunClaims) -> None:
    claims.release("db1")


def assign_again(runs: RunsDirectory, claims: RunClaims) -> None:
    claims.assign("db1")


def begin_another(runs: RunsDirectory, claims: RunClaims) -> None:
    RunClaims(runs, NEXT).__enter__()


def remove_everything(runs: RunsDirectory, claims: RunClaims) -> None:
    for path in sorted(Path(runs.path).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


WAYS = [stop, end, release, assign_again, begin_another, remove_everything]


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_that_the_run_no_longer_wants_may_not_publish(
    pool: Path, runs: RunsDirectory, claims: RunClaims, way: Callable[[RunsDirectory, RunClaims], None]
) -> None:
    with claim(pool) as worker:
        way(runs, claims)
        with pytest.raises(Cancelled, match=r"^db1: .* Nothing more is published") as caught:
            worker.require_current()
    assert caught.value.reason is Reason.CANCELLED


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_elsewhere_that_the_run_no_longer_wants_is_stopped(
    pool: Path,
    runs: RunsDirectory,
    claims: RunClaims,
    way: Callable[[RunsDirectory, RunClaims], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer_claim, "_INTERVAL", 0.005)
    stopped = threading.Semaphore(0)
    with claim(pool, on_stop=stopped.release):
        assert not stopped.acquire(blocking=False)
        way(runs, claims)
        assert stopped.acquire(timeout=30)
        assert stopped.acquire(timeout=30), "it is not called again, though the first call may have come too early"


def test_workers_of_a_run_that_was_killed_may_not_publish(pool: Path, runs: RunsDirectory) -> None:
    def run() -> None:
        for block in (RunLock(runs, RUN), claims := RunClaims(runs, RUN)):
            block.__enter__()
        claims.assign("db1")

    with forked(run) as pid:
        worker = claim(pool).__enter__()
        worker.require_current()
    assert pid
    try:
        with pytest.raises(Cancelled, match="The run was killed"):
            worker.require_current()
        with RunLock(runs, "prune"), pytest.raises(Cancelled, match="The run was killed"):
            worker.require_current()
    finally:
        worker.__exit__()


def test_a_full_disk_that_hides_who_holds_the_lock_does_not_cancel_workers(
    pool: Path, runs: RunsDirectory, claims: RunClaims
) -> None:
    with claim(pool) as worker:
        (pool / NAME / "run.lock").write_bytes(b"")
        worker.require_current()


def test_after_the_block_nothing_may_be_published(pool: Path, claims: RunClaims) -> None:
    with claim(pool) as worker:
        pass
    with pytest.raises(Cancelled):
        worker.require_current()


def test_a_disk_error_is_no_leave_to_publish(pool: Path, claims: RunClaims, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with claim(pool) as worker, monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(StageError, match="The pool's runs directory cannot be read: Input/output error") as caught:
            worker.require_current()
    assert caught.value.reason is Reason.LOCAL_IO_ERROR


# Beginning


def test_a_worker_that_begins_after_its_job_was_given_up_does_nothing(pool: Path, claims: RunClaims) -> None:
    claims.release("db1")
    assert "has given this job up" in refused(pool, Reason.CANCELLED)
    assert claims.seconds_since_heartbeat("db1") is None


def test_a_worker_that_begins_after_the_run_was_stopped_does_nothing(pool: Path, claims: RunClaims) -> None:
    claims.stop()
    assert "has ended or was stopped" in refused(pool, Reason.CANCELLED)


def test_the_jobs_of_an_earlier_run_do_not_count(pool: Path, runs: RunsDirectory) -> None:
    with running(runs):
        left = (pool / NAME / "jobs" / "db1").read_bytes()
    (pool / NAME / "jobs" / "db1").write_bytes(left)
    with RunLock(runs, NEXT), RunClaims(runs, NEXT):
        refused(pool, Reason.CANCELLED, run=NEXT)
    assert os.listdir(pool / NAME / "jobs") == []


def test_a_worker_without_the_pool_says_what_it_lacks(pool: Path) -> None:
    message = refused(pool / "missing", Reason.POOL_NOT_VISIBLE)
    assert f"does not find run {RUN} in the staging pool" in message
    assert "Mount the pool of the run there, under the same path, and start the worker as the same user." in message
    assert "No such file or directory" in message
    assert not (pool / "missing").exists()


def test_a_worker_that_sees_an_empty_directory_in_place_of_the_pool_creates_nothing(pool: Path) -> None:
    """The pool is not mounted on this host."""
    assert "There has been no run in it" in refused(pool, Reason.POOL_NOT_VISIBLE)
    assert list(pool.iterdir()) == []


def test_a_worker_that_sees_another_pool_says_so(pool: Path, runs: RunsDirectory) -> None:
    with running(runs, NEXT):
        assert f"The run in it is {NEXT}." in refused(pool, Reason.POOL_NOT_VISIBLE)
    assert "No run is under way in it." in refused(pool, Reason.POOL_NOT_VISIBLE)


def test_a_worker_whose_mount_does_not_share_locks_says_so(pool: Path, runs: RunsDirectory) -> None:
    with RunClaims(runs, RUN) as claims:
        (pool / NAME / "run.lock").touch()
        claims.assign("db1")
        assert "or this mount does not share locks" in refused(pool, Reason.POOL_NOT_VISIBLE)


@pytest.mark.usefixtures("root")
def test_a_worker_of_another_user_says_so(pool: Path, claims: RunClaims) -> None:
    def work() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        assert "Permission denied" in refused(pool, Reason.POOL_NOT_VISIBLE)

    pool.chmod(0o755)
    run_in_fork(work)


@pytest.mark.usefixtures("claims")
def test_a_worker_without_free_descriptors_blames_its_limit_and_not_the_mount(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open
    opened = 0

    def run_out(*arguments: Any, **options: Any) -> int:
        nonlocal opened
        opened += 1
        if opened > free:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open_file(*arguments, **options)

    for free in itertools.count():
        opened = 0
        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "open", run_out)
                with claim(pool):
                    break
        except StageError as exc:
            assert exc.reason is Reason.OUT_OF_DESCRIPTORS, (free, exc)
            assert "ulimit -n" in str(exc)
    assert free > 5


# Two workers for one peer


def test_a_second_worker_waits_until_the_first_has_ended(pool: Path, claims: RunClaims) -> None:
    first = claim(pool).__enter__()
    with ThreadPoolExecutor(1) as threads:
        second = claim(pool)
        entered = threads.submit(second.__enter__)
        first.require_current()
        assert not entered.done()
        first.__exit__()
        entered.result(timeout=30)
        second.require_current()
        with pytest.raises(Cancelled):
            first.require_current()
        second.__exit__()


def test_a_worker_that_hangs_keeps_the_peer_from_the_workers_of_later_runs(pool: Path, runs: RunsDirectory) -> None:
    """Also from the threads of a run: what a hanging worker renames when it goes on must not be newer files."""
    with running(runs):
        old = claim(pool).__enter__()
    with running(runs, NEXT) as claims:
        message = refused(pool, Reason.PEER_LOCKED, run=NEXT, patience=0)
        assert "Another worker is still staging this peer" in message
        claims.assign("web1")
        with claim(pool, "web1", NEXT) as other:
            other.require_current()
        old.__exit__()
        with claim(pool, run=NEXT) as worker:
            worker.require_current()


@pytest.mark.parametrize("way", [stop, release])
def test_a_worker_that_waits_for_another_ends_when_nobody_wants_it_any_more(
    pool: Path,
    runs: RunsDirectory,
    claims: RunClaims,
    way: Callable[[RunsDirectory, RunClaims], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer_claim.time, "sleep", lambda seconds: way(runs, claims))  # while it waits
    with claim(pool):
        refused(pool, Reason.CANCELLED, patience=1)


def test_a_killed_worker_keeps_nobody_from_the_peer(pool: Path, claims: RunClaims) -> None:
    """A scheduler such as Dask's runs the task again."""
    pid = os.fork()
    if pid == 0:
        try:
            claim(pool).__enter__()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    with claim(pool, patience=0) as worker:
        worker.require_current()


def test_a_fork_of_a_worker_keeps_neither_its_lock_nor_its_rights(pool: Path, claims: RunClaims) -> None:
    stopped = threading.Event()
    with contextlib.ExitStack() as after:
        with claim(pool, on_stop=stopped.set) as worker:

            def publish() -> None:
                with pytest.raises(Cancelled):
                    worker.require_current()
                worker.__exit__()

            after.enter_context(forked(publish))
            worker.require_current()
        with claim(pool, patience=0):
            pass


def test_a_fork_of_a_worker_can_be_stopped_as_well(
    pool: Path, claims: RunClaims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_claim, "_INTERVAL", 0.005)
    claims.assign("web1")

    def work() -> None:
        stopped = threading.Event()
        with claim(pool, "web1", on_stop=stopped.set):
            claims.release("web1")
            assert stopped.wait(30)

    with claim(pool, on_stop=os.abort):
        run_in_fork(work)


def test_workers_in_other_processes_claim_their_peers(pool: Path, claims: RunClaims) -> None:
    peers = [f"db{number}" for number in range(8)]
    for peer in peers:
        claims.assign(peer)
    with ProcessPoolExecutor(2) as executor:
        assert list(executor.map(work_on, [str(pool)] * 8, peers)) == peers
    assert [claims.seconds_since_heartbeat(peer) for peer in peers] == [0.0] * 8


def work_on(pool: str, peer: str) -> str:
    with PeerClaim(pool, RUN, peer, on_stop=os.abort) as worker:
        worker.require_current()
    return peer


#: Names that a plan accepts, and pairs of them that a suffix would confuse.
NAMES = ["db1", "db1.new", "db1.lock", "new-0", "[::1]", "fe80::1%eth0", "x" * 255, "é", "current", "CON"]


def test_every_name_of_a_peer_has_a_claim_of_its_own(pool: Path, claims: RunClaims) -> None:
    with contextlib.ExitStack() as stack:
        workers = []
        for name in NAMES:
            claims.assign(name)
            workers.append(stack.enter_context(claim(pool, name, patience=0)))
        for worker in workers:
            worker.require_current()
        claims.release("db1")
        with pytest.raises(Cancelled):
            workers[0].require_current()
        for worker in workers[1:]:
            worker.require_current()


# Heartbeats


def test_a_heartbeat_is_as_old_as_the_last_change_that_the_run_saw(pool: Path, runs: RunsDirectory) -> None:
    clock = Clock()
    job = pool / NAME / "jobs" / "db1"
    with running(runs, clock=clock) as claims:
        assert claims.seconds_since_heartbeat("db1") is None
        clock.now = 1000
        assert claims.seconds_since_heartbeat("db1") is None
        with claim(pool):
            assert claims.seconds_since_heartbeat("db1") == 0
            clock.now += 7
            assert claims.seconds_since_heartbeat("db1") == 7
            os.utime(job, (0, 0))  # the clock of the worker's host says 1970
            assert claims.seconds_since_heartbeat("db1") == 0
            clock.now += 120
            assert claims.seconds_since_heartbeat("db1") == 120
            claims.assign("db1")
            assert claims.seconds_since_heartbeat("db1") is None


def test_the_heartbeat_of_a_worker_that_removed_its_job_goes_on_ageing(pool: Path, runs: RunsDirectory) -> None:
    clock = Clock()
    with running(runs, clock=clock) as claims, claim(pool):
        assert claims.seconds_since_heartbeat("db1") == 0
        (pool / NAME / "jobs" / "db1").unlink()
        clock.now += 30
        assert claims.seconds_since_heartbeat("db1") == 30


def test_a_worker_elsewhere_sends_heartbeats(pool: Path, claims: RunClaims, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_claim, "_INTERVAL", 0.005)
    monkeypatch.setattr(peer_claim, "_HEARTBEAT", 0.01)
    job = pool / NAME / "jobs" / "db1"
    stopped = threading.Event()
    with claim(pool, on_stop=stopped.set):
        for _ in range(3):
            os.utime(job, (0, 0))
            wait_until(lambda: job.stat().st_mtime > 0)
    assert not stopped.is_set()


def test_one_worker_that_cannot_be_stopped_costs_the_others_nothing(
    pool: Path, claims: RunClaims, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(peer_claim, "_INTERVAL", 0.005)
    claims.assign("web1")
    stopped = threading.Semaphore(0)

    def fail() -> None:
        stopped.release()
        raise RuntimeError("a bug")

    with claim(pool, on_stop=fail), claim(pool, "web1", on_stop=stopped.release):
        claims.stop()
        for _ in range(8):
            assert stopped.acquire(timeout=30)
    assert "db1: the worker cannot be stopped" in caplog.text


def test_a_disk_error_does_not_stop_a_worker_before_it_publishes(
    pool: Path, claims: RunClaims, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    stopped = threading.Event()
    with claim(pool, on_stop=stopped.set) as worker, monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        worker.keep()
        assert not stopped.is_set()


# The run


def test_a_run_that_ends_leaves_no_job(pool: Path, runs: RunsDirectory) -> None:
    with running(runs) as claims:
        claims.assign("web1")
    assert os.listdir(pool / NAME / "jobs") == []
    assert sorted(os.listdir(pool / NAME)) == ["ended", "jobs", "peers", "run.lock"]


def test_what_killed_writers_have_left_is_removed_by_the_next_run(pool: Path, runs: RunsDirectory) -> None:
    (pool / NAME / "new-0123456789abcdef").write_bytes(b"half")
    with running(runs):
        assert "new-0123456789abcdef" not in os.listdir(pool / NAME)


def test_a_fork_that_leaves_the_block_does_not_end_the_run(pool: Path, runs: RunsDirectory) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(runs))
        with claim(pool) as worker:
            run_in_fork(stack.close)
            worker.require_current()


def test_a_run_can_stop_only_itself(pool: Path, runs: RunsDirectory) -> None:
    earlier = RunClaims(runs, RUN)
    with running(runs, NEXT), claim(pool, run=NEXT) as worker:
        earlier.stop()
        worker.require_current()


@pytest.mark.usefixtures("root")
def test_a_full_disk_does_not_keep_a_run_from_stopping_its_workers(tmp_path: Path) -> None:
    with (
        tmpfs(tmp_path / "small", "size=64k,nr_inodes=40") as pool,
        RunsDirectory(str(pool)) as runs,
        running(runs) as claims,
    ):
        claims.assign("web1")
        with claim(pool) as worker, claim(pool, "web1") as other:
            fill(pool / "ballast")
            with pytest.raises(TargetError, match="The job web1 cannot be created: No space left"):
                claims.assign("web1")
            claims.release("web1")
            with pytest.raises(Cancelled):
                other.require_current()
            worker.require_current()
            claims.stop()
            with pytest.raises(Cancelled):
                worker.require_current()
