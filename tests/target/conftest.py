"""Fixtures of the target's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.quick import quick_directory

#: Modules whose tests use the disk of this machine, as users do. The others would wait for fsync(2) most of the time.
_ON_DISK = ("test_commit", "test_directory_target", "test_disks", "test_durability")


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of a test: in memory if there is such a file system, except in modules about disks."""
    if request.path.stem in _ON_DISK:
        yield tmp_path
    else:
        with quick_directory() as path:
            yield path
            monkeypatch.undo()  # the directory is removed by system calls that a test may have replaced


@pytest.fixture
def quick_target() -> Iterator[Path]:
    """An empty target in memory if there is such a file system, for tests that stage hundreds of times."""
    with quick_directory() as path:
        yield path
