"""Answers to a child are sent as fast as it reads them, and never keep the parent from receiving frames."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from peerstage.errors import ProtocolError
from peerstage.isolation.parent.child_channel import ChildChannel
from peerstage.isolation.protocol.jobs import receive_job

pytestmark = pytest.mark.usefixtures("leaves_nothing")

#: Larger than the buffer of any socket.
LARGE: dict[str, Any] = {"missing": "x" * (4 << 20)}


class Ends:
    """A channel, and the child's ends of it."""

    def __init__(self, **options: int) -> None:
        with contextlib.ExitStack() as child_ends:
            self.channel = ChildChannel(child_ends, **options)
            jobs, frames, _ = self.channel.child_stdio
            self.jobs = socket.socket(fileno=os.dup(jobs))
            self.frames = os.dup(frames)

    def receive(self) -> bytes:
        return bytes(self.channel.receive(lambda: 30.0))

    def close(self) -> None:
        self.jobs.close()
        os.close(self.frames)
        self.channel.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with contextlib.closing(Ends()) as ends:
        yield ends


def test_frames_are_received_while_an_answer_waits_for_the_child(ends: Ends) -> None:
    ends.channel.queue_answer(LARGE)
    for frame in (b"one", b"two", b"three"):
        os.write(ends.frames, frame)
        assert ends.receive() == frame
    assert ends.channel.has_answers


@pytest.mark.parametrize("count", [1, 2])
def test_answers_are_sent_in_order_once_the_child_reads(ends: Ends, count: int) -> None:
    answers = [LARGE, {"missing": []}][:count]
    received: list[Any] = []

    def child() -> None:
        for _ in answers:
            received.append(receive_job(ends.jobs))
        os.write(ends.frames, b"done")

    for answer in answers:
        ends.channel.queue_answer(answer)
    thread = threading.Thread(target=child)
    thread.start()
    assert ends.receive() == b"done"
    thread.join()
    assert received == [(answer, -1) for answer in answers]
    assert not ends.channel.has_answers


def test_a_child_that_asks_and_does_not_read_breaks_the_protocol(ends: Ends) -> None:
    ends.channel.queue_answer(LARGE)
    ends.channel.queue_answer(LARGE)
    with pytest.raises(ProtocolError, match="does not read the answers"):
        ends.channel.queue_answer(LARGE)


def test_a_child_that_exits_before_its_answer_is_reported_by_the_next_receive(ends: Ends) -> None:
    ends.jobs.close()
    ends.channel.queue_answer(LARGE)
    with pytest.raises(EOFError):
        ends.receive()


@pytest.mark.parametrize(("max_buffer", "size"), [(64 << 10, 64 << 10), (24 << 20, 1 << 20)])
def test_a_child_can_send_no_more_ahead_than_the_parent_allows(max_buffer: int, size: int) -> None:
    with contextlib.closing(Ends(max_buffer=max_buffer)) as ends:
        os.set_blocking(ends.frames, False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += os.write(ends.frames, bytes(64 << 10))
        assert sent == size
        assert len(ends.receive()) == size
