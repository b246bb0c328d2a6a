"""`prune`: which days it removes from real pools, and what it never touches."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from peerstage.errors import RunLocked, TargetError
from peerstage.fleet.pool import pool_days
from peerstage.fleet.pool.run_lock import RunLock
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.fleet.prune import day_contents, prune, prune_pool, reclaimable_bytes
from peerstage.fleet.prune import decision as prune_decision
from peerstage.fleet.prune import pruning as prune_module
from peerstage.fleet.prune.report import Kind, PruneReport
from peerstage.fleet.results import Flag, Verdict
from peerstage.reasons import Reason
from support.filesystems import tmpfs
from support.quick import quick_directory
from support.staged_pool import StagedPool, noon

TODAY = "2026/11/24"


def day(number: int) -> str:
    return f"2026/11/{number:02}"


@pytest.fixture
def pool() -> Iterator[StagedPool]:
    with quick_directory() as path:
        yield StagedPool(path, "a", "b")


@pytest.fixture(autouse=True)
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the clock of prunes to noon of a day; before, it is noon of `TODAY`."""

    def set_to(today: str) -> None:
        monkeypatch.setattr(prune_module, "time", SimpleNamespace(time=lambda: noon(today)))

    set_to(TODAY)
    return set_to


def removed(report: PruneReport) -> list[str]:
    return [found.day for found in report.removed]


def kept(report: PruneReport) -> dict[str, tuple[Kind, str]]:
    return {found.day: (found.kind, found.why) for found in report.kept}


def keeps_because(pool: StagedPool, kind: Kind, why: str, which: str = day(1)) -> None:
    """Check that a dry run and a prune keep that old day, whole, and say why; and that the others go."""
    before = pool.tree()
    expected = [old for old in pool.days() if old != which and old < day(22)]
    for dry_run in (True, False):
        report = prune(pool.plan(3), dry_run=dry_run)
        assert kept(report) == {which: (kind, why)}
        assert removed(report) == expected
        assert (report.failed, report.is_unfinished) == ((), False)
    assert {name: content for name, content in before.items() if name.startswith(which)} == {
        name: content for name, content in pool.tree().items() if name.startswith(which)
    }
    assert prune(pool.plan(3)).removed == ()


# What is removed


def test_days_before_the_newest_keep_days_are_removed_the_oldest_first(pool: StagedPool) -> None:
    for number in (3, 1, 24, 2, 23, 22):
        pool.run(day(number), "ab")
    report = prune(pool.plan(3))
    assert removed(report) == [day(1), day(2), day(3)]
    assert pool.days() == [day(22), day(23), day(24)]
    assert (report.kept, report.failed, report.is_unfinished) == ((), (), False)


def test_a_dry_run_lists_what_a_prune_removes_and_changes_nothing(pool: StagedPool) -> None:
    for number in (1, 2, 22, 23, 24):
        pool.run(day(number), "ab")
    (pool.path / day(2) / "foreign").touch()
    before, names = pool.tree(), sorted(os.listdir(pool.path / ".peerstage-runs"))
    listed = prune(pool.plan(3), dry_run=True)
    assert (pool.tree(), sorted(os.listdir(pool.path / ".peerstage-runs"))) == (before, names)
    report = prune(pool.plan(3))
    assert (report.removed, report.kept) == (listed.removed, listed.kept)
    assert (listed.dry_run, report.dry_run) == (True, False)


def test_empty_months_and_years_go_too(pool: StagedPool) -> None:
    for which in ("2025/12/31", "2026/10/05", "2026/10/06", day(22), day(23), day(24)):
        pool.run(which, "ab")
    (pool.path / "2024" / "02").mkdir(parents=True)
    (pool.path / "2026" / "09").mkdir()
    prune(pool.plan(4))
    assert sorted(os.listdir(pool.path)) == [".peerstage-runs", "2026", "latest"]
    assert sorted(os.listdir(pool.path / "2026")) == ["10", "11"]


def test_the_month_of_today_stays_even_if_it_is_empty(pool: StagedPool) -> None:
    for which in ("2026/10/01", "2026/10/02"):
        pool.run(which, "ab")
    (pool.path / TODAY[:-3]).mkdir()
    assert removed(prune(pool.plan(1))) == ["2026/10/01"]
    assert (pool.path / TODAY[:-3]).is_dir()


def test_files_in_the_place_of_years_months_and_days_are_left(pool: StagedPool) -> None:
    for number in (1, 22, 23, 24):
        pool.run(day(number), "ab")
    for name in ("2020", "2026/01", "2026/11/02", "notes", "2026/11/32", "2026/13"):
        (pool.path / name).touch()
    (pool.path / "2026/11/31").mkdir()  # no such day
    assert removed(prune(pool.plan(3))) == [day(1)]
    assert sorted(os.listdir(pool.path / "2026/11")) == ["02", "22", "23", "24", "31", "32"]


def test_a_day_on_which_no_peer_was_reached_is_removed_once_it_is_old(pool: StagedPool) -> None:
    pool.run(day(1), {"a": None, "b": None})
    for number in (22, 23, 24):
        pool.run(day(number), "ab")
    assert removed(prune(pool.plan(3))) == [day(1)]
    assert not (pool.path / day(1)).exists()


def test_several_runs_of_a_day_are_one_day(pool: StagedPool) -> None:
    for number in (1, 22, 23, 24):
        pool.run(day(number), "a")
        pool.run(day(number), {"b": {"dump": b"b", "more": b"b"}})
    assert removed(prune(pool.plan(3))) == [day(1)]
    assert not (pool.path / day(1)).exists()


def test_names_of_any_bytes_are_removed(pool: StagedPool) -> None:
    pool.run(day(1), {"a": {"new\nline": b"1", os.fsdecode(b"\xff"): b"2", "\x1b[2J": b"3", "-rf": b"4", "*": b"5"}})
    for number in (22, 23, 24):
        pool.run(day(number), "ab")
    assert removed(prune(pool.plan(3))) == [day(1)]


def test_a_pool_in_which_nothing_has_run_is_left(tmp_path: Path) -> None:
    pool = StagedPool(tmp_path / "pool", "a")
    (pool.path / day(1) / "a").mkdir(parents=True)
    assert prune(pool.plan(1)) == PruneReport(staging=str(pool.path), keep_days=1, dry_run=False)
    assert os.listdir(pool.path) == ["2026"]


def test_a_pool_that_is_missing_is_an_error(tmp_path: Path) -> None:
    plan = StagedPool(tmp_path / "pool", "a").plan(1)
    (tmp_path / "pool").rmdir()
    with pytest.raises(TargetError) as caught:
        prune(plan)
    assert caught.value.reason is Reason.TARGET_MISSING


def test_a_plan_without_keep_days_is_refused(pool: StagedPool) -> None:
    with pytest.raises(ValueError, match="no keep_days"):
        prune(pool.plan(None))


# Days and clocks


def test_nothing_is_removed_because_time_has_passed(pool: StagedPool, set_clock: Callable[[str], None]) -> None:
    for number in (1, 2, 3):
        pool.run(day(number), "ab")
    set_clock("2031/01/01")
    assert prune(pool.plan(3)).removed == ()
    pool.run("2031/01/01", "ab")
    assert removed(prune(pool.plan(3))) == [day(1)]


def test_nights_on_which_everything_failed_push_out_no_good_one(pool: StagedPool) -> None:
    for number in (1, 2, 3):
        pool.run(day(number), "ab")
    for number in range(4, 25):
        pool.run(day(number), {"a": None, "b": None})
    assert prune(pool.plan(3)).removed == ()


def test_a_day_in_the_future_keeps_everything(pool: StagedPool, set_clock: Callable[[str], None]) -> None:
    for number in (1, 2, 22, 23, 24):
        pool.run(day(number), "ab")
    set_clock(day(23))
    before = pool.tree()
    for dry_run in (True, False):
        with pytest.raises(TargetError) as caught:
            prune(pool.plan(1), dry_run=dry_run)
        assert caught.value.reason is Reason.DAY_IN_FUTURE
        assert f"{TODAY}, and by the clock of this machine today is {day(23)}" in str(caught.value)
    assert pool.tree() == before
    set_clock(TODAY)
    assert removed(prune(pool.plan(3))) == [day(1), day(2)]


def test_a_clock_that_was_once_far_ahead_keeps_everything_until_that_day_is_renamed(pool: StagedPool) -> None:
    for number in (1, 22, 23):
        pool.run(day(number), "ab")
    pool.run("2038/01/19", "ab")
    with pytest.raises(TargetError) as caught:
        prune(pool.plan(1))
    assert caught.value.path == str(pool.path / "2038/01/19")
    (pool.path / "2038/01/19").rename(pool.path / TODAY)
    assert removed(prune(pool.plan(2))) == [day(1)]


def test_a_directory_of_the_future_that_no_run_made_does_not_matter(pool: StagedPool) -> None:
    for number in (1, 22, 23, 24):
        pool.run(day(number), "ab")
    (pool.path / "2099/12/31").mkdir(parents=True)
    assert removed(prune(pool.plan(3))) == [day(1)]
    assert (pool.path / "2099/12/31").is_dir()


def test_today_is_kept_even_if_nothing_was_staged(pool: StagedPool) -> None:
    for number in (22, 23):
        pool.run(day(number), "ab")
    pool.run(TODAY, {"a": None, "b": None})
    assert removed(prune(pool.plan(1))) == [day(22)]
    assert pool.days() == [day(23), TODAY]


# What a peer needs


def test_a_peer_with_one_complete_night_keeps_it_however_old(pool: StagedPool) -> None:
    pool.run(day(1), "ab")
    pool.run(day(2), "ab")
    for number in (3, 22, 23, 24):
        pool.run(day(number), {"a": {"dump": b"a"}, "b": None})
    keeps_because(pool, Kind.NEEDED, "the last complete night of b", day(2))


def test_a_peer_that_left_the_plan_keeps_its_last_night_and_that_is_said(pool: StagedPool) -> None:
    pool.run(day(1), ["a", "laptop"])
    for number in (22, 23, 24):
        pool.run(day(number), "ab")
    keeps_because(pool, Kind.NEEDED, "the last complete night of laptop (not in the plan)")


def test_a_night_that_was_kept_for_a_peer_goes_once_it_has_a_newer_one(pool: StagedPool) -> None:
    pool.run(day(1), "ab")
    for number in (21, 22, 23):
        pool.run(day(number), {"a": {"dump": b"a"}, "b": None})
    assert removed(prune(pool.plan(2))) == [day(21)]
    pool.run(TODAY, "ab")
    assert removed(prune(pool.plan(2))) == [day(1), day(22)]


def test_incomplete_files_are_kept_for_a_peer_that_has_no_newer_ones(pool: StagedPool) -> None:
    pool.run(day(1), "b", verdict=Verdict.INCOMPLETE)
    for number in (22, 23, 24):
        pool.run(day(number), "a")
    keeps_because(pool, Kind.NEEDED, "the last files of b")


def test_a_flagged_night_does_not_replace_the_last_complete_one(pool: StagedPool) -> None:
    pool.run(day(1), "ab")
    for number in (22, 23, 24):
        pool.run(day(number), "a")
        pool.run(day(number), "b", flags=(Flag.SMALLER,))
    keeps_because(pool, Kind.NEEDED, "the last complete night of b")


@pytest.mark.parametrize(
    "damage",
    [
        lambda peer: (peer / "dump").unlink(),
        lambda peer: (peer / "dump").write_bytes(b"truncated"),
        lambda peer: (peer / "peerstage.json").unlink(),
        lambda peer: (peer / "peerstage.sha256").write_bytes(b"damaged"),
        lambda peer: shutil.rmtree(peer),
        lambda peer: (shutil.rmtree(peer), peer.mkdir()),
        lambda peer: (peer.rename(f"{peer}.away"), peer.symlink_to(f"{peer}.away")),
    ],
    ids=["removed", "changed", "manifest removed", "manifest damaged", "all removed", "emptied", "a symlink"],
)
def test_a_night_whose_files_are_gone_does_not_replace_an_older_one(
    pool: StagedPool, damage: Callable[[Path], object]
) -> None:
    for number in (1, 2):
        pool.run(day(number), "ab")
    for number in (22, 23, 24):
        pool.run(day(number), "a")
    pool.run(day(24), "b")
    damage(pool.path / day(24) / "b")
    keeps_because(pool, Kind.NEEDED, "the last complete night of b", day(2))


def test_only_some_of_many_peers_are_named(pool: StagedPool) -> None:
    names = [f"web{number}" for number in range(9)]
    pool.run(day(1), names)
    for number in (22, 23, 24):
        pool.run(day(number), "ab")
    report = prune(pool.plan(3))
    assert report.kept[0].peers == tuple(names)
    assert report.kept[0].why.endswith("web3 (not in the plan), web4 (not in the plan) and 4 more")


# What no run staged


def make_fifo(old: Path) -> None:
    os.mkfifo(old / "a" / "fifo")


def replace_by_link(old: Path) -> None:
    (old / "a" / "dump").rename(old.parent / "elsewhere")
    (old / "a" / "dump").symlink_to(old.parent / "elsewhere")


def replace_peer_by_link(old: Path) -> None:
    (old / "a").rename(old.parent / "elsewhere")
    (old / "a").symlink_to(old.parent / "elsewhere")


def change_with_the_same_size(old: Path) -> None:
    data = (old / "a" / "dump").read_bytes()
    (old / "a" / "dump").write_bytes(data[::-1])
    os.utime(old / "a" / "dump", (0, 0))


def copy_into(name: str) -> Callable[[Path], object]:
    return lambda old: (old / name).write_bytes(b"precious")


def replace_manifest_by_directory(old: Path) -> None:
    for path in (old / "a").iterdir():
        path.unlink()
    (old / "a" / "peerstage.json").mkdir()


def make_private(old: Path) -> None:
    (old / "a" / ".peerstage-0123abcd").mkdir()


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file in the day": (copy_into("notes"), "notes was not made by a run"),
    "a hidden file in the day": (copy_into(".hidden"), ".hidden was not made by a run"),
    "a file beside a peer's": (copy_into("a/notes\n"), r"a/notes\n is not in the manifest"),
    "a directory in the day": (lambda old: (old / "saved").mkdir(), "saved was not made by a run"),
    "a directory beside files": (lambda old: (old / "a" / "sub").mkdir(), "a/sub is not in the manifest"),
    "a fifo": (make_fifo, "a/fifo is not in the manifest"),
    "a link beside files": (lambda old: (old / "a" / "l").symlink_to("/etc"), "a/l is not in the manifest"),
    "a link in the day": (lambda old: (old / "l").symlink_to("/etc"), "l was not made by a run"),
    "a file that is a link now": (replace_by_link, "a/dump is not a regular file"),
    "a peer that is a link now": (replace_peer_by_link, "a is not a directory"),
    "a peer that is a file now": (lambda old: (shutil.rmtree(old / "a"), (old / "a").touch()), "a is not a directory"),
    "a longer file": (copy_into("a/dump"), "a/dump was changed after it was staged"),
    "a file of the same size": (change_with_the_same_size, "a/dump was changed after it was staged"),
    "an indicator with content": (copy_into("cback.stage"), "cback.stage was not made by a run"),
    "a directory as manifest": (replace_manifest_by_directory, "a/peerstage.json is not a regular file"),
    "no manifest": (lambda old: (old / "a" / "peerstage.json").unlink(), "a holds files, but no manifest"),
    "a damaged manifest": (copy_into("a/peerstage.json"), "a has a damaged manifest"),
    "a digest less": (lambda old: (old / "a" / "peerstage.sha256").write_bytes(b""), "is not in the manifest"),
    "a stage": (
        make_private,
        "a/.peerstage-0123abcd belongs to a stage that is running or was killed; `peerstage sweep` removes it if it "
        "was killed",
    ),
}


@pytest.mark.parametrize("which", FOREIGN)
def test_a_day_with_something_that_no_run_staged_stays_whole_and_that_is_named(pool: StagedPool, which: str) -> None:
    make, why = FOREIGN[which]
    for number in (1, 2, 22, 23, 24):
        pool.run(day(number), "ab")
    make(pool.path / day(1))
    if which == "a digest less":
        (found,) = prune(pool.plan(3), dry_run=True).kept
        assert found.why.endswith(why)
        why = found.why
    keeps_because(pool, Kind.FOREIGN, why)


def test_the_day_goes_once_what_is_foreign_was_moved_away(pool: StagedPool) -> None:
    for number in (1, 22, 23, 24):
        pool.run(day(number), "ab")
    (pool.path / day(1) / "notes").touch()
    assert prune(pool.plan(3)).removed == ()
    (pool.path / day(1) / "notes").unlink()
    assert removed(prune(pool.plan(3))) == [day(1)]


def test_files_that_were_removed_by_hand_keep_no_day(pool: StagedPool) -> None:
    for number in (1, 22, 23, 24):
        pool.run(day(number), "ab")
    (pool.path / day(1) / "a" / "dump").unlink()
    shutil.rmtree(pool.path / day(1) / "b")
    assert removed(prune(pool.plan(3))) == [day(1)]


def test_a_pool_that_was_copied_with_times_in_seconds_is_still_ours(pool: StagedPool) -> None:
    for number in (1, 22, 23, 24):
        pool.run(day(number), "ab")
    for path in pool.path.rglob("dump"):
        os.utime(path, (int(path.stat().st_mtime), int(path.stat().st_mtime)))
    assert removed(prune(pool.plan(3))) == [day(1)]


def test_a_day_without_a_record_is_kept(pool: StagedPool) -> None:
    pool.run(day(1), "ab", is_recorded=False)
    for number in (22, 23, 24):
        pool.run(day(number), "ab")
    keeps_because(pool, Kind.UNKNOWN, "no record says that a run made it")


def test_a_day_whose_record_is_damaged_is_kept(pool: StagedPool, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 22, 23, 24):
        pool.run(day(number), "ab")
    oldest = min((pool.path / ".peerstage-runs").glob("2*.json"))
    oldest.write_text("{")
    keeps_because(pool, Kind.UNKNOWN, "no record says that a run made it")


def test_the_directory_of_a_peer_that_no_run_of_the_day_had_is_foreign(pool: StagedPool) -> None:
    for number in (1, 22, 23, 24):
        pool.run(day(number), "a")
    shutil.copytree(pool.path / day(1) / "a", pool.path / day(1) / "copy")
    keeps_because(pool, Kind.FOREIGN, "copy was not made by a run")


# Links


def test_nothing_is_removed_through_a_symlink(pool: StagedPool, tmp_path: Path) -> None:
    for which in ("2024/01/01", "2025/01/01", "2026/10/01", day(1), day(22), day(23), day(24)):
        pool.run(which, "ab")
    for name in ("2024", "2025/01", "2026/10/01"):
        moved = tmp_path / name.replace("/", "-")
        shutil.move(pool.path / name, moved)
        (pool.path / name).symlink_to(moved)
    report = prune(pool.plan(3))
    assert removed(report) == [day(1)]
    why = (Kind.FOREIGN, "it is a symlink")
    assert kept(report) == {"2024": why, "2025/01": why, "2026/10/01": why}
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("dump")) == [
        "2024/01/01/a/dump",
        "2024/01/01/b/dump",
        "2025-01/01/a/dump",
        "2025-01/01/b/dump",
        "2026-10-01/a/dump",
        "2026-10-01/b/dump",
    ]


def test_the_pool_itself_may_be_a_symlink(pool: StagedPool, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pool.path)
    linked = StagedPool(tmp_path / "link", "a", "b")
    for number in (1, 22, 23, 24):
        linked.run(day(number), "ab")
    assert removed(prune(linked.plan(3))) == [day(1)]


@pytest.mark.parametrize("target", [day(1), f"./{day(1)}/", "{pool}/" + day(1), f"{day(1)}/a", f"2026/../{day(1)}"])
def test_the_day_that_latest_points_to_is_kept(pool: StagedPool, target: str) -> None:
    for number in (1, 2, 22, 23, 24):
        pool.run(day(number), "ab")
    (pool.path / "latest").unlink()
    (pool.path / "latest").symlink_to(target.format(pool=pool.path))
    keeps_because(pool, Kind.LATEST, "the link latest points to it")


def test_a_latest_that_is_no_link_does_not_matter(pool: StagedPool) -> None:
    for number in (1, 22, 23, 24):
        pool.run(day(number), "ab")
    (pool.path / "latest").unlink()
    (pool.path / "latest").mkdir()
    assert removed(prune(pool.plan(3))) == [day(1)]


def test_files_that_other_days_link_to_keep_their_content_and_free_nothing(pool: StagedPool) -> None:
    files = {"big": b"x" * 10_000, "same": b"y" * 5_000}
    for number in (1, 2, 22, 23, 24):
        pool.run(day(number), {"a": {**files, "new": f"{number}".encode()}}, links=True)
    assert (pool.path / day(1) / "a" / "big").stat().st_nlink == 5
    before = pool.allocated()
    listed = prune(pool.plan(3), dry_run=True)
    report = prune(pool.plan(3))
    assert (pool.path / day(24) / "a" / "big").read_bytes() == files["big"]
    assert report.bytes == listed.bytes == before - pool.allocated()
    assert report.bytes < 10_000 * 4


def test_a_file_counts_as_freed_with_the_last_of_its_links(pool: StagedPool) -> None:
    for number in (1, 2, 3):
        pool.run(day(number), {"a": {"big": b"x" * 100_000}}, links=True)
    for number in (22, 23, 24):
        pool.run(day(number), "a")
    listed = prune(pool.plan(3), dry_run=True)
    assert [found.bytes >= 100_000 for found in listed.removed] == [False, False, True]
    before = pool.allocated()
    report = prune(pool.plan(3))
    assert report.removed == listed.removed
    assert report.bytes == before - pool.allocated()


def test_links_of_a_day_that_is_kept_after_all_do_not_count_as_removed(pool: StagedPool) -> None:
    for number in (1, 2):
        pool.run(day(number), {"a": {"big": b"x" * 100_000}}, links=True)
    for number in (22, 23, 24):
        pool.run(day(number), "a")
    (pool.path / day(1) / "zzz").touch()
    (listed,) = prune(pool.plan(3), dry_run=True).removed
    assert (listed.day, listed.bytes < 100_000) == (day(2), True)


# Mount points and other devices


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("where", ["", "/a", "/a/sub"])
def test_another_file_system_is_not_entered(pool: StagedPool, where: str) -> None:
    for number in (1, 2, 22, 23, 24):
        pool.run(day(number), "ab")
    shutil.copytree(pool.path / day(1), pool.path / "copy")
    inside = pool.path / f"{day(1)}{where}"
    shutil.rmtree(inside, ignore_errors=True)
    with tmpfs(inside, "size=1m"):
        (inside / "precious").write_bytes(b"precious")
        keeps_because(pool, Kind.FOREIGN, f"{day(1)}{where} is a mount point")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("kind", ["a peer", "a file"])
def test_a_bind_mount_of_the_same_file_system_is_not_entered(pool: StagedPool, kind: str) -> None:
    for number in (1, 2, 22, 23, 24):
        pool.run(day(number), "ab")
    point = pool.path / day(1) / "a" / ("" if kind == "a peer" else "dump")
    other = pool.path / "other space"
    if kind == "a peer":
        shutil.copytree(point, other)
    else:
        shutil.copy2(point, other)
    subprocess.run(["mount", "--bind", str(other), str(point)], check=True)
    try:
        mounted = os.path.relpath(point, pool.path)
        keeps_because(pool, Kind.FOREIGN, f"{mounted} is a mount point")
        assert other.exists()
    finally:
        subprocess.run(["umount", str(point)], check=True)


@pytest.mark.usefixtures("root")
def test_another_device_is_seen_where_the_system_does_not_list_mount_points(
    pool: StagedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 22, 23, 24):
        pool.run(day(number), "ab")
    monkeypatch.setattr(prune_decision, "mount_points_below", lambda fd: [])
    with tmpfs(pool.path / day(1) / "sub", "size=1m"):
        keeps_because(pool, Kind.FOREIGN, "sub is on another file system")


def test_mount_points_with_spaces_are_read_as_the_kernel_writes_them(
    pool: StagedPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "mountinfo"
    top = os.fsencode(pool.path)
    listed.write_bytes(
        b"".join(
            b"36 35 98:0 / %s rw - ext4 /dev/sda rw\n" % point
            for point in (b"/", top, top + rb"/2026/11/01/with\040space", top + b"x/2026", b"/mnt")
        )
    )
    monkeypatch.setattr(pool_days, "_MOUNTS", str(listed))
    fd = os.open(pool.path, os.O_RDONLY)
    try:
        assert pool_days.mount_points_below(fd) == ["2026/11/01/with space"]
        monkeypatch.setattr(pool_days, "_MOUNTS", str(tmp_path / "none"))
        assert pool_days.mount_points_below(fd) == []
    finally:
        os.close(fd)


# What cannot be read or removed


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("which", ["a/dump", "a/peerstage.json", "a", ""])
def test_what_cannot_be_removed_is_told_and_the_next_day_goes(tmp_path: Path, which: str) -> None:
    pool = StagedPool(tmp_path / "pool", "a", "b")  # on a disk: a file system in memory may have no such attribute
    for number in (1, 2, 22, 23, 24):
        pool.run(day(number), "ab")
    stuck = pool.path / day(1) / which
    subprocess.run(["chattr", "+i", str(stuck)], check=True)
    try:
        report = prune(pool.plan(3))
        assert removed(report) == [day(2)]
        (failed,) = report.failed
        assert (failed.day, failed.reason) == (day(1), Reason.TARGET_NOT_WRITABLE)
        assert failed.why.endswith("Operation not permitted") or "more entries" in failed.why
        stuck = Path(failed.path) / which
        assert stuck.exists()
        assert report.failure() is not None
        again = prune(pool.plan(3))
        assert (again.removed, [found.day for found in again.failed]) == ((), [day(1)])
    finally:
        subprocess.run(["chattr", "-i", str(stuck)], check=True)
    assert removed(prune(pool.plan(3))) == [day(1)]
    assert pool.days() == [day(22), day(23), day(24)]


def test_a_year_that_cannot_be_read_is_told(pool: StagedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    for which in ("2025/01/01", day(1), day(22), day(23), day(24)):
        pool.run(which, "ab")
    original = pool_days.open_directory

    def refuse(path: str, **options: int) -> int:
        if path == "2025":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return original(path, **options)

    monkeypatch.setattr(pool_days, "open_directory", refuse)
    report = prune(pool.plan(3))
    assert removed(report) == [day(1)]
    assert kept(report) == {"2025": (Kind.UNREADABLE, "it cannot be read: Permission denied")}


def test_a_pool_with_endless_days_is_an_error(pool: StagedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        pool.run(day(number), "ab")
    monkeypatch.setattr(pool_days, "_MAX_DAYS", 2)
    with pytest.raises(TargetError, match="more than 2 daily directories"):
        prune(pool.plan(1))
    assert len(pool.days()) == 3


# Locks, ends, estimates


def test_a_pool_that_a_run_holds_is_not_pruned_but_a_dry_run_looks_at_it(pool: StagedPool) -> None:
    for number in (1, 22, 23, 24):
        pool.run(day(number), "ab")
    with RunsDirectory(str(pool.path)) as runs, RunLock(runs, "20261124T031500.000Z-0000"):
        with pytest.raises(RunLocked):
            prune(pool.plan(3))
        assert removed(prune(pool.plan(3), dry_run=True)) == [day(1)]
        assert len(pool.days()) == 4
        assert removed(prune_pool(pool.plan(3), runs)) == [day(1)]


def test_a_cancelled_prune_ends_between_two_days_and_the_next_one_continues(pool: StagedPool) -> None:
    for number in (1, 2, 3, 22, 23, 24):
        pool.run(day(number), "ab")
    report = prune(pool.plan(3), is_cancelled=lambda: not (pool.path / day(1)).exists())
    assert report.is_unfinished
    assert (pool.path / day(2)).exists()
    report = prune(pool.plan(3))
    assert removed(report)[-2:] == [day(2), day(3)]
    assert pool.days() == [day(22), day(23), day(24)]
    assert list((pool.path / ".peerstage-runs").glob("removed-*")) == []


def test_a_prune_ends_when_its_time_is_over(pool: StagedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 22, 23, 24):
        pool.run(day(number), "ab")
    monkeypatch.setattr(prune_module, "_MAX_SECONDS", -1.0)
    report = prune(pool.plan(3))
    assert (report.removed, report.is_unfinished) == ((), True)
    assert len(pool.days()) == 4


def test_a_manifest_without_end_ends_with_the_time_of_the_prune(
    pool: StagedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of a peer's directory may write what he likes there; the pool's lock is held for no longer."""
    for number in (1, 22, 23, 24):
        pool.run(day(number), "ab")
    reads = []

    def read_for_ever(*arguments: object, check: Callable[[], object], **options: object) -> None:
        while True:
            reads.append(time.monotonic())
            check()

    monkeypatch.setattr(day_contents, "read_confirmed_results", read_for_ever)
    monkeypatch.setattr(prune_module, "_MAX_SECONDS", 0.05)
    assert prune(pool.plan(3)).is_unfinished
    assert reads
    assert len(pool.days()) == 4


def test_an_estimate_is_what_a_prune_frees(pool: StagedPool, set_clock: Callable[[str], None]) -> None:
    for number in (1, 2, 22, 23, 24):
        pool.run(day(number), {"a": {"big": b"x" * 50_000}}, links=True)
    with RunsDirectory(str(pool.path)) as runs:
        estimate = reclaimable_bytes(pool.plan(3), runs)
        assert reclaimable_bytes(pool.plan(None), runs) == 0
        set_clock(day(23))
        assert reclaimable_bytes(pool.plan(3), runs) == 0, "a prune would refuse"
        set_clock(TODAY)
        before = pool.allocated()
        assert prune_pool(pool.plan(3), runs).bytes == estimate == before - pool.allocated() > 0


@pytest.mark.usefixtures("leaves_nothing")
def test_descriptors_are_closed_whatever_happens(pool: StagedPool, set_clock: Callable[[str], None]) -> None:
    for number in (1, 2, 3, 22, 23, 24):
        pool.run(day(number), "ab")
    (pool.path / day(2) / "a" / "foreign").touch()
    (pool.path / day(3) / "b").rename(pool.path / "away")
    (pool.path / day(3) / "b").symlink_to("/etc")
    prune(pool.plan(3), dry_run=True)
    prune(pool.plan(3))
    set_clock(day(3))
    with pytest.raises(TargetError):
        prune(pool.plan(3))
