"""The sweep removes what killed runs left, and nothing of live runs or of others."""

from __future__ import annotations

import errno
import functools
import logging
import os
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from target_cases import (
    NOBODY,
    Child,
    FailsAt,
    memory_peer,
    memory_peer_of,
    private_directory_of,
    requires_mount,
    run_in_child,
    stage_into,
)

from peerstage import sweep
from peerstage.errors import TargetError
from peerstage.records import Entry
from peerstage.stage_options import StageOptions
from peerstage.target import DirectoryTarget
from peerstage.target import private_directory as private_module
from peerstage.target.sweep import sweep_directory
from peerstage.target.walk import walk
from peerstage.testing.contract import files_in
from support.filesystems import tmpfs
from support.incoming import admit_one


def leave_stale(target: Path) -> Path:
    """Kill a run into *target* halfway; return its private directory."""
    before = set(os.listdir(target))
    pid = os.fork()
    if pid == 0:
        staging_target = DirectoryTarget(str(target))
        staging_target.__enter__()
        admit_one(staging_target, Entry(b"a", 6)).write(0, [b"abc"])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = set(os.listdir(target)) - before
    assert sorted(os.listdir(target / left)) == ["0", "lock"]
    return target / left


@contextmanager
def running(target: Path) -> Iterator[Path]:
    """Run a stage into *target* in another process until the block ends; yield its private directory."""
    started, done = os.pipe(), os.pipe()

    def run() -> None:
        os.close(done[1])
        with DirectoryTarget(str(target)) as staging_target:
            incoming = admit_one(staging_target, Entry(b"a", 3))
            incoming.write(0, [b"abc"])
            os.write(started[1], os.fsencode(private_directory_of(target).name))
            os.read(done[0], 1)
            incoming.finish()
            staging_target.commit()

    child = Child(run)
    try:
        yield target / os.fsdecode(os.read(started[0], 100))
    finally:
        for fd in (*started, *done):
            os.close(fd)
        child.wait()


def swept(target: Path) -> list[str]:
    """Sweep only *target*, as the next run does; return the removed names."""
    fd = os.open(target, os.O_RDONLY)
    try:
        return sweep_directory(fd)
    finally:
        os.close(fd)


# Killed runs


def test_the_next_run_removes_the_private_directory_of_a_killed_one(target: Path) -> None:
    leave_stale(target)
    stage_into(target, memory_peer(b=b"b"))
    assert files_in(target) == {b"b": b"b"}


def test_the_next_run_removes_it_even_if_it_fails(target: Path) -> None:
    leave_stale(target)

    def cut_off(written: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage_into(target, memory_peer_of({b"b": b"b"}, before_write=cut_off))
    assert files_in(target) == {}


def test_several_stale_directories_are_removed_at_once(target: Path) -> None:
    (target / "staged").write_bytes(b"staged")
    left = {leave_stale(target).name}
    for name in (".peerstage-00000001", ".peerstage-00000002"):
        (target / name).mkdir()
        left.add(name)
    assert set(swept(target)) == left
    assert files_in(target) == {b"staged": b"staged"}


@pytest.mark.parametrize("as_path", [str, Path])
def test_sweep_finds_stale_directories_in_every_daily_directory(
    tmp_path: Path, as_path: Callable[[Path], str | Path]
) -> None:
    pool = tmp_path / "pool"
    days = [pool, *(pool / "2026" / "11" / day / "db1" for day in ("21", "22", "23"))]
    for day in days:
        day.mkdir(parents=True, exist_ok=True)
        (day / "staged").write_bytes(b"staged")
    expected = [str(leave_stale(day)) for day in days[:3]]
    assert sorted(sweep(as_path(pool))) == sorted(expected)
    assert [files_in(day) for day in days[1:]] == [{b"staged": b"staged"}] * 3
    assert sorted(os.listdir(pool)) == ["2026", "staged"]
    assert sweep(as_path(pool)) == []


def test_sweep_follows_a_symlink_to_the_root_and_none_below_it(tmp_path: Path) -> None:
    pool, elsewhere = tmp_path / "pool", tmp_path / "elsewhere"
    for path in (pool, elsewhere):
        path.mkdir()
    (pool / "link").symlink_to(elsewhere)
    (tmp_path / "root").symlink_to(pool)
    left, other = leave_stale(pool), leave_stale(elsewhere)
    assert sweep(tmp_path / "root") == [str(tmp_path / "root" / left.name)]
    assert other.is_dir()
    assert os.listdir(pool) == ["link"]


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_sweep_of_anything_but_a_directory_is_an_error(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match=f"{kind}: It cannot be swept"):
        sweep(tmp_path / kind)
    assert os.listdir(tmp_path) == ["file"]


def test_two_sweeps_of_a_missing_root_at_once_are_two_errors(tmp_path: Path) -> None:
    def attempt(number: int) -> str:
        with pytest.raises(TargetError) as raised:
            sweep(tmp_path / "missing")
        return str(raised.value)

    with ThreadPoolExecutor(2) as pool:
        assert len([error for error in pool.map(attempt, range(2)) if "cannot be swept" in error]) == 2
    assert not (tmp_path / "missing").exists()


# Live runs


def test_a_live_run_in_another_process_is_not_swept(target: Path) -> None:
    with running(target) as private:
        assert sweep(target) == []
        assert swept(target) == []
        stage_into(target, memory_peer(b=b"b"))
        assert sorted(os.listdir(private)) == ["0", "lock"]
    assert files_in(target) == {b"a": b"abc", b"b": b"b"}


def test_a_live_run_in_this_process_is_not_swept(target: Path) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        memory_peer(a=b"a").pull(b"/c", staging_target)
        assert sweep(target) == []
        stage_into(target, memory_peer(b=b"b"))
        staging_target.commit()
    assert files_in(target) == {b"a": b"a", b"b": b"b"}


def test_a_stale_directory_beside_a_live_run_is_swept(target: Path) -> None:
    left = leave_stale(target)
    with DirectoryTarget(str(target)) as staging_target:  # sweeps as it begins
        assert not left.exists()
        left = leave_stale(target)
        assert sweep(target) == [str(left)]
        memory_peer(a=b"a").pull(b"/c", staging_target)
        staging_target.commit()
    assert files_in(target) == {b"a": b"a"}


def test_the_lock_is_released_with_its_process(target: Path) -> None:
    lock = leave_stale(target) / "lock"
    assert lock.stat().st_size == 0
    assert len(sweep(target)) == 1


# Directories of others


def test_a_symlink_with_our_prefix_is_neither_removed_nor_followed(target: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in ("lock", "0"):
        (precious / name).write_bytes(b"precious")
    (target / ".peerstage-deadbeef").symlink_to(precious)
    assert sweep(target) == []
    assert files_in(precious) == {b"lock": b"precious", b"0": b"precious"}
    assert (target / ".peerstage-deadbeef").is_symlink()


def test_a_file_and_a_fifo_with_our_prefix_are_not_removed(target: Path) -> None:
    (target / ".peerstage-00000000").write_bytes(b"file")
    os.mkfifo(target / ".peerstage-11111111")
    assert sweep(target) == []
    stage_into(target, memory_peer(a=b"a"))
    assert sorted(os.listdir(target)) == [".peerstage-00000000", ".peerstage-11111111", "a"]


@pytest.mark.usefixtures("root")
def test_a_private_directory_of_another_user_is_not_removed(public_path: Path) -> None:
    if os.geteuid() != 0:
        raise RuntimeError("Only root can make files of two users: run the tests as root.")
    target = public_path / "target"
    target.mkdir()
    target.chmod(0o777)
    mine = leave_stale(target)
    mine.chmod(0o777)
    (mine / "lock").chmod(0o666)
    run_in_child(lambda: sweep(target) == [] or pytest.fail("root's directory was swept"), user=NOBODY)
    assert sorted(os.listdir(mine)) == ["0", "lock"]
    os.chown(mine, NOBODY, NOBODY)
    assert sweep(target) == []
    assert sorted(os.listdir(mine)) == ["0", "lock"]


def test_links_in_a_stale_directory_are_removed_and_not_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    left = leave_stale(target)
    (left / "planted").symlink_to(tmp_path / "precious")
    (left / "directory").symlink_to(tmp_path)
    os.link(tmp_path / "precious", left / "hard")
    assert sweep(target) == [str(left)]
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_directory_whose_lock_is_a_symlink_is_not_removed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    left = leave_stale(target)
    (left / "lock").unlink()
    (left / "lock").symlink_to(tmp_path / "precious")
    assert sweep(target) == []
    assert sorted(os.listdir(left)) == ["0", "lock"]
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_directory_with_our_prefix_and_no_lock_is_removed_only_if_it_is_empty(target: Path) -> None:
    empty, full = ".peerstage-00000000", ".peerstage-11111111"
    (target / empty).mkdir()
    (target / full).mkdir()
    (target / full / "0").touch()
    assert swept(target) == [empty]
    assert os.listdir(target / full) == ["0"]


def test_the_records_of_a_pool_are_not_swept_although_nobody_holds_their_lock(
    target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (".peerstage-runs", ".peerstage-prune", ".peerstage-0123abcd0"):
        (target / name / "peers").mkdir(parents=True)
        (target / name / "lock").touch()
        (target / name / "record").touch()
    (target / ".peerstage-empty").mkdir()
    left = leave_stale(target)
    assert sweep(target) == [str(left)]
    for name in (".peerstage-runs", ".peerstage-prune", ".peerstage-0123abcd0"):
        assert sorted(os.listdir(target / name)) == ["lock", "peers", "record"]
    assert (target / ".peerstage-empty").is_dir()
    assert "could not" not in caplog.text


@pytest.mark.usefixtures("root")
@requires_mount
def test_a_failed_removal_is_logged_and_does_not_stop_the_sweep(target: Path, caplog: pytest.LogCaptureFixture) -> None:
    stuck = leave_stale(target)
    other = target / "other"
    other.mkdir()
    left = leave_stale(other)
    with tmpfs(stuck / "mounted", "size=1m"), caplog.at_level(logging.WARNING, "peerstage.target"):
        assert sweep(target) == [str(left)]
        stage_into(target, memory_peer(a=b"a"))
    assert stuck.name in caplog.text
    assert files_in(target)[b"a"] == b"a"
    assert "lock" in os.listdir(stuck), "the next sweep still recognizes it"


def test_directories_of_a_killed_command_are_removed_with_their_content(target: Path, tmp_path: Path) -> None:
    left = leave_stale(target)
    deep = left / "workspace"
    for number in range(400):
        deep = deep / str(number % 10)
        deep.mkdir(parents=True)
        (deep / "file").touch()
        (deep / "lock").touch()
    (deep / "link").symlink_to(tmp_path)
    (left / "closed").mkdir(0)
    (tmp_path / "precious").touch()
    assert sweep(target) == [str(left)]
    assert os.listdir(target) == []
    assert (tmp_path / "precious").exists()


@pytest.mark.usefixtures("root")
@requires_mount
def test_a_file_system_that_becomes_read_only_stops_neither_sweep_nor_cleanup(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=1m") as target:
        leave_stale(target)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], check=True)
        assert sweep(tmp_path) == []
        subprocess.run(["mount", "-o", "remount,bind,rw", str(target)], check=True)
        assert len(sweep(tmp_path)) == 1


def test_a_tree_deeper_than_stack_and_descriptors_allow_is_swept(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    left = leave_stale(pool)
    depth = 1300

    def sweep_with_few_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        assert len(sweep(pool)) == 2

    fd = os.open(pool, os.O_RDONLY)
    for number in range(depth):
        for name in ("deep", "beside"):
            os.mkdir(name, dir_fd=fd)
        if number == depth - 1:
            os.rename(left, ".peerstage-deadbeef", dst_dir_fd=fd)
        fd, above = os.open("deep", os.O_RDONLY, dir_fd=fd), fd
        os.close(above)
    os.close(fd)
    leave_stale(pool)
    run_in_child(sweep_with_few_descriptors)
    assert sweep(pool) == []
    subprocess.run(["rm", "-rf", str(pool)], check=True)


def test_a_directory_that_is_moved_during_the_sweep_does_not_lead_it_elsewhere(tmp_path: Path) -> None:
    pool, elsewhere = tmp_path / "pool", tmp_path / "elsewhere"
    for path in (pool / "a" / "b" / "c", pool / "z", elsewhere):
        path.mkdir(parents=True)
    outside = leave_stale(elsewhere)
    seen = []
    for parts, _fd, _names in walk(str(pool)):
        seen.append("/".join(parts))
        if parts == ["a", "b", "c"]:
            (pool / "a" / "b").rename(elsewhere / "b")
    assert sorted(seen) == ["", "a", "a/b", "a/b/c", "z"]
    assert outside.exists()


@pytest.mark.usefixtures("leaves_nothing")
def test_a_failed_system_call_does_not_stop_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, other = tmp_path / "pool", tmp_path / "other"
    days = [pool / "2026" / day / "db1" for day in ("21", "22")]
    for directory in (*days, other):
        directory.mkdir(parents=True)
    left = leave_stale(other)
    for name in ("open", "scandir", "fstat", "dup", "close", "unlink", "rmdir", "listdir"):
        for number in range(1, 40):
            for day in days:
                if not any(one.name.startswith(".peerstage-") for one in day.iterdir()):
                    shutil.copytree(left, day / left.name)
            fails = FailsAt(getattr(os, name), errno.EIO, number=number, takes_effect=name == "close")
            with monkeypatch.context() as patch:
                patch.setattr(os, name, fails)
                try:
                    sweep(pool)
                except TargetError as exc:
                    assert str(pool) in str(exc)
            if fails.calls < number:
                break
        assert len(os.listdir(pool / "2026")) == 2


# Concurrent runs and sweeps


@pytest.mark.parametrize("owner_is", ["at work", "done"])
def test_a_run_that_starts_during_a_sweep_is_neither_removed_nor_logged(
    target: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, owner_is: str
) -> None:
    private = target / ".peerstage-00000001"
    private.mkdir()
    rmdir = os.rmdir

    def when_its_owner_has_made_the_lock(path: Any, **options: Any) -> None:
        (private / "lock").touch()
        with pytest.raises(OSError, match="not empty") as raised:
            rmdir(path, **options)
        if owner_is == "done":
            (private / "lock").unlink()
            rmdir(private)
        raise raised.value

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", when_its_owner_has_made_the_lock)
        assert swept(target) == []
    assert caplog.text == ""


def test_a_directory_with_our_prefix_and_other_content_is_logged(
    target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (target / ".peerstage-00000000").mkdir()
    (target / ".peerstage-00000000" / "file").touch()
    assert swept(target) == []
    assert ".peerstage-00000000 could not be removed: Directory not empty" in caplog.text


def test_a_private_name_that_exists_is_not_used(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (target / ".peerstage-00000000").write_bytes(b"file")
    tokens = iter(["00000000", "00000000", "11111111"])
    monkeypatch.setattr(private_module.secrets, "token_hex", lambda size: next(tokens))
    stage_into(target, memory_peer(a=b"a"))
    assert files_in(target) == {b".peerstage-00000000": b"file", b"a": b"a"}


@pytest.mark.parametrize("step", ["mkdir", "open", "flock"])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_sweep_between_any_two_steps_of_a_start_does_not_stop_the_run(
    target: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    module = private_module.fcntl if step == "flock" else os
    original, times = getattr(module, step), iter(range(100))

    def then_swept(path: object, *arguments: object, **options: object) -> object:
        if step == "flock" and next(times) == 0:
            with monkeypatch.context() as patch:
                patch.setattr(module, step, original)
                swept(target)
            return original(path, *arguments, **options)
        result = original(path, *arguments, **options)
        if str(path).startswith(".peerstage-") and next(times) == 0:
            with monkeypatch.context() as patch:
                patch.setattr(module, step, original)
                assert len(swept(target)) == 1
        return result

    monkeypatch.setattr(module, step, then_swept)
    stage_into(target, memory_peer(a=b"a"))
    assert files_in(target) == {b"a": b"a"}


def test_two_runs_into_one_target_at_once_both_succeed_in_threads(target: Path) -> None:
    both = threading.Barrier(2, timeout=20)

    def run(number: int) -> None:
        stage_into(target, memory_peer_of(files_of(number), before_write=lambda written: written or both.wait()))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    check_both(target)


def test_two_runs_into_one_target_at_once_both_succeed_in_processes(target: Path) -> None:
    ready, go = os.pipe(), os.pipe()

    def run(number: int) -> None:
        def meet(written: int) -> None:
            if written == 0:
                os.write(ready[1], b".")
                os.read(go[0], 1)

        stage_into(target, memory_peer_of(files_of(number), before_write=meet))

    children = [Child(functools.partial(run, number)) for number in range(2)]
    for _ in children:
        os.read(ready[0], 1)
    os.write(go[1], b"..")
    for child in children:
        child.wait()
    for fd in (*ready, *go):
        os.close(fd)
    check_both(target)


def files_of(number: int) -> dict[bytes, bytes]:
    return dict.fromkeys((b"own%d" % number, b"common"), b"%d" % number * 1000)


def check_both(target: Path) -> None:
    found = files_in(target)
    assert found.pop(b"common") in (b"0" * 1000, b"1" * 1000)
    assert found == {b"own0": b"0" * 1000, b"own1": b"1" * 1000}


def test_runs_and_sweeps_in_many_processes_never_remove_a_live_run(quick_target: Path) -> None:
    def stage_again_and_again(number: int) -> None:
        for turn in range(100):
            name = b"%d-%d" % (number, turn)
            stage_into(quick_target, memory_peer_of({name: name * 1000}), options=StageOptions(durable=False))

    def sweep_again_and_again() -> None:
        while not (quick_target / "enough").exists():
            sweep(quick_target)

    sweepers = [Child(sweep_again_and_again) for _ in range(2)]
    runs = [Child(functools.partial(stage_again_and_again, number)) for number in range(4)]
    try:
        for run in runs:
            run.wait()
    finally:
        (quick_target / "enough").touch()
        for sweeper in sweepers:
            sweeper.wait()
    names = [b"%d-%d" % (number, turn) for number in range(4) for turn in range(100)]
    assert files_in(quick_target) == {b"enough": b"", **{name: name * 1000 for name in names}}


def test_runs_and_sweeps_in_many_threads_never_remove_a_live_run(quick_target: Path) -> None:
    def work(number: int) -> None:
        for turn in range(30):
            if number % 3 == 2:
                sweep(quick_target)
            else:
                name = b"%d-%d" % (number, turn)
                stage_into(quick_target, memory_peer_of({name: name}), options=StageOptions(durable=False))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    names = [b"%d-%d" % (number, turn) for number in (0, 1, 3, 4) for turn in range(30)]
    assert files_in(quick_target) == {name: name for name in names}
