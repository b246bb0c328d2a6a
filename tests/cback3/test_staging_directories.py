"""The staging directories as cback3 creates them: owners, and warnings for those that exist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peerstage.cback3.staging_directories import StagingDirectories
from peerstage.records import Ownership

DAY = "2026/11/24"
LEVELS = ("2026", "2026/11", DAY, f"{DAY}/db1")
BACKUP = Ownership(4711, 4712)


def create(staging: Path) -> None:
    with StagingDirectories(str(staging), DAY, ["db1"], BACKUP):
        pass


def owners(staging: Path) -> list[tuple[int, int]]:
    return [(found.st_uid, found.st_gid) for level in LEVELS for found in ((staging / level).lstat(),)]


@pytest.mark.usefixtures("root")
def test_the_first_day_of_a_staging_directory_that_does_not_exist_belongs_to_the_backup_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    create(tmp_path / "staging")
    assert owners(tmp_path / "staging") == [BACKUP] * 4
    assert caplog.messages == []


@pytest.mark.usefixtures("root")
def test_a_new_day_gives_its_month_and_year_to_the_backup_user_as_well(tmp_path: Path) -> None:
    """As the original does: the backup user of the configuration may have changed."""
    (tmp_path / "2026/11/23").mkdir(parents=True)
    os.chown(tmp_path / "2026", 1, 1)
    create(tmp_path)
    assert owners(tmp_path) == [BACKUP] * 4


@pytest.mark.usefixtures("root")
def test_a_second_run_of_a_day_changes_no_owner_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / DAY / "db1").mkdir(parents=True)
    (tmp_path / DAY / "db1" / "file").touch()
    create(tmp_path)
    assert owners(tmp_path) == [(0, 0)] * 4
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("peerstage.cback3", "WARNING", f"Staging directory {tmp_path}/{path} already exists.")
        for path in (DAY, f"{DAY}/db1")
    ]
