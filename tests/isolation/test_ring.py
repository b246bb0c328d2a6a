"""The memory that is shared: what lies in it comes out as it was, in order, and never more than there is room for."""

from __future__ import annotations

import fcntl
import os
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import ProtocolError
from peerstage.isolation.ring import SIZE, Ring, RingWriter


def pair() -> tuple[Ring, RingWriter]:
    ring = Ring.make()
    assert ring is not None
    return ring, RingWriter(os.dup(ring.fd))


@given(st.lists(st.tuples(st.integers(1, SIZE), st.booleans()), max_size=60))
def test_pieces_come_out_as_they_were_however_fast_they_are_taken(steps: list[tuple[int, bool]]) -> None:
    ring, writer = pair()
    waiting: deque[tuple[int, int, int, int]] = deque()
    held = 0
    for number, (length, take) in enumerate(steps):
        data = bytes([number % 251 + 1]) * length
        place = writer.place([data[: length // 2], memoryview(data)[length // 2 :]], length)
        if place is None:
            assert waiting or length > SIZE // 2, "where nothing lies there is room, if not for all that would fit"
        else:
            waiting.append((*place, length, data[0]))
            held += length
            assert held <= SIZE
        if take and waiting:
            position, mark, size, byte = waiting.popleft()
            piece = ring.piece(position, size)
            assert bytes(piece) == bytes([byte]) * size
            piece.release()
            ring.release(mark)
            held -= size
    ring.close()
    writer._memory.close()


@pytest.mark.parametrize(("position", "length"), [(SIZE, 1), (0, SIZE + 1), (2**63, 1), (SIZE - 3, 4)])
def test_what_would_lie_outside_is_refused(position: int, length: int) -> None:
    ring, writer = pair()
    with pytest.raises(ProtocolError, match="no memory"):
        ring.piece(position, length)
    ring.close()
    writer._memory.close()


def test_the_child_can_not_take_the_memory_away() -> None:
    """A parent that reads what was cut off would be killed (SIGBUS)."""
    ring, writer = pair()
    for size in (0, SIZE // 2, SIZE * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(ring.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(ring.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    ring.release(2**64 - 1)
    assert len(ring.piece(0, SIZE)) == SIZE
    ring.close()
    writer._memory.close()


def test_where_there_is_no_memory_to_share_there_is_no_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert Ring.make() is None
