"""The shared ring: data is read as it was written, and never overwritten before it is released."""

from __future__ import annotations

import fcntl
import os
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import ProtocolError
from peerstage.isolation.protocol.shared_ring import SIZE, SharedRing, SharedRingWriter


def create_pair() -> tuple[SharedRing, SharedRingWriter]:
    ring = SharedRing.create()
    assert ring is not None
    return ring, SharedRingWriter(os.dup(ring.fd))


@given(st.lists(st.tuples(st.integers(1, SIZE), st.booleans()), max_size=60))
def test_data_is_read_as_it_was_written_however_fast_it_is_released(steps: list[tuple[int, bool]]) -> None:
    ring, writer = create_pair()
    queue: deque[tuple[int, int, int, int]] = deque()
    used = 0
    for number, (length, release) in enumerate(steps):
        data = bytes([number % 251 + 1]) * length
        written = writer.write([data[: length // 2], memoryview(data)[length // 2 :]], length)
        if written is None:
            assert queue or length > SIZE // 2, "an empty ring takes at least half its size"
        else:
            queue.append((*written, length, data[0]))
            used += length
            assert used <= SIZE
        if release and queue:
            position, counter, size, byte = queue.popleft()
            view = ring.view(position, size)
            assert bytes(view) == bytes([byte]) * size
            view.release()
            ring.release(counter)
            used -= size
    ring.close()
    writer._memory.close()


@pytest.mark.parametrize(("position", "length"), [(SIZE, 1), (0, SIZE + 1), (2**63, 1), (SIZE - 3, 4)])
def test_a_position_outside_the_ring_is_rejected(position: int, length: int) -> None:
    ring, writer = create_pair()
    with pytest.raises(ProtocolError, match="outside the shared memory"):
        ring.view(position, length)
    ring.close()
    writer._memory.close()


def test_the_child_cannot_truncate_the_memory() -> None:
    """A parent that reads from truncated memory is killed by SIGBUS."""
    ring, writer = create_pair()
    for size in (0, SIZE // 2, SIZE * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(ring.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(ring.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    ring.release(2**64 - 1)
    assert len(ring.view(0, SIZE)) == SIZE
    ring.close()
    writer._memory.close()


def test_there_is_no_ring_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert SharedRing.create() is None
