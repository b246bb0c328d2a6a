"""The watchdog: every wait has an end, and says which bound it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from peerstage.errors import Cancelled, LimitExceeded, StageError
from peerstage.reasons import Reason
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


class StoppedClock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed:
    """A watchdog, with a clock of its own, during an operation.

    Attributes:
        watchdog: It is in the middle of an operation.
        kept: Bytes of files that are there.
    """

    def __init__(self, **limits: float) -> None:
        self._clock = StoppedClock()
        self.watchdog = Watchdog(Limits(**{"stall_timeout": 1e6, **limits}), clock=self._clock)  # type: ignore[arg-type]
        self.watchdog._started = 0.0
        self.kept = 0
        self.watchdog.count_kept(lambda: self.kept)

    def wait(self, seconds: float, received: int = 0, **how: bool) -> None:
        """Wait for the peer, and then receive some bytes."""
        self.watchdog.begin_wait()
        self._clock.now += seconds
        self.watchdog.end_wait()
        self.watchdog.received(received, **how)

    @property
    def overdue(self) -> str:
        """What the watchdog would end the operation for now; empty if nothing."""
        failure = self.watchdog._overdue()
        assert failure is None or not failure.transient
        return str(failure or "")


def test_the_deadline_is_ten_minutes_and_what_the_bytes_received_take_at_the_lowest_rate() -> None:
    assert Limits(min_rate=1000).seconds_for(1_000_000) == 1600.0
    assert Limits(deadline=5.0).seconds_for(1 << 60) == 5.0


def test_the_deadline_moves_with_bytes_that_are_kept_and_not_with_those_that_are_dropped() -> None:
    for keeps in (True, False):
        timed = Timed(min_rate=1000)
        for minute in range(1, 20):
            timed.wait(60, 60_000, content=True)
            if keeps:
                timed.kept = minute * 60_000
        assert bool(timed.overdue) is not keeps
    assert "Not done within 600 s (Limits.deadline, min_rate)" in timed.overdue


def test_answers_over_several_connections_move_the_deadline_once() -> None:
    timed = Timed(min_rate=1000)
    for _ in range(10):
        timed.wait(100, 100_000)
        timed.watchdog.renew()
    assert "Not done within 700 s" in timed.overdue


def test_bytes_that_come_again_move_the_deadline_once() -> None:
    timed = Timed(min_rate=1000)
    for _ in range(10):
        timed.wait(100, 100_000, content=True)
        timed.kept = 100_000
    assert "Not done within 700 s" in timed.overdue


@pytest.mark.parametrize("before", [0, 10**9])
@pytest.mark.parametrize("deadline", [None, 1e9])
def test_a_byte_a_minute_is_too_slow_within_ten_minutes_however_much_came_before(
    before: int, deadline: float | None
) -> None:
    timed = Timed(deadline=deadline)  # type: ignore[arg-type]
    timed.wait(1.0, before, content=True)
    timed.kept = before
    assert timed.overdue == ""
    for _ in range(9):
        timed.wait(60, 1, content=True)
        assert timed.overdue == ""
    timed.wait(60, 1, content=True)
    timed.wait(60, 1, content=True)
    assert "min_rate" in timed.overdue
    if before or deadline:
        assert "sends fewer than 16384 bytes a second" in timed.overdue


def test_the_lowest_rate_is_fast_enough_for_ever_and_a_break_is_forgiven() -> None:
    timed = Timed()
    for minute in range(1, 10_000):
        if minute % 1000:
            timed.wait(60, size := 60 * Limits().min_rate, content=True)
        else:
            timed.wait(500, size := 500 * 2 * Limits().min_rate, content=True)
        timed.kept += size
        assert timed.overdue == "", minute


def test_time_spent_on_the_local_disk_does_not_count_for_the_rate() -> None:
    timed = Timed(deadline=1e9)
    for _ in range(100):
        timed._clock.now += 600
        timed.wait(1, 1, content=True)
    assert timed.overdue == ""


def test_a_command_may_be_silent_and_slow() -> None:
    timed = Timed()
    with timed.watchdog.patience(10_000):
        timed.wait(9_000, 1)
        assert timed.overdue == ""


def test_a_deadline_that_passes_between_two_connections_ends_the_wait(leaves_nothing: None) -> None:
    one = Watchdog(Limits(stall_timeout=0.05, deadline=0.3))
    with one.operation():
        one._end(LimitExceeded("stalled", transient=True, reason=Reason.STALLED))
        with pytest.raises(LimitExceeded, match="deadline"):
            one.sleep(30)
    one.close()


def test_a_phase_that_takes_too_long_is_worth_another_connection(watchdog: Watchdog) -> None:
    ended = threading.Event()
    with watchdog.ending(ended.set), watchdog.phase("open the sftp subsystem", 0.05):
        wait_for(ended)
    watchdog.renew()
    watchdog.check()


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
    watchdog._end(LimitExceeded("stalled", transient=True, reason=Reason.STALLED))
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


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        (Reason.CONNECT_TIMEOUT, "firewall"),
        (Reason.BANNER_TIMEOUT, "listens on this port"),
        (Reason.LOGIN_TIMEOUT, "UseDNS"),
        (Reason.REPLY_TIMEOUT, "load"),
    ],
)
def test_the_advice_fits_what_took_too_long(watchdog: Watchdog, reason: Reason, says: str) -> None:
    with pytest.raises(LimitExceeded) as late, watchdog.operation(), watchdog.phase("answer", 0, reason):
        watchdog.sleep(60)
    assert says in late.value.message
    assert ("port" in late.value.message) is (reason is Reason.BANNER_TIMEOUT)
