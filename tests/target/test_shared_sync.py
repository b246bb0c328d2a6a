"""Group commit: how many syncs runs that end together need, and who learns of a failed write."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from target_cases import memory_peer, memory_peer_of, private_directory_of, stage_into

from peerstage.errors import Cancelled, TargetError
from peerstage.stage_options import StageOptions
from peerstage.target import DirectoryTarget, durability, shared_sync
from peerstage.target.manifest import NAMES
from peerstage.target.shared_sync import SharedSync
from peerstage.testing.contract import files_in
from support.children import run_in_fork
from support.filesystems import enlarge_tmpfs, ext4_on_tmpfs, tmpfs

MANY = {b"f%d" % number: b"x" * 100 for number in range(durability.MAX_FSYNCS + 4)}
FAILED = OSError(errno.EIO, "Input/output error")


class SlowDisk:
    """Replaces syncfs: each call begins, and returns or fails when the test says so."""

    def __init__(self) -> None:
        self.calls: list[int] = []  # descriptors
        self._begun = threading.Semaphore(0)
        self._outcomes: list[BaseException | None] = []
        self._may_end = threading.Semaphore(0)

    def syncfs(self, fd: int) -> None:
        self.calls.append(fd)
        self._begun.release()
        assert self._may_end.acquire(timeout=30)
        outcome = self._outcomes.pop(0)
        if outcome is not None:
            raise outcome

    def wait_for_call(self) -> None:
        assert self._begun.acquire(timeout=30)

    def end_call(self, outcome: BaseException | None = None) -> None:
        self._outcomes.append(outcome)
        self._may_end.release()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    slow = SlowDisk()
    monkeypatch.setattr(durability, "syncfs", slow.syncfs)
    return slow


class Runs:
    """Runs on one file system, each of which syncs in a thread of its own."""

    def __init__(self, path: Path, pool: ThreadPoolExecutor, on_exit: ExitStack) -> None:
        self._path = path
        self._pool = pool
        self._on_exit = on_exit

    def begin(self) -> SharedSync:
        fd = os.open(self._path, os.O_RDONLY)
        try:
            run = SharedSync(fd)
        finally:
            os.close(fd)
        self._on_exit.callback(run.close)
        return run

    def sync(self, run: SharedSync, check: Callable[[], object] = lambda: None) -> Future[None]:
        """Return once the run has asked for a sync."""
        has_asked = threading.Event()

        def check_and_tell() -> None:
            has_asked.set()
            check()

        future = self._pool.submit(run.sync, check_and_tell)
        assert has_asked.wait(30)
        return future


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    with ThreadPoolExecutor(16) as pool, ExitStack() as on_exit:
        yield Runs(tmp_path, pool, on_exit)


# Sharing


@pytest.mark.usefixtures("leaves_nothing")
def test_runs_that_ask_while_a_sync_runs_share_the_next_one(runs: Runs, disk: SlowDisk) -> None:
    first = runs.sync(runs.begin())
    disk.wait_for_call()
    others = [runs.sync(runs.begin()) for _ in range(7)]
    assert not any(future.done() for future in others), "the sync that runs may have missed what they wrote"
    disk.end_call()
    first.result(30)
    disk.wait_for_call()
    assert not any(future.done() for future in others)
    disk.end_call()
    for future in others:
        future.result(30)
    assert len(disk.calls) == 2


def test_each_of_two_runs_that_end_one_after_the_other_has_a_sync(runs: Runs, disk: SlowDisk) -> None:
    first, second = runs.begin(), runs.begin()
    for run in (first, second):
        future = runs.sync(run)
        disk.wait_for_call()
        disk.end_call()
        future.result(30)
    assert len(disk.calls) == 2
    assert len(set(disk.calls)) == 1, "they share a descriptor"


def test_runs_on_two_file_systems_do_not_wait_for_each_other(runs: Runs, disk: SlowDisk, root: None) -> None:
    with ExitStack() as on_exit, tmpfs(runs._path / "other", "size=1m") as other, ThreadPoolExecutor() as pool:
        waiting = runs.sync(runs.begin())
        disk.wait_for_call()
        elsewhere = Runs(other, pool, on_exit)
        failing = elsewhere.sync(elsewhere.begin())
        disk.wait_for_call()
        disk.end_call(FAILED)
        disk.end_call()
        outcomes = {future.exception(30) is None for future in (waiting, failing)}
        assert outcomes == {True, False}
        on_exit.close()


@pytest.fixture
def reliable_syncfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the target use syncfs on any file system."""
    monkeypatch.setattr(durability, "is_syncfs_reliable", lambda fd: True)


@pytest.mark.usefixtures("leaves_nothing", "reliable_syncfs")
def test_eight_peers_that_commit_together_need_two_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, peers = [], 8
    have_asked = threading.Semaphore(0)

    def syncfs(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            for _ in range(peers):  # the one that calls, too
                assert have_asked.acquire(timeout=30)

    def stage_peer(number: int) -> None:
        target = tmp_path / str(number)
        target.mkdir()
        checks = 0

        def check() -> None:
            nonlocal checks
            checks += 1
            if checks == len(MANY) + 1:  # once for each file, and then for the sync
                have_asked.release()

        with DirectoryTarget(str(target)) as staging_target:
            memory_peer_of(MANY).pull(b"/c", staging_target)
            together.wait(30)
            staging_target.commit(check)

    together = threading.Barrier(peers)
    monkeypatch.setattr(durability, "syncfs", syncfs)
    with ThreadPoolExecutor(peers) as pool:
        list(pool.map(stage_peer, range(peers)))
    assert len(calls) == 2
    assert all(files_in(tmp_path / str(number)) == MANY for number in range(peers))


@pytest.mark.usefixtures("reliable_syncfs")
def test_a_single_peer_costs_one_sync(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(durability, "syncfs", calls.append)
    stage_into(target, memory_peer_of(MANY))
    assert len(calls) == 1
    stage_into(target, memory_peer(a=b"few files are synced one by one"))
    assert len(calls) == 1


@pytest.mark.usefixtures("reliable_syncfs")
def test_few_files_and_their_manifest_cost_one_sync_if_another_run_has_begun(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    found: list[tuple[int, list[Path]]] = []
    synced_alone: list[bool] = []
    fsync = os.fsync

    def syncfs(fd: int) -> None:
        sizes = [path.stat().st_size for path in private_directory_of(target).iterdir()]
        found.append((sum(size > 0 for size in sizes), [path for path in target.iterdir() if path.is_file()]))

    def recording_fsync(fd: int) -> None:
        synced_alone.append(stat.S_ISREG(os.fstat(fd).st_mode))
        fsync(fd)

    monkeypatch.setattr(durability, "syncfs", syncfs)
    monkeypatch.setattr(os, "fsync", recording_fsync)
    with DirectoryTarget(str(tmp_path / "other")):
        stage_into(target, memory_peer(a=b"1", b=b"2"), options=StageOptions(manifest=True))
    assert found == [(4, [])], "two files, and the two of the manifest, are complete, and none has its name yet"
    assert synced_alone == [False, False], "the directory after the files, and after the manifest"
    assert set(files_in(target)) == {b"a", b"b", *NAMES}


# Errors


def test_an_error_fails_every_run_that_had_begun_and_no_later_one(runs: Runs, disk: SlowDisk) -> None:
    leader, follower, still_writing = runs.begin(), runs.begin(), runs.begin()
    leading = runs.sync(leader)
    disk.wait_for_call()
    following = runs.sync(follower)
    disk.end_call(FAILED)  # the kernel tells this descriptor no second time
    with pytest.raises(OSError, match="Input/output error"):
        leading.result(30)
    disk.wait_for_call()
    later = runs.begin()
    disk.end_call()
    with pytest.raises(OSError, match="Input/output error"):
        following.result(30)
    for run, fails in ((still_writing, True), (later, False), (later, False), (still_writing, True)):
        future = runs.sync(run)
        disk.wait_for_call()
        disk.end_call()
        assert isinstance(future.exception(30), OSError) is fails


def test_a_run_that_begins_while_a_sync_fails_may_have_lost_data(runs: Runs, disk: SlowDisk) -> None:
    leading = runs.sync(runs.begin())
    disk.wait_for_call()
    begun_during_it = runs.begin()
    disk.end_call(FAILED)
    assert leading.exception(30) is not None
    future = runs.sync(begun_during_it)
    disk.wait_for_call()
    disk.end_call()
    assert future.exception(30) is not None


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), MemoryError()])
def test_a_sync_whose_outcome_nobody_saw_counts_as_failed(
    runs: Runs, disk: SlowDisk, interruption: BaseException
) -> None:
    leader, other = runs.begin(), runs.begin()
    leading = runs.sync(leader)
    disk.wait_for_call()
    disk.end_call(interruption)
    assert leading.exception(30) is interruption
    future = runs.sync(other)
    disk.wait_for_call()
    disk.end_call()
    with pytest.raises(OSError, match="interrupted"):
        future.result(30)


@pytest.mark.usefixtures("reliable_syncfs")
def test_a_failed_sync_publishes_none_of_the_runs_that_had_begun(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    outcomes = [FAILED]

    def fail_once(fd: int) -> None:
        if outcomes:
            raise outcomes.pop()

    monkeypatch.setattr(durability, "syncfs", fail_once)
    with DirectoryTarget(str(other)) as begun_earlier:
        memory_peer_of(MANY).pull(b"/c", begun_earlier)
        with pytest.raises(TargetError, match="The disk failed"):
            stage_into(target, memory_peer_of(MANY))
        stage_into(target, memory_peer_of(MANY))
        with pytest.raises(TargetError, match="The disk failed"):
            begun_earlier.commit()
    assert files_in(target) == MANY
    assert files_in(other) == {}


# Waiting


def test_a_run_that_is_cancelled_does_not_wait_for_the_sync_of_another(runs: Runs, disk: SlowDisk) -> None:
    cancelled = threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise Cancelled("Cancelled.")

    leading = runs.sync(runs.begin())
    disk.wait_for_call()
    waiting, patient = runs.sync(runs.begin(), check), runs.sync(runs.begin())
    cancelled.set()
    with pytest.raises(Cancelled):
        waiting.result(30)
    assert not leading.done()
    disk.end_call()
    leading.result(30)
    disk.wait_for_call()
    disk.end_call()
    patient.result(30)


# The descriptor


@pytest.mark.usefixtures("leaves_nothing")
def test_the_last_run_closes_the_descriptor(runs: Runs, disk: SlowDisk, tmp_path: Path) -> None:
    first, second = runs.begin(), runs.begin()
    (fd,) = {run._file_system.fd for run in (first, second)}
    runs._on_exit.pop_all()
    first.close()
    assert os.path.samestat(os.fstat(fd), tmp_path.stat())
    second.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert shared_sync._file_systems == {}


@pytest.mark.usefixtures("reliable_syncfs")
def test_a_forked_child_begins_afresh(
    runs: Runs, disk: SlowDisk, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_run = runs.begin()
    waiting = runs.sync(real_run)
    disk.wait_for_call()

    def stage_in_child() -> None:
        real_run.close()  # it is the parent's
        stage_into(target, memory_peer_of(MANY))
        assert shared_sync._file_systems == {}

    with shared_sync._lock, monkeypatch.context() as patch:
        patch.setattr(durability, "syncfs", lambda fd: os.fstat(fd))
        run_in_fork(stage_in_child)
    disk.end_call()
    waiting.result(30)
    assert files_in(target) == MANY


# The kernel


def test_a_disk_that_fails_fails_each_run_that_wrote_to_it_although_the_kernel_reports_it_once(
    tmp_path: Path, root: None
) -> None:
    with ext4_on_tmpfs(tmp_path, "16m") as disk:
        for name in ("small", "large", "later"):
            (disk / name).mkdir()
        with DirectoryTarget(str(disk / "small")) as small, DirectoryTarget(str(disk / "large")) as large:
            memory_peer_of(MANY).pull(b"/c", small)
            memory_peer_of({**MANY, b"large": os.urandom(1 << 20) * 40}).pull(b"/c", large)
            for run in (large, small):
                with pytest.raises(TargetError, match="The disk failed"):
                    run.commit()
        assert files_in(disk / "small") == files_in(disk / "large") == {}
        enlarge_tmpfs(tmp_path / "tmpfs", "64m")
        stage_into(disk / "later", memory_peer_of(MANY))
        assert files_in(disk / "later") == MANY
