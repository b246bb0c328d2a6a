"""`prune` that is killed, fails, or races with the owner of the pool: days are whole, or out of sight."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peerstage.errors import TargetError
from peerstage.fleet.prune import day_removal, prune
from peerstage.fleet.prune import pruning as prune_module
from peerstage.fleet.prune.report import Kind
from peerstage.reasons import Reason
from support import kills
from support.kills import each_instant
from support.quick import quick_directory
from support.staged_pool import StagedPool, noon

TODAY = "2026/11/24"
OLD = ("2026/10/31", "2026/11/01")
KEPT = ("2026/11/22", "2026/11/23", TODAY)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_module, "time", SimpleNamespace(time=lambda: noon(TODAY)))


def fill(path: Path, kept: tuple[str, ...] = KEPT) -> StagedPool:
    """Make a pool with two old days; a file of each is linked in a day that is kept."""
    pool = StagedPool(path, "a", "b")
    for day in (*OLD, *kept):
        pool.run(day, {"a": {"same": b"same" * 2000, "new": day.encode()}, "b": {"dump": day.encode()}}, links=True)
    return pool


def refill(path: Path) -> tuple[StagedPool, dict[str, Any]]:
    """Fill the pool at *path*, after removing all that it holds, with today alone to keep; return its tree, too."""
    for entry in path.iterdir():
        if entry.is_symlink():
            entry.unlink()
        else:
            shutil.rmtree(entry)
    pool = fill(path, (TODAY,))
    return pool, pool.tree()


@pytest.fixture
def pool() -> Iterator[StagedPool]:
    with quick_directory() as path:
        yield fill(path)


@pytest.fixture
def precious(pool: StagedPool) -> Path:
    """A directory of somebody else, on the pool's file system."""
    path = pool.path / "precious"
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "file").write_bytes(b"precious")
    (path / "dump").write_bytes(b"precious")
    return path


def part(tree: dict[str, Any], *days: str) -> dict[str, Any]:
    return {name: content for name, content in tree.items() if name.startswith(days)}


def aside(pool: StagedPool) -> list[str]:
    return sorted(path.name for path in (pool.path / ".peerstage-runs").glob("removed-*"))


def finished(pool: StagedPool) -> bool:
    return not set(pool.days()) & set(OLD) and aside(pool) == [] and not (pool.path / "2026/10").exists()


def before(call: str, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch, when: str = "") -> None:
    """Let *act* happen just before the first `os` *call* of a removal whose first argument ends in *when*."""
    original, acted = getattr(os, call), []

    def wrapped(path: Any, *arguments: Any, **options: Any) -> Any:
        if not acted and str(path).endswith(when):
            acted.append(path)
            act()
        return original(path, *arguments, **options)

    monkeypatch.setattr(day_removal, "os", SimpleNamespace(**{**vars(os), call: wrapped}))


# Kills


@pytest.mark.usefixtures("patience")
def test_a_prune_that_is_killed_at_any_instant_leaves_days_whole_or_out_of_sight_and_the_next_one_finishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kills, "STEPS", ("mkdir", "rename", "fsync", "unlink", "rmdir"))
    with quick_directory() as path:
        phases = []
        pool, whole = refill(path)
        for step in each_instant(lambda: prune(StagedPool(path, "a", "b").plan(1))):
            for day in pool.days():
                assert part(pool.tree(), day) == part(whole, day), f"{day} is not whole after step {step}"
            assert TODAY in pool.days()
            assert (pool.path / "latest").resolve() == pool.path.resolve() / TODAY
            left = [*(day for day in pool.days() if day in OLD), *aside(pool)]
            phases.append(tuple(left))
            listed = prune(pool.plan(1), dry_run=True)
            assert [found.day for found in listed.removed] == sorted(
                name.removeprefix("removed-").replace("-", "/") for name in left
            )
            report = prune(pool.plan(1))
            assert (report.removed, report.failed) == (listed.removed, ())
            assert finished(pool)
            pool, whole = refill(path)
    in_order = [phase for number, phase in enumerate(phases) if phase not in phases[:number]]
    assert in_order == [
        OLD,
        ("2026/11/01", "removed-2026-10-31"),
        ("2026/11/01",),
        ("removed-2026-11-01",),
        (),
    ]
    assert phases.count(("removed-2026-11-01",)) > 12


def test_the_rest_of_a_removal_is_told_as_such(pool: StagedPool) -> None:
    (pool.path / OLD[0]).rename(pool.path / ".peerstage-runs/removed-2026-10-31")
    shutil.rmtree(pool.path / ".peerstage-runs/removed-2026-10-31/a")
    report = prune(pool.plan(3))
    assert [(found.day, found.is_rest) for found in report.removed] == [(OLD[0], True), (OLD[1], False)]
    assert finished(pool)


def test_the_rest_of_a_removal_goes_even_if_no_day_is_old(pool: StagedPool) -> None:
    (pool.path / OLD[0]).rename(pool.path / ".peerstage-runs/removed-2026-10-31")
    assert [found.day for found in prune(pool.plan(400)).removed] == [OLD[0]]
    assert (aside(pool), pool.days()) == ([], [OLD[1], *KEPT])


def test_something_foreign_in_the_rest_of_a_removal_is_kept_and_told(pool: StagedPool) -> None:
    moved = pool.path / ".peerstage-runs/removed-2026-10-31"
    (pool.path / OLD[0]).rename(moved)
    (moved / "a" / "precious").write_bytes(b"precious")
    listed, report = prune(pool.plan(3), dry_run=True), prune(pool.plan(3))
    assert (listed.kept, listed.removed) == (report.kept, report.removed)
    (kept,) = report.kept
    assert kept.kind is Kind.FOREIGN
    assert kept.why == f"a/precious is not in the manifest; it appeared during its removal, and is in {moved}"
    assert (moved / "a" / "precious").read_bytes() == b"precious"
    (moved / "a" / "precious").unlink()
    prune(pool.plan(3))
    assert finished(pool)


# Failures


@contextmanager
def failing_call(number: int, code: int) -> Iterator[Callable[[], bool]]:
    """Let the system call with that number fail; yield a function that returns whether it was reached."""
    count = 0

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise OSError(code, os.strerror(code))
            return original(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "scandir", "listdir", "stat", "fstat", "readlink", "rename", "fsync", "unlink", "rmdir"):
            patch.setattr(os, name, wrap(getattr(os, name)))
        yield lambda: count >= number


@pytest.mark.usefixtures("patience", "leaves_nothing")
def test_whichever_system_call_fails_days_are_whole_or_out_of_sight_and_the_next_prune_finishes() -> None:
    outcomes = Counter[str]()
    with quick_directory() as path:
        is_reached = True
        while is_reached:
            number = outcomes.total() + 1
            pool, whole = refill(path)
            with failing_call(number, (errno.EIO, errno.EMFILE, errno.EACCES)[number % 3]) as was_reached:
                try:
                    report = prune(pool.plan(1))
                    told = "failed" if report.failed else "kept" if report.kept else ""
                    outcome = told or ("done" if report.removed else "nothing is old, since a record cannot be read")
                except TargetError:
                    outcome = "error"
                is_reached = was_reached()
            outcomes[outcome] += 1
            assert TODAY in pool.days()
            for day in pool.days():
                assert part(pool.tree(), day) == part(whole, day), f"{day} is not whole after call {number}"
            assert outcome != "done" or aside(pool) == []
            prune(pool.plan(1))
            assert finished(pool), f"call {number}"
    assert min(outcomes["failed"], outcomes["kept"], outcomes["error"]) > 4


def test_a_day_is_durably_out_of_sight_before_its_first_file_is_removed(
    pool: StagedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it could be in its place again after a power failure, and not whole."""
    inodes = {path.stat().st_ino: path.name for path in (pool.path / "2026/10", pool.path / ".peerstage-runs")}
    steps: list[str] = []
    fsync, unlink = os.fsync, os.unlink
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append(inodes.get(os.fstat(fd).st_ino, "")), fsync(fd)))
    monkeypatch.setattr(os, "unlink", lambda name, **options: (steps.append(name), unlink(name, **options)))
    prune(pool.plan(3))
    first = next(number for number, step in enumerate(steps) if step in ("dump", "new", "same", "cback.collect"))
    assert {"10", ".peerstage-runs"} <= set(steps[:first])


# Races with the owner of the pool


def test_a_file_that_appears_just_before_the_removal_keeps_the_day_whole(
    pool: StagedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = pool.path / OLD[0] / "a" / "late"
    whole = part(pool.tree(), OLD[0])
    before("rename", lambda: late.write_bytes(b"precious"), monkeypatch)
    report = prune(pool.plan(3))
    assert [(kept.day, kept.why) for kept in report.kept] == [(OLD[0], "a/late is not in the manifest")]
    assert [found.day for found in report.removed] == [OLD[1]]
    assert part(pool.tree(), OLD[0]) == {**whole, f"{OLD[0]}/a/late": b"precious"}


@pytest.mark.parametrize("what", ["a link", "a directory", "a file"])
def test_a_day_that_is_replaced_just_before_the_removal_costs_nobody_anything(
    pool: StagedPool, precious: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    day = pool.path / OLD[0]

    def replace() -> None:
        day.rename(pool.path / "away")
        if what == "a link":
            day.symlink_to(precious)
        elif what == "a directory":
            precious.rename(day)
        else:
            day.write_bytes(b"precious")

    before("rename", replace, monkeypatch)
    report = prune(pool.plan(3))
    assert [found.day for found in report.removed] == [OLD[1]]
    assert aside(pool) == []
    assert os.path.lexists(day)
    if what == "a file":
        assert day.read_bytes() == b"precious"
    else:
        kept = precious if what == "a link" else day
        assert (kept / "sub" / "file").read_bytes() == (kept / "dump").read_bytes() == b"precious"
    assert (pool.path / "away" / "a" / "new").exists()


def test_a_month_that_becomes_a_link_just_before_the_removal_is_not_followed(
    pool: StagedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace() -> None:
        (pool.path / "2026/10").rename(pool.path / "away")
        (pool.path / "2026/10").symlink_to(pool.path / "away")

    original = day_removal.open_month
    called = []

    def when_replaced(pool_fd: int, day: str) -> Any:
        if not called:
            called.append(day)
            replace()
        return original(pool_fd, day)

    monkeypatch.setattr(day_removal, "open_month", when_replaced)
    report = prune(pool.plan(3))
    assert [(failed.day, failed.path) for failed in report.failed] == [(OLD[0], str(pool.path / OLD[0]))]
    assert (pool.path / "away/31/a/new").exists()
    assert [found.day for found in report.removed] == [OLD[1]]


def test_what_is_moved_in_during_the_removal_is_neither_entered_nor_removed(
    pool: StagedPool, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of a directory can reach it by a descriptor wherever it is."""
    fd = os.open(pool.path / OLD[0] / "a", os.O_RDONLY)
    day_fd = os.open(pool.path / OLD[0], os.O_RDONLY)

    def move_in() -> None:
        os.rename(precious / "sub", "sub", dst_dir_fd=fd)
        os.rename(precious, "zzz", dst_dir_fd=day_fd)

    before("unlink", move_in, monkeypatch)
    report = prune(pool.plan(3))
    os.close(fd)
    os.close(day_fd)
    (failed,) = report.failed
    assert (failed.day, failed.reason) == (OLD[0], Reason.LOCAL_FAILURE)
    assert failed.why == "a: Directory not empty"
    moved = Path(failed.path)
    assert (moved / "a/sub/file").read_bytes() == (moved / "zzz/dump").read_bytes() == b"precious"
    assert [found.day for found in report.removed] == [OLD[1]]
    (kept,) = prune(pool.plan(3)).kept
    assert kept.day == OLD[0]


def test_a_peer_that_becomes_a_link_during_the_removal_is_not_followed(
    pool: StagedPool, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day_fd = os.open(pool.path / OLD[0], os.O_RDONLY)

    def replace() -> None:
        os.rename("b", "c", src_dir_fd=day_fd, dst_dir_fd=day_fd)
        os.symlink(precious, "b", dir_fd=day_fd)

    before("unlink", replace, monkeypatch)
    report = prune(pool.plan(3))
    os.close(day_fd)
    (failed,) = report.failed
    assert (failed.why, failed.reason) == ("b is not a directory", Reason.TARGET_INTERFERED)
    assert (precious / "dump").read_bytes() == b"precious"


def test_a_file_that_somebody_else_removes_during_the_removal_is_no_failure(
    pool: StagedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(pool.path / OLD[0] / "b", os.O_RDONLY)
    before("unlink", lambda: os.unlink("dump", dir_fd=fd), monkeypatch, when="dump")
    report = prune(pool.plan(3))
    os.close(fd)
    assert [(found.day, found.files) for found in report.removed] == [(OLD[0], 9), (OLD[1], 10)]
    assert finished(pool)


def test_a_file_that_becomes_a_link_during_the_removal_is_removed_as_a_link(
    pool: StagedPool, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(pool.path / OLD[0] / "b", os.O_RDONLY)

    def replace() -> None:
        os.unlink("dump", dir_fd=fd)
        os.symlink(precious / "dump", "dump", dir_fd=fd)

    before("unlink", replace, monkeypatch, when="dump")
    report = prune(pool.plan(3))
    os.close(fd)
    assert [found.day for found in report.removed] == list(OLD)
    assert (precious / "dump").read_bytes() == b"precious"


def test_a_day_that_cannot_be_put_back_is_whole_and_told_where_it_is(
    pool: StagedPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    day = pool.path / OLD[0]

    def take_its_place() -> None:
        day.mkdir()
        (day / "other").touch()

    before("rename", lambda: (day / "late").touch(), monkeypatch)
    with monkeypatch.context() as patch:
        original = day_removal.examine_day

        def examine(*arguments: Any) -> None:
            take_its_place()
            original(*arguments)

        patch.setattr(day_removal, "examine_day", examine)
        prune(pool.plan(3))
    moved = pool.path / ".peerstage-runs/removed-2026-10-31"
    assert sorted(os.listdir(moved)) == ["a", "b", "cback.stage", "late"]
    assert f"{OLD[0]} is kept, but cannot be moved back: Directory not empty. It is whole in {moved}." in caplog.text
    assert str(moved) in prune(pool.plan(3), dry_run=True).kept[0].why


@pytest.mark.usefixtures("root")
def test_root_prunes_what_another_user_owns(pool: StagedPool) -> None:
    for directory, _, names in os.walk(pool.path):
        if ".peerstage-runs" not in directory:
            for name in ("", *names):
                os.chown(os.path.join(directory, name), 65534, 65534, follow_symlinks=False)
    os.chmod(pool.path / OLD[0] / "a", 0o500)
    assert [found.day for found in prune(pool.plan(3)).removed] == list(OLD)
    assert finished(pool)
