"""The watchdog ends every wait, with an error that names the limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from peerstage.errors import Cancelled, LimitExceeded, StageError
from peerstage.rates import BandwidthLimit
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.watchdog import Watchdog
from support.waiting import wait_until


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(Limits(login_timeout=0.1, stall_timeout=0.1, deadline=0.3, reply_timeout=0.1))
    yield watchdog
    watchdog.close()


class Clock:
    """The real time plus an offset; counts its calls."""

    offset = 0.0
    calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return time.monotonic() + self.offset


def wait_for(event: threading.Event) -> None:
    assert event.wait(10)


def test_a_phase_that_exceeds_its_limit_is_interrupted(watchdog: Watchdog) -> None:
    ended = threading.Event()
    with watchdog.on_failure(ended.set), watchdog.phase("complete the login", 0.05):
        wait_for(ended)
    with pytest.raises(LimitExceeded, match=r"complete the login within 0\.05 s"):
        watchdog.raise_if_failed()


def test_a_nested_phase_ends_with_the_outer_one(watchdog: Watchdog) -> None:
    ended = threading.Event()
    with watchdog.on_failure(ended.set), watchdog.phase("log in", 0.05), watchdog.phase("answer", 60):
        wait_for(ended)
    assert "log in within 0.05 s" in str(watchdog.failure)


def test_only_time_spent_waiting_for_the_peer_counts_as_a_stall(watchdog: Watchdog) -> None:
    clock = Clock()
    slow_disk = Watchdog(Limits(stall_timeout=0.1, deadline=5.0), clock=clock)
    ended = threading.Event()
    with slow_disk.on_failure(ended.set), slow_disk.operation():
        clock.offset = 3.0
        calls = clock.calls
        wait_until(lambda: clock.calls > calls + 3)
        slow_disk.raise_if_failed()
        slow_disk.begin_wait()
        wait_for(ended)
    slow_disk.close()
    assert slow_disk.failure is not None
    assert slow_disk.failure.transient
    assert "stall_timeout" in str(slow_disk.failure)


def test_the_deadline_interrupts_an_operation_and_no_reset_is_possible(watchdog: Watchdog) -> None:
    ended = threading.Event()
    with watchdog.on_failure(ended.set), watchdog.operation():
        wait_for(ended)
    with pytest.raises(LimitExceeded, match="deadline"):
        watchdog.reset()


class ManualClock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedOperation:
    """An operation under a watchdog with a clock of its own.

    Attributes:
        watchdog: The watchdog.
        kept: Bytes of files that are kept.
    """

    def __init__(self, **limits: float) -> None:
        self._clock = ManualClock()
        self.watchdog = Watchdog(Limits(**{"stall_timeout": 1e6, **limits}), clock=self._clock)  # type: ignore[arg-type]
        self.watchdog._started = 0.0
        self.kept = 0
        self.watchdog.extend_deadline_by(lambda: self.kept)

    def wait(self, seconds: float, received: int = 0, *, is_content: bool = False) -> None:
        """Wait for the peer, then receive bytes."""
        self.watchdog.begin_wait()
        self._clock.now += seconds
        self.watchdog.end_wait()
        self.watchdog.count_received(received, is_content=is_content)

    @property
    def exceeded_limit(self) -> str:
        """The error for the limit that is exceeded now; empty if none is."""
        failure = self.watchdog._exceeded_limit()
        assert failure is None or not failure.transient
        return str(failure or "")


def test_the_deadline_is_ten_minutes_plus_the_time_for_the_bytes_at_the_minimum_rate() -> None:
    assert Limits(min_rate=1000).deadline_for(1_000_000) == 1600.0
    assert Limits(deadline=5.0).deadline_for(1 << 60) == 5.0


def test_bytes_that_are_kept_extend_the_deadline_and_dropped_ones_do_not() -> None:
    for keeps in (True, False):
        operation = TimedOperation(min_rate=1000)
        for minute in range(1, 20):
            operation.wait(60, 60_000, is_content=True)
            if keeps:
                operation.kept = minute * 60_000
        assert bool(operation.exceeded_limit) is not keeps
    assert "The operation did not complete within 600 s (Limits.deadline, min_rate)" in operation.exceeded_limit


def test_repeated_answers_over_several_connections_extend_the_deadline_once() -> None:
    operation = TimedOperation(min_rate=1000)
    for _ in range(10):
        operation.wait(100, 100_000)
        operation.watchdog.reset()
    operation.wait(1, 10)
    operation.watchdog.reset()
    assert "The operation did not complete within 700 s" in operation.exceeded_limit


def test_bytes_received_twice_extend_the_deadline_once() -> None:
    operation = TimedOperation(min_rate=1000)
    for _ in range(10):
        operation.wait(100, 100_000, is_content=True)
        operation.kept = 100_000
    assert "The operation did not complete within 700 s" in operation.exceeded_limit


@pytest.mark.parametrize("before", [0, 10**9])
@pytest.mark.parametrize("deadline", [None, 1e9])
def test_one_byte_a_minute_is_too_slow_within_ten_minutes_after_any_number_of_bytes(
    before: int, deadline: float | None
) -> None:
    operation = TimedOperation(deadline=deadline)  # type: ignore[arg-type]
    operation.wait(1.0, before, is_content=True)
    operation.kept = before
    assert operation.exceeded_limit == ""
    for _ in range(9):
        operation.wait(60, 1, is_content=True)
        assert operation.exceeded_limit == ""
    operation.wait(60, 1, is_content=True)
    operation.wait(60, 1, is_content=True)
    assert "min_rate" in operation.exceeded_limit
    if before or deadline:
        assert "sends fewer than 16384 bytes a second" in operation.exceeded_limit


def test_the_minimum_rate_is_always_fast_enough_even_after_a_pause() -> None:
    operation = TimedOperation()
    for minute in range(1, 10_000):
        if minute % 1000:
            operation.wait(60, size := 60 * Limits().min_rate, is_content=True)
        else:
            operation.wait(500, size := 500 * 2 * Limits().min_rate, is_content=True)
        operation.kept += size
        assert operation.exceeded_limit == "", minute


def test_time_spent_on_the_local_disk_does_not_count_towards_the_rate() -> None:
    operation = TimedOperation(deadline=1e9)
    for _ in range(100):
        operation._clock.now += 600
        operation.wait(1, 1, is_content=True)
    assert operation.exceeded_limit == ""


def test_a_command_may_be_silent_until_its_deadline() -> None:
    operation = TimedOperation()
    with operation.watchdog.command_deadline(10_000):
        operation.wait(9_000, 1)
        assert operation.exceeded_limit == ""


def test_a_deadline_that_passes_between_two_connections_interrupts_the_sleep(leaves_nothing: None) -> None:
    watchdog = Watchdog(Limits(stall_timeout=0.05, deadline=0.3))
    with watchdog.operation():
        watchdog._fail(LimitExceeded("stalled", transient=True, reason=Reason.STALLED))
        with pytest.raises(LimitExceeded, match="deadline"):
            watchdog.sleep(30)
    watchdog.close()


def test_after_a_phase_exceeded_its_limit_another_connection_is_possible(watchdog: Watchdog) -> None:
    ended = threading.Event()
    with watchdog.on_failure(ended.set), watchdog.phase("open the sftp subsystem", 0.05):
        wait_for(ended)
    watchdog.reset()
    watchdog.raise_if_failed()


def test_cancel_interrupts_and_is_final(watchdog: Watchdog) -> None:
    ended = threading.Event()
    with watchdog.on_failure(ended.set):
        threading.Timer(0.05, watchdog.cancel).start()
        with pytest.raises(Cancelled):
            watchdog.sleep(30)
        wait_for(ended)
    with pytest.raises(Cancelled):
        watchdog.reset()


def test_a_callback_added_after_the_failure_is_called_at_once(watchdog: Watchdog) -> None:
    watchdog.cancel()
    ended = threading.Event()
    watchdog.add_callback(ended.set)
    assert ended.is_set()


def test_reset_clears_a_stall(watchdog: Watchdog) -> None:
    watchdog._fail(LimitExceeded("stalled", transient=True, reason=Reason.STALLED))
    watchdog.reset()
    watchdog.raise_if_failed()


def test_a_callback_that_raises_does_not_keep_others_from_being_called(watchdog: Watchdog) -> None:
    def fail() -> None:
        raise RuntimeError

    ended = threading.Event()
    watchdog.add_callback(fail)
    watchdog.add_callback(ended.set)
    watchdog.cancel()
    assert ended.is_set()
    assert isinstance(watchdog.failure, StageError)


def test_close_stops_the_thread_and_may_be_called_again(leaves_nothing: None) -> None:
    watchdog = Watchdog(Limits())
    with watchdog.operation():
        pass
    watchdog.close()
    watchdog.close()


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        (Reason.CONNECT_TIMEOUT, "firewall"),
        (Reason.BANNER_TIMEOUT, "listens on this port"),
        (Reason.LOGIN_TIMEOUT, "UseDNS"),
        (Reason.REPLY_TIMEOUT, "load"),
    ],
)
def test_the_advice_fits_the_phase(watchdog: Watchdog, reason: Reason, advice: str) -> None:
    with pytest.raises(LimitExceeded) as late, watchdog.operation(), watchdog.phase("answer", 0, reason):
        watchdog.sleep(60)
    assert advice in late.value.message
    assert ("port" in late.value.message) is (reason is Reason.BANNER_TIMEOUT)


# The bandwidth limit.


class VirtualWatchdog(Watchdog):
    """A watchdog that sleeps by setting its clock ahead.

    Attributes:
        exceeded: The limits that were found exceeded in the middle of these sleeps.
    """

    def __init__(self, limits: Limits, clock: ManualClock, bwlimit: int) -> None:
        super().__init__(limits, clock=clock, bandwidth=BandwidthLimit(bwlimit, clock))
        self._manual_clock = clock
        self.exceeded: list[StageError] = []

    def sleep(self, seconds: float) -> None:
        self._manual_clock.now += seconds / 2
        if (failure := self._exceeded_limit()) is not None:
            self.exceeded.append(failure)
        self._manual_clock.now += seconds / 2


class ThrottledOperation(TimedOperation):
    """An operation with a bandwidth limit."""

    watchdog: VirtualWatchdog

    def __init__(self, bwlimit: int, **limits: float) -> None:
        super().__init__()
        self.watchdog = VirtualWatchdog(Limits(**limits), self._clock, bwlimit)  # type: ignore[arg-type]
        self.watchdog._started = 0.0
        self.watchdog.extend_deadline_by(lambda: self.kept)

    def receive(self, size: int, *, keep: bool = True, after: float = 0.0) -> None:
        """Receive *size* bytes, for which the peer takes *after* seconds, as a stream and its reader do."""
        self.watchdog.begin_wait()
        self._clock.now += after
        self.watchdog.end_wait()
        self.watchdog.throttle(size)
        self.watchdog.count_received(size, is_content=True)
        self.kept += size * keep


@pytest.mark.parametrize("bwlimit", [1024, 100_000])
def test_time_spent_waiting_for_the_bandwidth_limit_counts_for_no_limit(bwlimit: int) -> None:
    operation = ThrottledOperation(bwlimit, stall_timeout=0.5, reply_timeout=0.5, login_timeout=0.5, deadline=30)
    for _ in range(1000):
        operation.receive(bwlimit // 2)
        assert operation.exceeded_limit == ""
    assert operation._clock.now > 490
    assert operation.watchdog.exceeded == []


def test_without_a_deadline_waits_for_the_bandwidth_limit_are_added_to_the_default_one() -> None:
    operation = ThrottledOperation(2000, min_rate=1000)
    for _ in range(5000):
        operation.receive(1000)
    assert operation._clock.now > 2000
    operation._clock.now += 600 + 5_000_000 / 1000 - 2
    assert operation.exceeded_limit == ""
    operation._clock.now += 4
    assert "did not complete within 5600 s, besides 2500 s for the bandwidth limit (Limits." in operation.exceeded_limit


def test_waits_for_discarded_bytes_count_for_the_deadline() -> None:
    operation = ThrottledOperation(2000, deadline=100)
    for _ in range(250):
        operation.receive(1000, keep=False)
    assert "did not complete within 100 s, besides 1 s for the bandwidth limit" in operation.exceeded_limit


def test_a_peer_that_is_slower_than_the_bandwidth_limit_has_the_usual_deadline() -> None:
    operation = ThrottledOperation(1_000_000, deadline=100)
    for _ in range(101):
        operation.receive(10_000, after=1.0)
    assert "The operation did not complete within 100 s (Limits.deadline" in operation.exceeded_limit


def test_a_bandwidth_limit_below_the_minimum_rate_lowers_it() -> None:
    operation = ThrottledOperation(2000, deadline=1e9, stall_timeout=1e6)
    assert operation.watchdog.limits.min_rate == 2000
    for _ in range(2000):
        operation.receive(1900, after=1.0)
    assert "fewer than 2000 bytes a second" not in operation.exceeded_limit
    for _ in range(2000):
        operation.receive(1000, after=1.0)
    assert "fewer than 2000 bytes a second" in operation.exceeded_limit


def test_a_peer_that_sends_nothing_stalls_whatever_the_bandwidth_limit_is() -> None:
    operation = ThrottledOperation(2000, stall_timeout=60)
    operation.receive(1_000_000)
    operation.watchdog.begin_wait()
    operation._clock.now += 61
    failure = operation.watchdog._exceeded_limit()
    assert failure is not None
    assert "stall_timeout" in str(failure)


def test_the_bandwidth_limit_outlives_a_connection() -> None:
    operation = ThrottledOperation(1000)
    operation.receive(10_000)
    operation.watchdog.reset()
    operation.receive(10_000)
    assert operation._clock.now == pytest.approx(20)


def test_the_output_of_a_command_is_not_throttled() -> None:
    operation = ThrottledOperation(1000)
    with operation.watchdog.command_deadline(10):
        operation.receive(1_000_000)
    assert operation._clock.now == 0


def test_cancel_ends_a_wait_for_the_bandwidth_limit_at_once() -> None:
    watchdog = Watchdog(Limits(), bandwidth=BandwidthLimit(1024))
    timer = threading.Timer(0.05, watchdog.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        watchdog.throttle(1 << 30)
    timer.join()
