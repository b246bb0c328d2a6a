"""Fixtures of the target's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.quick import disk_directory, quick_directory

#: Modules whose tests use the disk of this machine, as users do. The others would wait for fsync(2) most of the time.
_ON_DISK = ("test_commit", "test_directory_target", "test_disks", "test_durability")


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of a test: in memory if possible, except in modules about disks."""
    if request.path.stem in _ON_DISK:
        with disk_directory() as path:
            yield path
            monkeypatch.undo()  # the directory is removed by system calls that a test may have replaced
    else:
        yield tmp_path


@pytest.fixture
def quick_target() -> Iterator[Path]:
    """An empty target in memory if possible, for tests in modules about disks as well."""
    with quick_directory() as path:
        yield path
