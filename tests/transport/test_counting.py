"""What is counted of the files that land: bytes that are there, whatever comes again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerstage.landing import DirectoryLanding
from peerstage.landing.base import ranges_to_fetch
from peerstage.records import KIB, MIB, Entry
from peerstage.transport.counting import CountingLanding

SIZE = 6 * MIB
DATA = random.Random(0).randbytes(SIZE)
ENTRY = Entry(b"a", SIZE, 0o644, 1)
PIECE = 256 * KIB


@pytest.fixture
def landing(target: Path) -> Iterator[DirectoryLanding]:
    with DirectoryLanding(str(target), durable=False) as one:
        yield one


def fetch(counting: CountingLanding, data: bytes, most: int) -> None:
    """Write what is missing, at most so many bytes, as SFTP does."""
    slot = counting.open(ENTRY)
    for start, end in ranges_to_fetch(slot):
        while start < end and most > 0:
            piece = data[start : min(end, start + PIECE, start + most)]
            slot.write(start, [piece])
            start += len(piece)
            most -= len(piece)
            assert 0 <= counting.bytes <= SIZE
    if most > 0:
        slot.finish()


def send(counting: CountingLanding, data: bytes, most: int) -> None:
    """Write everything from the beginning, at most so many bytes, as SCP does."""
    slot = counting.open(ENTRY)
    for start in range(0, min(most, SIZE), PIECE):
        slot.write(start, [data[start : start + PIECE]])
        assert 0 <= counting.bytes <= SIZE
    if most > SIZE:
        slot.finish()


@pytest.mark.parametrize("bring", [fetch, send])
def test_bytes_that_come_again_over_another_connection_are_counted_once(landing: DirectoryLanding, bring) -> None:  # type: ignore[no-untyped-def]
    counting = CountingLanding(landing)
    bring(counting, DATA, 4 * MIB)
    assert counting.bytes == counting.high_water == 4 * MIB
    bring(counting, DATA, 2 * MIB)
    if bring is send:
        assert counting.high_water == 4 * MIB, "no progress"
    bring(counting, DATA, SIZE + 1 * MIB)
    assert (counting.files, counting.bytes, counting.high_water) == (1, SIZE, SIZE + 1)


@pytest.mark.parametrize("bring", [fetch, send])
def test_a_file_that_was_replaced_between_connections_is_counted_once(landing: DirectoryLanding, bring) -> None:  # type: ignore[no-untyped-def]
    counting = CountingLanding(landing)
    bring(counting, DATA, 4 * MIB)
    bring(counting, DATA[::-1], 2 * SIZE)
    assert (counting.files, counting.bytes, counting.high_water) == (1, SIZE, SIZE + 1)
