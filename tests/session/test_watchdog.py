"""The watchdog: every wait has an end, and says which bound it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from peerstage.errors import Cancelled, LimitExceeded, StageError
from peerstage.records import Limits
from peerstage.session.watchdog import Watchdog
from support.waiting import wait_until


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    one = Watchdog(Limits(login_timeout=0.1, stall_timeout=0.1, deadline=0.3, reply_timeout=0.1))
    yield one
    one.close()


class Clock:
    """The real time and some seconds more, which counts how often it is looked at."""

    ahead = 0.0
    looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return time.monotonic() + self.ahead


def wait_for(event: threading.Event) -> None:
    assert event.wait(10)


def test_a_phase_that_takes_too_long_is_ended(watchdog: Watchdog) -> None:
    ended = threading.Event()
    with watchdog.ending(ended.set), watchdog.phase("complete the login", 0.05):
        wait_for(ended)
    with pytest.raises(LimitExceeded, match=r"complete the login within 0\.05 s"):
        watchdog.check()


def test_a_phase_inside_another_ends_with_it(watchdog: Watchdog) -> None:
    ended = threading.Event()
    with watchdog.ending(ended.set), watchdog.phase("log in", 0.05), watchdog.phase("answer", 60):
        wait_for(ended)
    assert "log in within 0.05 s" in str(watchdog.failure)


def test_a_stall_counts_only_time_that_the_peer_was_waited_for(watchdog: Watchdog) -> None:
    clock = Clock()
    slow_disk = Watchdog(Limits(stall_timeout=0.1, deadline=5.0), clock=clock)
    ended = threading.Event()
    with slow_disk.ending(ended.set), slow_disk.operation():
        clock.ahead = 3.0
        looks = clock.looks
        wait_until(lambda: clock.looks > looks + 3)
        slow_disk.check()
        slow_disk.begin_wait()
        wait_for(ended)
    slow_disk.close()
    assert slow_disk.failure is not None
    assert slow_disk.failure.transient
    assert "stall_timeout" in str(slow_disk.failure)


def test_the_deadline_ends_an_operation_and_can_not_be_renewed(watchdog: Watchdog) -> None:
    ended = threading.Event()
    with watchdog.ending(ended.set), watchdog.operation():
        wait_for(ended)
    with pytest.raises(LimitExceeded, match="deadline"):
        watchdog.renew()


def test_a_promise_allows_the_time_that_it_takes_at_the_lowest_rate() -> None:
    assert Limits(min_rate=1000).seconds_for(1_000_000) == 1600.0
    assert Limits(deadline=5.0).seconds_for(1 << 60) == 5.0


def test_cancel_ends_what_waits_and_holds(watchdog: Watchdog) -> None:
    ended = threading.Event()
    with watchdog.ending(ended.set):
        threading.Timer(0.05, watchdog.cancel).start()
        with pytest.raises(Cancelled):
            watchdog.sleep(30)
        wait_for(ended)
    with pytest.raises(Cancelled):
        watchdog.renew()


def test_what_is_attached_after_the_end_is_ended_at_once(watchdog: Watchdog) -> None:
    watchdog.cancel()
    ended = threading.Event()
    watchdog.attach(ended.set)
    assert ended.is_set()


def test_a_stall_is_forgotten_for_the_next_connection(watchdog: Watchdog) -> None:
    watchdog._end(LimitExceeded("stalled", transient=True))
    watchdog.renew()
    watchdog.check()


def test_one_ending_that_fails_does_not_keep_the_others(watchdog: Watchdog) -> None:
    def fails() -> None:
        raise RuntimeError

    ended = threading.Event()
    watchdog.attach(fails)
    watchdog.attach(ended.set)
    watchdog.cancel()
    assert ended.is_set()
    assert isinstance(watchdog.failure, StageError)


def test_closing_ends_the_thread_and_may_be_repeated(leaves_nothing: None) -> None:
    one = Watchdog(Limits())
    with one.operation():
        pass
    one.close()
    one.close()
