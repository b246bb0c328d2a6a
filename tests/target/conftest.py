"""Fixtures of the target's tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def quick_target(tmp_path: Path) -> Iterator[Path]:
    """An empty target in memory if there is such a file system, for tests that stage hundreds of times."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK | os.X_OK):
        path = Path(tempfile.mkdtemp(prefix="target-test-", dir=memory))
        yield path
        shutil.rmtree(path)
    else:
        path = tmp_path / "quick"
        path.mkdir()
        yield path
