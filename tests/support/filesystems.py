"""Small file systems for tests of full and failing disks."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


def fill(path: Path) -> None:
    """Write to *path* until its file system is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


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


def enlarge_tmpfs(path: Path, size: str) -> None:
    """Change the size of the tmpfs on *path*."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(path)], check=True)


@contextlib.contextmanager
def ext4_on_tmpfs(path: Path, size: str) -> Iterator[Path]:
    """Mount an ext4 whose device is a sparse file on the tmpfs ``path/tmpfs``: once that is full, writes fail with EIO.

    Raises:
        RuntimeError: If it cannot be mounted. The test fails instead of being skipped.
    """
    with tmpfs(path / "tmpfs", f"size={size}") as small:
        image, mounted = small / "image", path / "ext4"
        mounted.mkdir()
        with image.open("wb") as file:
            file.truncate(128 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
        done = subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"An ext4 cannot be mounted ({done.stderr.strip()}): run the tests as root, with loop devices."
            )
        try:
            yield mounted
        finally:
            subprocess.run(["umount", "-l", str(mounted)], check=True)
