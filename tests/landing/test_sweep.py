"""What killed runs left is removed; what running ones use, and what is not ours, is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peerstage import sweep
from peerstage.landing import DirectoryLanding
from peerstage.landing.private import sweep_directory
from peerstage.records import Entry
from peerstage.staging import stage
from peerstage.testing.contract import landed
from peerstage.testing.memory import MemoryFile, MemoryTransport


def leave_behind(target: Path) -> str:
    """Let a run into *target* be killed in its middle; return the name of what it left."""
    pid = os.fork()
    if pid == 0:
        landing = DirectoryLanding(str(target))
        landing.__enter__()
        landing.open(Entry(b"a", 6)).write(0, [b"abc"])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = [path.name for path in target.iterdir() if path.name.startswith(".peerstage-")]
    return left


def test_the_next_run_removes_what_a_killed_one_left(target: Path) -> None:
    leave_behind(target)
    stage(MemoryTransport({b"/c": {b"a": MemoryFile(b"a")}}), b"/c", str(target))
    assert landed(target) == {b"a": b"a"}


def test_sweep_finds_leftovers_in_whichever_day_s_directory_they_lie(tmp_path: Path) -> None:
    days = [tmp_path / "2026" / "11" / day / "db1" for day in ("21", "22", "23")]
    for day in days:
        day.mkdir(parents=True)
        (day / "staged").write_bytes(b"staged")
    expected = [str(day / leave_behind(day)) for day in days[:2]]
    assert sorted(sweep(tmp_path)) == sorted(expected)
    assert [landed(day) for day in days] == [{b"staged": b"staged"}] * 3
    assert sweep(str(tmp_path)) == []


def test_a_run_that_lives_is_not_swept(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        slot = landing.open(Entry(b"a", 1))
        slot.write(0, [b"a"])
        code = f"from peerstage import sweep; print(sweep({str(target)!r}))"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert out.stdout.strip() == "[]"
        slot.finish()
        landing.commit()
    assert landed(target) == {b"a": b"a"}


def test_what_only_looks_like_ours_is_left_alone(target: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").write_bytes(b"precious")
    (target / ".peerstage-link").symlink_to(precious)
    (target / ".peerstage-file").write_bytes(b"file")
    foreign = target / ".peerstage-foreign"
    foreign.mkdir()
    (foreign / "lock").touch()
    if os.geteuid() == 0:
        os.chown(foreign, 12345, 12345)
    assert sweep(target) == ([] if os.geteuid() == 0 else [str(foreign)])
    assert (precious / "lock").read_bytes() == b"precious"
    assert (target / ".peerstage-link").is_symlink()
    assert (target / ".peerstage-file").exists()


def test_links_in_a_leftover_are_removed_not_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    left = target / leave_behind(target)
    (left / "planted").symlink_to(tmp_path / "precious")
    assert sweep(target) == [str(left)]
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_leftover_without_a_lock_is_removed_only_if_it_is_empty(target: Path) -> None:
    (target / ".peerstage-empty").mkdir()
    (target / ".peerstage-full").mkdir()
    (target / ".peerstage-full" / "0").touch()
    fd = os.open(target, os.O_RDONLY)
    try:
        assert sweep_directory(fd) == [".peerstage-empty"]
    finally:
        os.close(fd)


@pytest.mark.parametrize("workers", [6])
def test_runs_and_sweeps_at_once_do_not_disturb_each_other(target: Path, workers: int) -> None:
    def work(number: int) -> int:
        if number % 3 == 2:
            for _ in range(20):
                sweep(target)
            return 0
        done = 0
        for turn in range(10):
            name = b"%d-%d" % (number, turn)
            stage(MemoryTransport({b"/c": {name: MemoryFile(name)}}), b"/c", str(target), durable=False)
            done += 1
        return done

    with ThreadPoolExecutor(workers) as pool:
        assert sum(pool.map(work, range(workers))) == 40
    assert landed(target) == {b"%d-%d" % (n, t): b"%d-%d" % (n, t) for n in (0, 1, 3, 4) for t in range(10)}
