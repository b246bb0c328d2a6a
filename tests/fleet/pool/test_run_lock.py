"""The lock of a pool: one run at a time, and whoever comes second is told who is first."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerstage.errors import RunLocked, TargetError
from peerstage.exit_codes import ExitCode, code_of
from peerstage.fleet.pool.run_lock import LockHolder, RunLock, find_holder
from peerstage.fleet.pool.runs_directory import NAME, RunsDirectory
from support.children import forked, run_in_fork

pytestmark = pytest.mark.usefixtures("leaves_nothing")

RUN = "20261124T021502.417Z-9f3c"


def locked_error(runs: RunsDirectory) -> RunLocked:
    with pytest.raises(RunLocked) as caught, RunLock(runs, "another"):
        pass
    return caught.value


@contextlib.contextmanager
def another_process(pool: Path, run: str = RUN) -> Iterator[int]:
    """A process that opens the pool by itself and holds its lock, until it is killed at the end of the block."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with RunsDirectory(str(pool)) as runs, RunLock(runs, run):
                os.write(writing, b"x")
                signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"x"
        yield pid
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_second_of_two_processes_is_told_who_holds_the_pool(
    pool: Path, runs: RunsDirectory, time_zone: object
) -> None:
    with another_process(pool) as pid:
        error = locked_error(runs)
        holder = find_holder(runs)
    assert holder is not None
    assert (holder.run, holder.pid, holder.host) == (RUN, pid, socket.gethostname())
    assert f"{RUN} (process {pid} on {socket.gethostname()}, since 20" in str(error)
    assert error.message.endswith("Wait until that has ended, then run again.")
    assert str(error).startswith(f"{pool}: ")
    assert code_of(error) is ExitCode.LOCKED
    assert error.transient


def test_a_killed_holder_frees_the_pool_and_what_it_wrote_means_nothing(pool: Path, runs: RunsDirectory) -> None:
    with another_process(pool):
        pass
    assert RUN in (pool / NAME / "run.lock").read_text()
    assert find_holder(runs) is None
    with RunLock(runs, "next"):
        holder = find_holder(runs)
    assert holder is not None
    assert (holder.run, holder.pid) == ("next", os.getpid())


def test_two_locks_of_one_process_exclude_each_other(runs: RunsDirectory) -> None:
    with RunLock(runs, RUN):
        assert RUN in str(locked_error(runs))
    with RunLock(runs, RUN):
        pass


def test_a_fork_does_not_keep_the_lock(runs: RunsDirectory) -> None:
    """Workers of a process pool may outlive a run that is killed."""
    with contextlib.ExitStack() as after:
        with RunLock(runs, RUN):
            after.enter_context(forked())
        assert find_holder(runs) is None
        with RunLock(runs, "next"):
            pass


def test_a_fork_that_leaves_the_block_does_not_free_the_lock(runs: RunsDirectory) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(RunLock(runs, RUN))
        run_in_fork(stack.close)
        holder = find_holder(runs)
    assert holder is not None
    assert holder.run == RUN


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"{}", b"\xff", b"[" * 5000, b'{"run": 1, "pid": "x", "host": "h", "started": 1}'),
        *(b'{"run": "r", "pid": 1, "host": "h", "started": 1e300}', b'{"run": "r", "pid": 1, "host": "h"}'),
        json.dumps({"run": "r", "pid": 7, "host": "h" * 5000, "started": 1}).encode(),
    ],
)
def test_a_lock_with_unreadable_content_is_still_a_lock(pool: Path, runs: RunsDirectory, content: bytes) -> None:
    with another_process(pool):
        (pool / NAME / "run.lock").write_bytes(content)
        assert "in use by another run" in str(locked_error(runs))
        assert find_holder(runs) == LockHolder()


def test_who_holds_the_lock_is_one_printable_line(pool: Path, runs: RunsDirectory) -> None:
    with another_process(pool):
        values = {"run": "a\nb", "pid": 7, "host": "\x1b[2J", "started": 0}
        (pool / NAME / "run.lock").write_text(json.dumps(values))
        assert "a\\nb (process 7 on \\x1b[2J, since 1970" in str(locked_error(runs))


def test_looking_who_holds_the_lock_does_not_keep_others_from_it(
    runs: RunsDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an instant, whoever looks holds the lock."""
    with RunLock(runs, "before"):
        pass
    looking = os.open(f"{runs.path}/run.lock", os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("peerstage.fleet.pool.run_lock.time.sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
    with RunLock(runs, RUN):
        pass
    os.close(looking)


def test_a_pool_without_a_lock_file_is_free(pool: Path, runs: RunsDirectory) -> None:
    assert find_holder(runs) is None
    assert os.listdir(pool / NAME) == []


def test_a_file_system_without_locks_is_refused(runs: RunsDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with pytest.raises(TargetError, match=r"has no locks \(No locks available\)\. Mount it with locks"):
            RunLock(runs, RUN).__enter__()
    with RunLock(runs, RUN):
        pass


def test_a_full_disk_does_not_keep_a_run_from_the_lock(runs: RunsDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with RunLock(runs, RUN):
            assert find_holder(runs) == LockHolder()


@pytest.mark.parametrize("kind", ["symlink", "directory"])
def test_a_lock_file_that_is_no_file_is_refused(pool: Path, runs: RunsDirectory, tmp_path: Path, kind: str) -> None:
    if kind == "symlink":
        (pool / NAME / "run.lock").symlink_to(tmp_path / "elsewhere")
    else:
        (pool / NAME / "run.lock").mkdir()
    with pytest.raises(TargetError, match="The lock cannot be used"):
        RunLock(runs, RUN).__enter__()
    assert list(tmp_path.iterdir()) == []
