"""Counting: each byte counts once, although some arrive again."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerstage.errors import ConnectionLost
from peerstage.records import KIB, MIB, Entry
from peerstage.stage_options import StageOptions
from peerstage.target import DirectoryTarget
from peerstage.target.base import ranges_to_fetch
from peerstage.transport.counting import CountingTarget
from support.incoming import admit_one
from support.kept import COMPARED, scaled_down, target_with

SIZE = 6 * MIB
DATA = random.Random(0).randbytes(SIZE)
ENTRY = Entry(b"a", SIZE, 0o644, 1)
CHUNK = 256 * KIB


@pytest.fixture
def staging_target(target: Path) -> Iterator[DirectoryTarget]:
    with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
        yield staging_target


def fetch(counting: CountingTarget, data: bytes, max_bytes: int) -> None:
    """Write missing ranges, up to *max_bytes* bytes, as SFTP does."""
    incoming = admit_one(counting, ENTRY)
    for start, end in ranges_to_fetch(incoming):
        while start < end and max_bytes > 0:
            piece = data[start : min(end, start + CHUNK, start + max_bytes)]
            incoming.write(start, [piece])
            start += len(piece)
            max_bytes -= len(piece)
            assert 0 <= counting.bytes <= SIZE
    if max_bytes > 0:
        incoming.finish()


def send(counting: CountingTarget, data: bytes, max_bytes: int) -> None:
    """Write everything from the start, up to *max_bytes* bytes, as SCP does."""
    incoming = admit_one(counting, ENTRY)
    for start in range(0, min(max_bytes, SIZE), CHUNK):
        incoming.write(start, [data[start : start + CHUNK]])
        assert 0 <= counting.bytes <= SIZE
    if max_bytes > SIZE:
        incoming.finish()


@pytest.mark.parametrize("deliver", [fetch, send])
def test_bytes_that_arrive_again_over_another_connection_count_once(staging_target: DirectoryTarget, deliver) -> None:  # type: ignore[no-untyped-def]
    counting = CountingTarget(staging_target)
    deliver(counting, DATA, 4 * MIB)
    assert counting.bytes == counting.high_water == 4 * MIB
    deliver(counting, DATA, 2 * MIB)
    if deliver is send:
        assert counting.high_water == 4 * MIB, "no progress"
    deliver(counting, DATA, SIZE + 1 * MIB)
    assert (counting.files, counting.bytes, counting.high_water) == (1, SIZE, SIZE + 1)


@pytest.mark.parametrize("deliver", [fetch, send])
def test_a_file_replaced_between_connections_counts_once(staging_target: DirectoryTarget, deliver) -> None:  # type: ignore[no-untyped-def]
    counting = CountingTarget(staging_target)
    deliver(counting, DATA, 4 * MIB)
    deliver(counting, DATA[::-1], 2 * SIZE)
    assert (counting.files, counting.bytes, counting.high_water) == (1, SIZE, SIZE + 1)


@pytest.mark.parametrize("is_same", [True, False])
def test_what_an_earlier_run_has_kept_is_shown_but_extends_no_deadline(
    target: Path, tmp_path: Path, is_same: bool
) -> None:
    """If it turns out to be of another version, all of the file counts as received."""
    with scaled_down():
        with contextlib.suppress(ConnectionLost), target_with(target, tmp_path / "partial") as staging_target:
            fetch(CountingTarget(staging_target), DATA, 4 * MIB)
            raise ConnectionLost("Gone.")
        with target_with(target, tmp_path / "partial") as staging_target:
            counting = CountingTarget(staging_target)
            shown: list[int] = []
            counting._on_change = lambda: shown.append(counting.bytes)
            fetch(counting, DATA if is_same else bytes(SIZE), 2 * SIZE)
    assert shown[0] >= 4 * MIB - COMPARED
    assert (counting.files, counting.bytes) == (1, SIZE)
    received = 2 * MIB if is_same else SIZE
    assert received < counting.high_water <= received + COMPARED + 1
