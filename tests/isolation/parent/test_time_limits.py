"""How long a parent waits for its child: as long as a transport in its own process may take, plus the grace."""

from __future__ import annotations

import pytest

from peerstage import Limits
from peerstage.errors import Cancelled, LimitExceeded
from peerstage.isolation.parent.time_limits import GRACE, ChildTimeLimits
from peerstage.rates import BandwidthLimit
from peerstage.watchdog import Watchdog


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def time() -> Time:
    return Time()


def create_time_limits(time: Time, limits: Limits, received: int = 0) -> ChildTimeLimits:
    return ChildTimeLimits(limits, Watchdog(limits), lambda: received, clock=time)


def test_a_silent_child_is_given_up_after_the_stall_timeout_and_the_grace(time: Time) -> None:
    time_limits = create_time_limits(time, Limits(stall_timeout=30), received=100 << 30)
    time_limits.expect_frame(is_starting=False)
    assert time_limits.remaining() == 30
    time.seconds += 30
    assert time_limits.remaining() == GRACE
    time.seconds += GRACE
    with pytest.raises(LimitExceeded, match=r"sent nothing for 30 s \(Limits.stall_timeout\)"):
        time_limits.remaining()


def test_a_child_that_sends_frames_has_the_whole_deadline(time: Time) -> None:
    limits = Limits()
    time_limits = create_time_limits(time, limits, received=limits.min_rate * 1000)
    for _ in range(1600 // 50):
        time.seconds += 50
        time_limits.expect_frame(is_starting=False)
    time.seconds += GRACE
    with pytest.raises(LimitExceeded, match="The operation did not complete within 1600 s"):
        time_limits.expect_frame(is_starting=False)


def test_time_spent_on_the_local_disk_does_not_count_as_silence(time: Time) -> None:
    time_limits = create_time_limits(time, Limits(stall_timeout=30))
    time_limits.expect_frame(is_starting=False)
    time.seconds += 300
    time_limits.expect_frame(is_starting=False)
    assert time_limits.remaining() == 30


def test_a_child_that_resumes_after_a_suspension_of_the_machine_is_not_given_up(time: Time) -> None:
    time_limits = create_time_limits(time, Limits(deadline=1e6))
    time_limits.expect_frame(is_starting=False)
    time.seconds += 9 * 3600
    assert time_limits.remaining() == GRACE
    time_limits.expect_frame(is_starting=False)
    assert time_limits.remaining() == 60


def test_a_starting_child_has_a_minute_for_its_first_frame(time: Time) -> None:
    time_limits = create_time_limits(time, Limits(stall_timeout=0.5))
    assert time_limits.remaining() == 60
    time_limits.expect_frame(is_starting=True)
    assert time_limits.remaining() == 60
    time_limits.expect_frame(is_starting=False)
    assert time_limits.remaining() == 0.5


def test_the_time_that_the_bandwidth_limit_takes_is_added_to_the_deadline(time: Time) -> None:
    limits = Limits(deadline=100)
    time_limits = ChildTimeLimits(limits, Watchdog(limits, bandwidth=BandwidthLimit(1000)), lambda: 50_000, clock=time)
    for _ in range(15):
        time.seconds += 10
        time_limits.expect_frame(is_starting=False)
    time.seconds += GRACE + 1
    with pytest.raises(LimitExceeded, match=r"The operation did not complete within 151 s \(Limits.deadline"):
        time_limits.expect_frame(is_starting=False)


def test_a_cancelled_run_ends_the_wait(time: Time) -> None:
    watchdog = Watchdog(Limits())
    time_limits = ChildTimeLimits(Limits(), watchdog, lambda: 0, clock=time)
    watchdog.cancel()
    with pytest.raises(Cancelled):
        time_limits.expect_frame(is_starting=False)
