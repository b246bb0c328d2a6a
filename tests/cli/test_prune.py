"""``peerstage prune``: output, JSON, exit codes and signals. What it removes is tested in tests/fleet."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.command import Command
from peerstage.cli import prune as prune_verb
from peerstage.cli.prune import PruneResult
from peerstage.fleet.pool.run_lock import RunLock
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.fleet.prune import pruning as prune_module
from peerstage.fleet.prune.report import KeptDay, Kind, PruneReport
from support.quick import quick_directory
from support.staged_pool import StagedPool, noon

COMMAND = Command(None)  # type: ignore[arg-type]  # it needs no server
OLD = ("2026/11/01", "2026/11/02", "2026/11/03")
KEPT = ("2026/11/22", "2026/11/23", "2026/11/24")


class PoolOfPlan(StagedPool):
    """A pool, and a plan in a file."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "staging", "a", "b")
        self.file = root / "plan.toml"
        self.write("keep_days = 3")

    def write(self, line: str) -> None:
        peers = '[defaults]\nuser = "backup"\ncollect_dir = "/collect"\n[peers]\na = {}\nb = {}\n'
        self.file.write_text(f'staging = "{self.path}"\n{line}\n{peers}')

    def __call__(self, *options: str) -> subprocess.CompletedProcess[str]:
        return COMMAND("prune", "--plan", self.file, *options)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolOfPlan]:
    """A pool with three old days: the second is foreign, the third has the last complete night of a third peer."""
    monkeypatch.setattr(prune_module, "time", SimpleNamespace(time=lambda: noon(KEPT[-1])))
    with quick_directory() as path:
        pool = PoolOfPlan(path)
        for day in (*OLD, *KEPT):
            pool.run(day, {"a": {"dump": b"x" * 4096}, **({"laptop": {"dump": b"x"}} if day == OLD[2] else {})})
        (pool.path / OLD[1] / "a" / "notes\x1b[2J").touch()
        yield pool


def test_every_old_day_is_listed_with_what_becomes_of_it(pool: PoolOfPlan) -> None:
    done = pool()
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = done.stdout.splitlines()
    assert first.startswith("       removed 2026/11/01  5 files, ")
    assert others == [
        r"          kept 2026/11/02  a/notes\x1b[2J is not in the manifest",
        "          kept 2026/11/03  the last complete night of laptop (not in the plan)",
        f"{pool.path}: 1 day removed, {first.split(', ')[1]}, 2 kept",
    ]
    assert pool.days() == [*OLD[1:], *KEPT]
    assert pool().stdout.endswith("0 days removed, 0 bytes freed, 2 kept\n")


def test_a_dry_run_lists_the_same_and_removes_nothing(pool: PoolOfPlan) -> None:
    before = pool.tree()
    listed = pool("--dry-run")
    assert (listed.returncode, listed.stderr, pool.tree()) == (0, "", before)
    assert "  would remove 2026/11/01  5 files, " in listed.stdout
    assert ": 1 day would be removed, " in listed.stdout
    done = pool()
    assert listed.stdout.replace("would remove", "     removed").replace("would be removed", "removed") == done.stdout


def test_json_has_every_day(pool: PoolOfPlan) -> None:
    listed = json.loads(pool("--json", "-n").stdout)
    report = json.loads(pool("--json").stdout)
    assert {**listed, "dry_run": False} == report
    assert (report["verb"], report["staging"], report["keep_days"], report["schema"]) == ("prune", str(pool.path), 3, 1)
    assert [(day["day"], day["files"], day["is_rest"]) for day in report["removed"]] == [(OLD[0], 5, False)]
    assert [(day["day"], day["kind"], day["peers"]) for day in report["kept"]] == [
        (OLD[1], "foreign", []),
        (OLD[2], "needed", ["laptop"]),
    ]
    assert report["bytes"] == report["removed"][0]["bytes"] > 4096
    assert (report["failed"], report["error"], report["reason"], report["exit"]) == ([], None, None, 0)


def test_a_pool_in_use_is_told_with_who_holds_it(pool: PoolOfPlan, assert_one_line: Callable[[str], None]) -> None:
    with RunsDirectory(str(pool.path)) as runs, RunLock(runs, "20261124T031500.000Z-0000"):
        done = pool()
    assert (done.returncode, done.stdout) == (75, "")
    assert_one_line(done.stderr)
    assert f"20261124T031500.000Z-0000 (process {os.getpid()} on " in done.stderr


def test_a_day_in_the_future_is_a_problem_of_this_machine(
    pool: PoolOfPlan, monkeypatch: pytest.MonkeyPatch, assert_one_line: Callable[[str], None]
) -> None:
    monkeypatch.setattr(prune_module, "time", SimpleNamespace(time=lambda: noon(KEPT[0])))
    done = pool("--json")
    assert done.returncode == 6
    assert_one_line(done.stderr)
    assert json.loads(done.stdout)["reason"] == "day-in-future"
    assert "See: peerstage guide pruning" in done.stderr


def test_what_cannot_be_removed_is_told_and_fails(
    pool: PoolOfPlan, monkeypatch: pytest.MonkeyPatch, assert_one_line: Callable[[str], None]
) -> None:
    unlink = os.unlink

    def refuse(name: str, **options: int) -> None:
        if name == "dump":
            raise PermissionError(1, "Operation not permitted")
        unlink(name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        done = pool()
    assert done.returncode == 6
    assert_one_line(done.stderr)
    assert "        failed 2026/11/01  a/dump: Operation not permitted" in done.stdout
    assert f"{pool.path}/.peerstage-runs/removed-2026-11-01: 2026/11/01 could not be removed" in done.stderr
    done = pool()
    assert done.returncode == 0
    assert ", the rest of an interrupted removal" in done.stdout


def test_a_plan_without_keep_days_is_wrong_usage(pool: PoolOfPlan, assert_one_line: Callable[[str], None]) -> None:
    pool.write("")
    done = pool()
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr)
    assert f"Add keep_days = 14 to {pool.file}." in done.stderr
    assert pool.days() == [*OLD, *KEPT]


def test_a_plan_that_is_missing_is_wrong_usage(pool: PoolOfPlan, assert_one_line: Callable[[str], None]) -> None:
    pool.file.unlink()
    done = pool()
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr)


def test_a_signal_ends_it_between_two_days_and_what_was_done_is_told(
    pool: PoolOfPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def cancelled_at_once(cancel: Callable[[], object]) -> Iterator[None]:
        cancel()
        yield

    monkeypatch.setattr(prune_verb, "cancel_on_signal", cancelled_at_once)
    assert pool().stdout == f"{pool.path}: 0 days removed, 0 bytes freed; not finished: prune again to continue\n"
    assert pool.days() == [*OLD, *KEPT]


def test_many_days_that_no_run_made_take_one_line() -> None:
    kept = [
        KeptDay(day=f"2020/01/{day:02}", kind=Kind.UNKNOWN, why="no record says that a run made it")
        for day in range(1, 32)
    ]
    kept.append(KeptDay(day="2020/02/01", kind=Kind.LATEST, why="the link latest points to it"))
    report = PruneReport(staging="/srv", keep_days=3, dry_run=False, kept=tuple(kept))
    lines = [
        "".join(part if isinstance(part, str) else part[0] for part in line) for line in PruneResult(report).to_lines()
    ]
    assert lines == [
        "          kept 2020/01/01  and 30 later days until 2020/01/31: no record says that runs made them",
        "          kept 2020/02/01  the link latest points to it",
        "/srv: 0 days removed, 0 bytes freed, 32 kept",
    ]
    assert len(PruneResult(report).to_json()[0]["kept"]) == 32
