"""Fixtures of the target's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.quick import quick_directory


@pytest.fixture
def quick_target() -> Iterator[Path]:
    """An empty target in memory if there is such a file system, for tests that stage hundreds of times."""
    with quick_directory() as path:
        yield path
