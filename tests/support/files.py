"""Files for tests to stage."""

from __future__ import annotations

from pathlib import Path


def write_files(directory: Path, **files: bytes) -> None:
    """Write each file, given by name and content, into *directory*."""
    for name, data in files.items():
        (directory / name).write_bytes(data)
