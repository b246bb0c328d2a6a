"""Small file systems for tests of full disks."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def tmpfs(path: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs on *path*.

    Raises:
        RuntimeError: If this user may not mount. The test fails instead of being skipped.
    """
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"A tmpfs cannot be mounted ({done.stderr.strip()}): run the tests as root, or in 'unshare -rm'."
        )
    try:
        yield path
    finally:
        os.chdir("/")
        subprocess.run(["umount", "-l", str(path)], check=True)
