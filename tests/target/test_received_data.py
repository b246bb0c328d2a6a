"""Data received over several connections: which ranges are fetched again, and the effect of a difference."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.target.received_data import SAMPLE_BYTES, ReceivedData
from support.examples import examples

MIB = 1 << 20


def receive(arrived: ReceivedData, content: bytes, disk: bytearray, *, pieces: int, seed: int, piece: int = 512) -> int:
    """Add up to *pieces* missing pieces in random order, split into random buffers; return their number."""
    chance = random.Random(seed)
    wanted = [(at, min(at + piece, end)) for start, end in arrived.missing() for at in range(start, end, piece)]
    chance.shuffle(wanted)
    for start, end in wanted[:pieces]:
        data = content[start:end]
        cut = chance.randint(0, len(data))
        arrived.add(start, [data[:cut], memoryview(data)[cut:]], len(data))
        disk[start:end] = data
    return min(pieces, len(wanted))


@examples(40)
@given(st.integers(1, 6000), st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=6), st.integers(0, 99))
def test_a_file_with_two_versions_that_differ_everywhere_becomes_one_of_them(
    size: int, connections: list[tuple[bool, int]], seed: int
) -> None:
    versions = [bytes([number + 1]) * size for number in range(2)]
    arrived, disk = ReceivedData(size), bytearray(size)
    for which, pieces in connections:
        receive(arrived, versions[which], disk, pieces=pieces, seed=seed)
        if arrived.is_complete:
            break
        arrived.resume()
    else:
        for _ in range(2):
            receive(arrived, versions[1], disk, pieces=10**9, seed=seed)
    assert arrived.is_complete
    assert arrived.received_bytes == size
    assert bytes(disk) in versions


def test_over_one_connection_nothing_is_fetched_twice() -> None:
    arrived = ReceivedData(10_000)
    arrived.add(0, [b"x" * 4000], 4000)
    arrived.add(6000, [b"x" * 1000], 1000)
    assert list(arrived.missing()) == [(4000, 6000), (7000, 10_000)]


def test_the_last_sample_is_fetched_again_with_the_rest() -> None:
    arrived = ReceivedData(10 * MIB)
    for at in range(0, 5 * MIB, MIB // 4):
        arrived.add(at, [bytes(MIB // 4)], MIB // 4)
    arrived.resume()
    ranges = list(arrived.missing())
    assert ranges[-1] == (5 * MIB - SAMPLE_BYTES, 10 * MIB)
    assert ranges[0] == (MIB // 4 - SAMPLE_BYTES, MIB // 4)
    assert len(ranges) >= 4
    arrived.add(5 * MIB - SAMPLE_BYTES, [bytes(SAMPLE_BYTES)], SAMPLE_BYTES)
    assert list(arrived.missing())[-1] == (5 * MIB, 10 * MIB), "a confirmed sample is not fetched again"


def test_bytes_of_this_connection_are_kept_when_earlier_ones_are_dropped() -> None:
    arrived = ReceivedData(10_000)
    arrived.add(0, [b"a" * 3000], 3000)
    arrived.resume()
    arrived.add(5000, [b"b" * 1000], 1000)
    arrived.add(0, [b"b" * 3000], 3000)
    assert list(arrived.missing()) == [(3000, 5000), (6000, 10_000)]
    assert arrived.received_bytes == 4000


@pytest.mark.parametrize("at", [0, 1, 1000, SAMPLE_BYTES - 1])
def test_one_different_byte_in_a_sample_is_detected_however_it_is_split(at: int) -> None:
    old = bytearray(random.Random(1).randbytes(SAMPLE_BYTES))
    for cut in (1, 700, SAMPLE_BYTES - 1):
        arrived = ReceivedData(2 * SAMPLE_BYTES)
        arrived.add(0, [bytes(old)], SAMPLE_BYTES)
        arrived.resume()
        new = bytearray(old)
        new[at] ^= 1
        arrived.add(0, [bytes(new[:cut])], cut)
        arrived.add(cut, [bytes(new[cut:])], SAMPLE_BYTES - cut)
        missing = sum(end - start for start, end in arrived.missing())
        assert missing in (SAMPLE_BYTES, SAMPLE_BYTES + cut)
        receive(arrived, bytes(new) + bytes(SAMPLE_BYTES), bytearray(2 * SAMPLE_BYTES), pieces=10**9, seed=0)
        assert arrived.is_complete


def test_many_connections_and_samples_take_little_memory() -> None:
    arrived = ReceivedData(1 << 40)
    piece = bytes(256 * 1024)
    tracemalloc.start()
    try:
        for number in range(200):
            arrived.add(number << 30, [piece], len(piece))
            arrived.resume()
        assert tracemalloc.get_traced_memory()[0] < 64 * 1024
    finally:
        tracemalloc.stop()
    assert len(list(arrived.missing())) <= 210
