"""The directories of a day: with owner and mode, and no way for the backup user to lead root elsewhere."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import LocalPeer, verify
from peerstage.errors import StageError, TargetError
from peerstage.fleet.pool.daily_directories import DailyDirectories
from peerstage.paths import STAGE_INDICATOR
from peerstage.reasons import Reason
from peerstage.records import Ownership
from peerstage.stage_options import StageOptions
from peerstage.testing.contract import files_in
from support.children import forked
from support.kills import each_instant

pytestmark = pytest.mark.usefixtures("leaves_nothing")

DAY = "2026/11/24"
LEVELS = ("2026", "2026/11", DAY, f"{DAY}/db1")
BACKUP = Ownership(4711, 4712)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def owner_of(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def create(pool: Path, ownership: Ownership | None = None, **options: object) -> None:
    """Create the day and the directory of db1."""
    directories = DailyDirectories(str(pool), DAY, ownership, **options)  # type: ignore[arg-type]
    with directories, directories.peer_directory("db1"):
        pass


def refused(pool: Path, **options: object) -> StageError:
    with pytest.raises(TargetError) as caught:
        create(pool, **options)
    return caught.value


def test_a_peer_is_staged_into_its_directory_of_the_day(pool: Path, collect: Path) -> None:
    (collect / "dump").write_bytes(b"data")
    peer = LocalPeer("db1", str(collect), stage=StageOptions(manifest=True))
    with DailyDirectories(str(pool), DAY) as directories:
        with directories.peer_directory("db1") as path:
            assert peer.stagePeer(path) == 1
        directories.write_indicator_file()
    assert (pool / DAY / "db1" / "dump").read_bytes() == b"data"
    assert verify(pool / DAY / "db1").is_intact
    assert sorted(os.listdir(pool / DAY)) == [STAGE_INDICATOR, "db1"]
    assert directories.path == str(pool / DAY)


def test_new_directories_get_the_mode_whatever_the_umask(pool: Path) -> None:
    before = os.umask(0o077)
    try:
        create(pool, mode=0o755)
    finally:
        os.umask(before)
    assert [mode_of(pool / level) for level in LEVELS] == [0o755] * 4


def test_without_a_mode_the_umask_applies(pool: Path) -> None:
    before = os.umask(0o027)
    try:
        create(pool)
    finally:
        os.umask(before)
    assert [mode_of(pool / level) for level in LEVELS] == [0o750] * 4


def test_directories_inherit_the_group_of_the_pool_though_they_have_a_mode(pool: Path) -> None:
    pool.chmod(0o2755)
    create(pool, mode=0o750)
    assert [mode_of(pool / level) for level in LEVELS] == [0o2750] * 4


@pytest.mark.usefixtures("root")
def test_new_directories_belong_to_the_owner(pool: Path) -> None:
    create(pool, BACKUP, mode=0o750)
    assert [owner_of(pool / level) for level in LEVELS] == [BACKUP] * 4
    assert [mode_of(pool / level) for level in LEVELS] == [0o750] * 4
    assert owner_of(pool) == (0, 0)


@pytest.mark.usefixtures("root")
def test_existing_directories_keep_owner_and_mode(pool: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "peerstage.fleet")
    (pool / DAY / "db1").mkdir(parents=True)
    (pool / DAY / "db1" / "file").touch()
    for level in LEVELS:
        (pool / level).chmod(0o711)
    create(pool, BACKUP, mode=0o750)
    assert [owner_of(pool / level) for level in LEVELS] == [(0, 0)] * 4
    assert [mode_of(pool / level) for level in LEVELS] == [0o711] * 4
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", f"Staging directory {pool}/{DAY}/db1 already exists.")
    ]


@pytest.mark.usefixtures("root")
def test_the_run_after_one_that_was_killed_at_any_instant_gives_everything_to_the_owner(pool: Path) -> None:
    for _ in each_instant(lambda: create(pool, BACKUP, mode=0o750)):
        create(pool, BACKUP, mode=0o750)
        assert [owner_of(pool / level) for level in LEVELS] == [BACKUP] * 4
        assert [mode_of(pool / level) for level in LEVELS] == [0o750] * 4
        shutil.rmtree(pool / "2026")


@pytest.mark.usefixtures("root")
def test_a_directory_that_is_swapped_for_a_new_one_is_not_given_away(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the pool may rename root's directories in it, at any instant."""
    (pool / "private").mkdir(mode=0o700)
    (pool / "private" / "secret").touch()
    make = os.mkdir

    def make_and_swap(name: str, mode: int, *, dir_fd: int) -> None:
        make(name, mode, dir_fd=dir_fd)
        if name == "2026":
            os.rmdir(name, dir_fd=dir_fd)
            (pool / "private").rename(pool / name)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", make_and_swap)
        create(pool, BACKUP, mode=0o755)
    assert owner_of(pool / "2026") == (0, 0)
    assert mode_of(pool / "2026") == 0o700


@pytest.mark.usefixtures("root")
def test_a_directory_of_another_user_is_used_as_it_is(pool: Path) -> None:
    (pool / DAY / "db1").mkdir(parents=True)
    os.chown(pool / DAY / "db1", 1, 1)
    create(pool, BACKUP, mode=0o750)
    assert owner_of(pool / DAY / "db1") == (1, 1)


def links_elsewhere(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def is_a_file(path: Path, elsewhere: Path) -> None:
    path.write_bytes(b"")


def is_a_fifo(path: Path, elsewhere: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("make", [links_elsewhere, is_a_file, is_a_fifo])
def test_what_is_no_directory_is_neither_followed_nor_replaced(
    pool: Path, tmp_path: Path, level: str, make: Callable[[Path, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (pool / level).parent.mkdir(parents=True, exist_ok=True)
    make(pool / level, elsewhere)
    before = (pool / level).lstat()
    error = refused(pool)
    assert error.path == str(pool / level)
    assert "The staging directory cannot be used: Not a directory" in str(error)
    assert list(elsewhere.iterdir()) == []
    assert (pool / level).lstat().st_ino == before.st_ino


def test_the_path_of_a_peer_stays_its_own_when_its_name_is_given_to_a_link(pool: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    directories = DailyDirectories(str(pool), DAY)
    with directories, directories.peer_directory("db1") as path:
        (pool / DAY / "db1").rename(pool / DAY / "moved")
        (pool / DAY / "db1").symlink_to(elsewhere)
        Path(path, "file").write_bytes(b"x")
    assert list(elsewhere.iterdir()) == []
    assert files_in(pool / DAY / "moved") == {b"file": b"x"}


def test_the_day_stays_its_own_when_its_name_is_given_to_a_link(pool: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "db1").mkdir(parents=True)
    with DailyDirectories(str(pool), DAY) as directories:
        (pool / DAY).rename(pool / "moved")
        (pool / DAY).symlink_to(elsewhere)
        with directories.peer_directory("db1") as path:
            Path(path, "file").write_bytes(b"x")
        directories.write_indicator_file()
    assert files_in(elsewhere / "db1") == {}
    assert sorted(os.listdir(pool / "moved")) == [STAGE_INDICATOR, "db1"]


def test_errors_name_the_path_that_a_person_knows(pool: Path) -> None:
    directories = DailyDirectories(str(pool), DAY)
    with directories, pytest.raises(TargetError) as caught, directories.peer_directory("db1") as path:
        raise TargetError(f"{path} is full.", path=path, reason=Reason.NO_SPACE)
    assert str(caught.value) == f"{pool}/{DAY}/db1: {pool}/{DAY}/db1 is full."


@pytest.mark.parametrize("make", [links_elsewhere, Path.mkdir])
def test_an_indicator_in_whose_place_is_something_else_is_an_error(
    pool: Path, tmp_path: Path, make: Callable[..., None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    create(pool)
    make(*[pool / DAY / STAGE_INDICATOR, elsewhere][: 2 if make is links_elsewhere else 1])
    directories = DailyDirectories(str(pool), DAY)
    with directories, pytest.raises(TargetError, match="The stage indicator cannot be written") as caught:
        directories.write_indicator_file()
    assert caught.value.path == str(pool / DAY / STAGE_INDICATOR)
    assert not elsewhere.exists()


@pytest.mark.usefixtures("root")
def test_the_indicator_belongs_to_the_owner(pool: Path) -> None:
    with DailyDirectories(str(pool), DAY, BACKUP) as directories:
        directories.write_indicator_file()
        directories.write_indicator_file()
    assert owner_of(pool / DAY / STAGE_INDICATOR) == BACKUP


def test_a_pool_that_does_not_exist_is_not_created(pool: Path) -> None:
    assert refused(pool / "missing").reason is Reason.TARGET_MISSING
    assert list(pool.iterdir()) == []


def test_a_day_that_is_only_looked_for_is_not_created(pool: Path) -> None:
    assert refused(pool, create=False).reason is Reason.TARGET_MISSING
    assert list(pool.iterdir()) == []
    with DailyDirectories(str(pool), DAY):
        pass
    error = refused(pool, create=False)
    assert (error.reason, error.path) == (Reason.TARGET_MISSING, str(pool / DAY / "db1"))
    assert os.listdir(pool / DAY) == []
    create(pool)
    create(pool, create=False)


def test_several_workers_may_create_a_day_at_the_same_time(pool: Path) -> None:
    def create_all() -> None:
        for number in range(50):
            with DailyDirectories(str(pool), f"2026/11/{number % 28 + 1:02}") as directories:
                for peer in ("a", "b"):
                    with directories.peer_directory(peer):
                        pass

    with forked(create_all), forked(create_all):
        create_all()
    assert len(os.listdir(pool / "2026/11")) == 28
    assert {tuple(sorted(os.listdir(path))) for path in (pool / "2026/11").iterdir()} == {("a", "b")}


@pytest.mark.usefixtures("root")
def test_an_owner_that_the_file_system_refuses_is_told_and_does_not_end_the_run(
    pool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fchown", refuse)
        create(pool, BACKUP)
    assert f"Cannot change the owner of {pool}/2026: Operation not permitted." in caplog.messages
