"""A working child sends heartbeats, even if its peer is silent; it sends nothing between a reply and the next job."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator

import pytest

from peerstage.isolation.child.frame_writer import ChildLogHandler, FrameWriter, Heartbeat
from peerstage.isolation.protocol.frames import Admit, Alive, Frame, FrameParser, Log, Reply
from peerstage.records import Entry, Limits
from peerstage.watchdog import Watchdog

F_SETPIPE_SZ = 1031  # fcntl has it from Python 3.10 on, typeshed has not

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Pipe:
    """A pipe with a `FrameWriter`, and the frames that come out of it."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        fcntl.fcntl(self._write_end, F_SETPIPE_SZ, 1 << 20)
        self._parser = FrameParser()
        self.writer = FrameWriter(self._write_end)

    def wait_for_frames(self) -> list[Frame]:
        """Wait for data, and return the frames in it."""
        return list(self._parser.feed(memoryview(os.read(self._read_end, 1 << 20))))

    def frames(self) -> list[Frame]:
        """Return the frames that have arrived."""
        os.set_blocking(self._read_end, False)
        try:
            with contextlib.suppress(BlockingIOError):
                return self.wait_for_frames()
            return []
        finally:
            os.set_blocking(self._read_end, True)

    def close(self) -> None:
        for fd in (self._read_end, self._write_end):
            os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def log(pipe: Pipe) -> Iterator[logging.Logger]:
    """A logger whose lines are sent through the pipe."""
    logger, handler = logging.getLogger("peerstage.transport"), ChildLogHandler(pipe.writer)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def line(text: str) -> Log:
    return Log(logging.WARNING, "peerstage.transport", text)


def test_a_log_line_is_sent_at_once_with_the_current_batch(pipe: Pipe, log: logging.Logger) -> None:
    admit = Admit(0, (Entry(b"a", 1),))
    pipe.writer.begin_job()
    assert pipe.frames() == [Alive()]
    pipe.writer.put(admit)
    log.warning("the last words before a crash")
    assert pipe.frames() == [admit, line("the last words before a crash")]


def test_nothing_is_sent_between_a_reply_and_the_next_job(pipe: Pipe, log: logging.Logger) -> None:
    pipe.writer.begin_job()
    pipe.writer.end_job(Reply({}))
    log.warning("from a thread that is still running")
    pipe.writer.send_heartbeat()
    assert pipe.frames() == [Alive(), Reply({})]
    pipe.writer.begin_job()
    assert pipe.frames() == [line("from a thread that is still running"), Alive()]


def test_log_lines_kept_between_two_jobs_are_limited(pipe: Pipe, log: logging.Logger) -> None:
    for _ in range(10_000):
        log.warning("again")
    pipe.writer.begin_job()
    assert 100 < len(pipe.frames()) < 2000


def test_a_waiting_child_sends_heartbeats_within_the_stall_timeout(pipe: Pipe) -> None:
    watchdog = Watchdog(Limits(stall_timeout=0.2))
    with contextlib.closing(Heartbeat(pipe.writer, watchdog)) as heartbeat:
        pipe.writer.begin_job()
        pipe.writer.put(Admit(0, (Entry(b"a", 1),)))
        heartbeat.start()
        assert pipe.wait_for_frames() == [Alive()]
        assert pipe.wait_for_frames() == [Admit(0, (Entry(b"a", 1),)), Alive()]
        assert pipe.wait_for_frames() == [Alive()]


def test_the_heartbeat_stops_once_the_watchdog_has_ended_the_run(pipe: Pipe) -> None:
    watchdog = Watchdog(Limits(stall_timeout=0.2))
    with contextlib.closing(Heartbeat(pipe.writer, watchdog)) as heartbeat:
        pipe.writer.begin_job()
        watchdog.cancel()
        heartbeat.start()
        heartbeat._thread.join(10)
        assert not heartbeat._thread.is_alive()
    assert pipe.frames() == [Alive()]
