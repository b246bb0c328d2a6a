"""A temporary directory in memory, for tests that stage hundreds of times."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def quick_directory() -> Iterator[Path]:
    """Yield an empty directory, in memory if there is such a file system, and remove it at the end."""
    memory = "/dev/shm"
    is_usable = os.path.isdir(memory) and os.access(memory, os.W_OK | os.X_OK)
    with tempfile.TemporaryDirectory(prefix="target-test-", dir=memory if is_usable else None) as path:
        yield Path(path)
