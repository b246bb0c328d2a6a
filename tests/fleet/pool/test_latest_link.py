"""The link to the last run's day: replaced atomically, and only if it is ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage.errors import TargetError
from peerstage.fleet.pool.latest_link import update_latest
from peerstage.fleet.pool.runs_directory import NAME, RunsDirectory
from support.kills import each_instant

OLD, DAY = "2026/11/23", "2026/11/24"


@pytest.fixture(autouse=True)
def days(pool: Path) -> None:
    for day in (OLD, DAY):
        (pool / day).mkdir(parents=True)


def test_it_leads_to_the_day_wherever_the_pool_is_mounted(pool: Path, runs: RunsDirectory) -> None:
    assert update_latest(runs, DAY) is None
    (pool / DAY / "file").touch()
    moved = pool.with_name(pool.name + "-moved")
    pool.rename(moved)
    try:
        assert os.listdir(moved / "latest") == ["file"]
    finally:
        moved.rename(pool)


def test_it_is_the_old_link_or_the_new_one_whenever_the_run_is_killed(pool: Path, runs: RunsDirectory) -> None:
    update_latest(runs, OLD)
    found = []
    for _ in each_instant(lambda: update_latest(runs, DAY)):
        found.append(os.readlink(pool / "latest"))
    assert found == sorted(found)
    assert set(found) == {OLD, DAY}
    assert os.listdir(pool / NAME) == []


def test_the_link_that_a_killed_run_has_prepared_is_not_used(pool: Path, runs: RunsDirectory) -> None:
    (pool / NAME / "latest.new").symlink_to("/etc")
    assert update_latest(runs, DAY) is None
    assert os.readlink(pool / "latest") == DAY
    assert os.listdir(pool / NAME) == []


def test_a_link_that_is_right_is_not_touched(pool: Path, runs: RunsDirectory) -> None:
    update_latest(runs, DAY)
    before = (pool / "latest").lstat().st_ino
    assert update_latest(runs, DAY) is None
    assert (pool / "latest").lstat().st_ino == before


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, os.mkfifo])
def test_what_is_no_link_is_left_as_it_is(pool: Path, runs: RunsDirectory, make: Callable[[Path], object]) -> None:
    make(pool / "latest")
    before = (pool / "latest").lstat()
    assert update_latest(runs, DAY) == f"{pool}/latest is left as it is, since it is not a symlink."
    assert (pool / "latest").lstat().st_ino == before.st_ino
    assert os.listdir(pool / NAME) == []


@pytest.mark.parametrize("to", ["/srv/mirror", "mirror", "../2026/11/23", "/2026/11/23", "2026/11", "2026/11/23/db1"])
def test_a_link_that_somebody_else_has_made_is_left_as_it_is(pool: Path, runs: RunsDirectory, to: str) -> None:
    (pool / "latest").symlink_to(to)
    assert "since it does not point to a daily directory" in str(update_latest(runs, DAY))
    assert os.readlink(pool / "latest") == to


def test_a_link_to_a_day_that_was_removed_is_replaced(pool: Path, runs: RunsDirectory) -> None:
    (pool / "latest").symlink_to("2020/01/01")
    assert update_latest(runs, DAY) is None
    assert os.readlink(pool / "latest") == DAY


def test_a_pool_that_was_removed_is_an_error(pool: Path, runs: RunsDirectory) -> None:
    moved = pool.with_name(pool.name + "-moved")
    pool.rename(moved)
    try:
        with pytest.raises(TargetError, match="The link latest cannot be written: No such file or directory"):
            update_latest(runs, DAY)
    finally:
        moved.rename(pool)


def test_a_directory_that_takes_its_place_at_the_last_moment_is_not_entered(
    pool: Path, runs: RunsDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.symlink

    def link_too_late(*arguments: object, **options: object) -> None:
        (pool / "latest").mkdir()
        link(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", link_too_late)
        with pytest.raises(TargetError, match="Is a directory"):
            update_latest(runs, DAY)
    assert os.listdir(pool / "latest") == []
    assert os.listdir(pool / NAME) == []
