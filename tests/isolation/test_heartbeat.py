"""A child that works is heard of, whatever its peer does; behind the result of a job it says nothing."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator

import pytest

from peerstage.isolation.frames import Alive, FrameParser, Log, Open, Record, Result
from peerstage.isolation.heartbeat import Heartbeat
from peerstage.isolation.upward import Upward, UpwardLog
from peerstage.records import Entry, Limits
from peerstage.session.watchdog import Watchdog

F_SETPIPE_SZ = 1031  # fcntl has it from Python 3.10 on, typeshed has not

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Pipe:
    """A pipe with a child's end, and what comes out of it."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        fcntl.fcntl(self._writing, F_SETPIPE_SZ, 1 << 20)
        self._parser = FrameParser()
        self.upward = Upward(self._writing)

    def wait(self) -> list[Record]:
        """Return what comes next, as soon as anything does."""
        return list(self._parser.feed(memoryview(os.read(self._reading, 1 << 20))))

    def now(self) -> list[Record]:
        """Return what has come by now."""
        os.set_blocking(self._reading, False)
        try:
            with contextlib.suppress(BlockingIOError):
                return self.wait()
            return []
        finally:
            os.set_blocking(self._reading, True)

    def close(self) -> None:
        for fd in (self._reading, self._writing):
            os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def log(pipe: Pipe) -> Iterator[logging.Logger]:
    """A logger whose lines go up."""
    logger, handler = logging.getLogger("peerstage.transport"), UpwardLog(pipe.upward)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def line(text: str) -> Log:
    return Log(logging.WARNING, "peerstage.transport", text)


def test_a_line_of_the_log_comes_at_once_with_all_that_was_kept_back(pipe: Pipe, log: logging.Logger) -> None:
    opened = Open(0, Entry(b"a", 1))
    pipe.upward.begin()
    assert pipe.now() == [Alive()]
    pipe.upward.put(opened)
    log.warning("the last words before a crash")
    assert pipe.now() == [opened, line("the last words before a crash")]


def test_nothing_comes_behind_a_result_until_the_next_job_begins(pipe: Pipe, log: logging.Logger) -> None:
    pipe.upward.begin()
    pipe.upward.end(Result({}))
    log.warning("from a thread that goes on")
    pipe.upward.beat()
    assert pipe.now() == [Alive(), Result({})]
    pipe.upward.begin()
    assert pipe.now() == [line("from a thread that goes on"), Alive()]


def test_what_is_logged_between_two_jobs_is_bounded(pipe: Pipe, log: logging.Logger) -> None:
    for _ in range(10_000):
        log.warning("again")
    pipe.upward.begin()
    assert 100 < len(pipe.now()) < 2000


def test_a_child_that_waits_is_heard_of_in_time(pipe: Pipe) -> None:
    watchdog = Watchdog(Limits(stall_timeout=0.2))
    with contextlib.closing(Heartbeat(pipe.upward, watchdog)) as heartbeat:
        pipe.upward.begin()
        pipe.upward.put(Open(0, Entry(b"a", 1)))
        heartbeat.start()
        assert pipe.wait() == [Alive()]
        assert pipe.wait() == [Open(0, Entry(b"a", 1)), Alive()]
        assert pipe.wait() == [Alive()]


def test_once_the_watchdog_has_ended_the_run_nothing_is_heard_any_more(pipe: Pipe) -> None:
    watchdog = Watchdog(Limits(stall_timeout=0.2))
    with contextlib.closing(Heartbeat(pipe.upward, watchdog)) as heartbeat:
        pipe.upward.begin()
        watchdog.cancel()
        heartbeat.start()
        heartbeat._thread.join(10)
        assert not heartbeat._thread.is_alive()
    assert pipe.now() == [Alive()]
