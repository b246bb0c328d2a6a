"""Peers that lose the connection, and a directory of kept files that is scaled down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peerstage.errors import ConnectionLost
from peerstage.records import StageReport
from peerstage.stage_options import StageOptions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget, kept_files
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.base import Transport

#: The scaled-down sizes: bytes that are worth keeping, at the end that is compared, and in each random block.
MIN_BYTES, TAIL, BLOCK = 1000, 200, 50
#: The most bytes that are compared of one file.
COMPARED = TAIL + 16 * BLOCK


@contextlib.contextmanager
def scaled_down() -> Iterator[None]:
    """Keep files of 1,000 bytes and more, and compare few of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_files, "MIN_BYTES", MIN_BYTES)
        patch.setattr(kept_files, "_TAIL", TAIL)
        patch.setattr(kept_files, "_BLOCK", BLOCK)
        yield


class Peer(MemoryTransport):
    """Has *files* in ``/c``, and loses the connection after *bytes_left* bytes; None keeps it."""

    host_key = "SHA256:none"

    def __init__(self, files: dict[bytes, MemoryFile], bytes_left: int | None = None, *, chunk_size: int = 100) -> None:
        super().__init__({b"/c": files}, chunk_size=chunk_size, before_write=self._cut)
        self.sent = 0
        self._bytes_left = bytes_left
        self._chunk_size = chunk_size

    def _cut(self, written: int) -> None:
        if self._bytes_left is not None and written >= self._bytes_left:
            raise ConnectionLost("It is gone.")
        self.sent = written + self._chunk_size


def target_with(
    target: Path, partial_dir: Path | None, *, peer: str = "peer", directory: bytes = b"/c", **options: Any
) -> DirectoryTarget:
    """Return a target that keeps files in *partial_dir*."""
    stage_options = StageOptions(durable=False, partial_dir=partial_dir and str(partial_dir), **options)
    return DirectoryTarget(str(target), options=stage_options, peer=peer, directory=directory)


def stage_from(transport: Transport, target: Path, partial_dir: Path | None, **options: Any) -> StageReport:
    """Stage ``/c`` of *transport*."""
    return stage(transport, b"/c", target_with(target, partial_dir, **options))


def names_in(partial_dir: Path) -> list[str]:
    """Return the names in *partial_dir*."""
    return sorted(path.name for path in partial_dir.iterdir())
