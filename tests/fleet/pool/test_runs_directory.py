"""The directory for runs in a pool: nobody else can plant it, and files in it are whole or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import sweep
from peerstage.errors import TargetError
from peerstage.fleet.pool.run_lock import RunLock
from peerstage.fleet.pool.runs_directory import NAME, RunsDirectory
from peerstage.reasons import Reason
from support.children import run_in_fork
from support.kills import each_instant

pytestmark = pytest.mark.usefixtures("leaves_nothing")

NOBODY = 65534


def mode_of(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


def open_refused(pool: Path, reason: Reason = Reason.TARGET_INTERFERED) -> str:
    with pytest.raises(TargetError) as caught:
        RunsDirectory(str(pool))
    assert caught.value.reason is reason
    return str(caught.value)


def test_it_is_created_for_this_user_alone_whatever_the_umask(pool: Path) -> None:
    before = os.umask(0)
    try:
        with RunsDirectory(str(pool)) as runs:
            runs.write("file", b"content")
    finally:
        os.umask(before)
    assert mode_of(pool / NAME) == 0o700
    assert mode_of(pool / NAME / "file") == 0o600


def test_a_pool_that_does_not_exist_is_not_created(pool: Path) -> None:
    missing = pool / "not mounted"
    message = open_refused(missing, Reason.TARGET_MISSING)
    assert f"mkdir -p '{missing}'`, or mount it" in message
    assert not missing.exists()


def test_nobody_is_told_to_create_a_pool_where_a_file_lies(pool: Path) -> None:
    (pool / "file").touch()
    message = open_refused(pool / "file", Reason.TARGET_NOT_A_DIRECTORY)
    assert "Name another directory, or move the file out of the way." in message
    assert "mkdir" not in message


def test_a_pool_without_runs_has_no_such_directory_and_gets_none_by_looking(pool: Path) -> None:
    assert RunsDirectory.find(str(pool)) is None
    assert list(pool.iterdir()) == []


def test_looking_into_a_pool_that_does_not_exist_is_an_error(pool: Path) -> None:
    with pytest.raises(TargetError, match="mount it"):
        RunsDirectory.find(str(pool / "missing"))


def test_a_symlink_in_its_place_is_neither_followed_nor_replaced(pool: Path, tmp_path: Path) -> None:
    (pool / NAME).symlink_to(tmp_path)
    assert f"mv {pool}/{NAME} {pool}/{NAME}.foreign" in open_refused(pool)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_its_place_is_refused(pool: Path) -> None:
    (pool / NAME).write_bytes(b"")
    assert "It is not a directory" in open_refused(pool)


@pytest.mark.usefixtures("root")
def test_a_directory_of_another_user_is_refused(pool: Path) -> None:
    """The owner of the pool has planted it before the first run."""
    (pool / NAME).mkdir(mode=0o700)
    os.chown(pool / NAME, NOBODY, NOBODY)
    assert f"belongs to another user ({NOBODY})" in open_refused(pool)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_directory_that_others_can_write_to_is_refused(pool: Path, mode: int) -> None:
    (pool / NAME).mkdir()
    (pool / NAME).chmod(mode)
    assert "Other users can write to it" in open_refused(pool)


def test_another_directory_of_this_user_that_was_renamed_to_it_is_refused(pool: Path) -> None:
    """The owner of the pool may rename root's directories in it; we would replace and remove files there."""
    (pool / NAME / "jobs").mkdir(parents=True, mode=0o700)
    (pool / NAME / "jobs" / "precious").touch()
    assert "none of runs" in open_refused(pool)
    assert (pool / NAME / "jobs" / "precious").exists()


def test_records_whose_lock_file_somebody_removed_are_still_ours(runs: RunsDirectory) -> None:
    runs.write("20261124T021502.417Z-9f3c.json", b"{}")
    RunsDirectory(runs.staging).close()


@pytest.mark.usefixtures("root")
def test_another_user_is_told_who_can_read_it(pool: Path, runs: RunsDirectory) -> None:
    def look() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        assert "Be the user who" in open_refused(pool, Reason.TARGET_NOT_WRITABLE)

    pool.chmod(0o755)
    run_in_fork(look)


def test_a_directory_that_is_replaced_during_a_run_changes_nothing(pool: Path, runs: RunsDirectory) -> None:
    (pool / NAME).rename(pool / "moved")
    (pool / NAME).mkdir()
    runs.write("file", b"content")
    assert (pool / "moved" / "file").read_bytes() == b"content"
    assert list((pool / NAME).iterdir()) == []


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"x")
    path.symlink_to(target)


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize(
    ("make", "code"), [(fifo, errno.EINVAL), (link, errno.ELOOP), (Path.mkdir, errno.EINVAL), (huge, errno.EFBIG)]
)
def test_what_is_not_a_small_file_is_not_read(
    pool: Path, runs: RunsDirectory, make: Callable[[Path], None], code: int
) -> None:
    make(pool / NAME / "file")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        runs.read("file", 1000)
    assert caught.value.errno == code


def test_a_file_is_the_old_or_the_new_one_whenever_its_writer_is_killed(pool: Path, runs: RunsDirectory) -> None:
    runs.write("file", b"old" * 1000)
    found = []
    for _ in each_instant(lambda: runs.write("file", b"new" * 1000)):
        found.append((pool / NAME / "file").read_bytes()[:3])
        assert (pool / NAME / "file").stat().st_size == 3000
        runs.remove_unfinished()
        assert os.listdir(pool / NAME) == ["file"]
    assert found == sorted(found, reverse=True)
    assert set(found) == {b"old", b"new"}


def test_a_file_is_written_although_a_run_begins_and_removes_what_is_unfinished(
    pool: Path, runs: RunsDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, beginning = os.fsync, [runs]

    def begin_run(fd: int) -> None:
        fsync(fd)
        while beginning:
            beginning.pop().remove_unfinished()

    monkeypatch.setattr(os, "fsync", begin_run)
    runs.write("file", b"new")
    assert beginning == []
    assert os.listdir(pool / NAME) == ["file"]
    assert (pool / NAME / "file").read_bytes() == b"new"


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_file_that_cannot_be_written_is_unchanged(
    pool: Path, runs: RunsDirectory, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    runs.write("file", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(TargetError, match="It failed: No space left") as caught, runs.errors("It failed"):
            runs.write("file", b"new")
    assert caught.value.reason is Reason.NO_SPACE
    assert os.listdir(pool / NAME) == ["file"]
    assert runs.read("file", 10) == b"old"


def test_a_sweep_of_the_pool_leaves_it_alone(pool: Path, runs: RunsDirectory) -> None:
    with RunLock(runs, "r"):
        runs.write("20261124T021502.417Z-9f3c.json", b"{}")
    before = sorted(os.listdir(pool / NAME))
    assert sweep(pool) == []
    assert sorted(os.listdir(pool / NAME)) == before
