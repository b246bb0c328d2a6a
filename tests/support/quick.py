"""Temporary files of the tests: in memory, because few tests are about disks and all would wait for their fsync(2)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MEMORY = "/dev/shm"

#: Where files are on a disk; /tmp is in memory on some systems.
_DISK = "/var/tmp"

#: Free bytes without which the files stay on the disk: several times what the tests of six workers occupy at a time.
_NEEDED = 2 << 30


def use_memory() -> None:
    """Let this process and its children create their temporary files in memory, unless ``TMPDIR`` is set.

    They stay where they are if there is no file system in memory, or if it is small or does not run programs.
    """
    if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK | os.X_OK):
        return
    found = os.statvfs(_MEMORY)
    if found.f_bavail * found.f_frsize >= _NEEDED and not found.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = _MEMORY
        tempfile.tempdir = None  # pytest has asked for it already


@contextlib.contextmanager
def quick_directory() -> Iterator[Path]:
    """Yield an empty directory, in memory if possible, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="peerstage-test-") as path:
        yield Path(path)


@contextlib.contextmanager
def disk_directory() -> Iterator[Path]:
    """Yield an empty directory on a disk, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="peerstage-test-", dir=_DISK) as path:
        yield Path(path)
