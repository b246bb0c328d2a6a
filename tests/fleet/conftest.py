"""Fixtures of the tests of fleets."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerstage.fleet.pool.runs_directory import RunsDirectory
from support.quick import quick_directory


@pytest.fixture
def pool() -> Iterator[Path]:
    """An empty staging pool, in memory if there is such a file system."""
    with quick_directory() as path:
        yield path


@pytest.fixture
def runs(pool: Path) -> Iterator[RunsDirectory]:
    """The runs directory of the pool."""
    with RunsDirectory(str(pool)) as directory:
        yield directory


@pytest.fixture
def time_zone() -> Iterator[Callable[[str], None]]:
    """Sets the time zone of the process, in the form of POSIX, for the test."""
    before = os.environ.get("TZ")

    def set_zone(name: str) -> None:
        os.environ["TZ"] = name
        time.tzset()

    yield set_zone
    if before is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = before
    time.tzset()
