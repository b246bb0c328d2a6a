"""How long a parent waits for its child: as long as in process, and no longer."""

from __future__ import annotations

import pytest

from peerstage import Limits
from peerstage.errors import Cancelled, LimitExceeded
from peerstage.isolation.clock import GRACE, Clock
from peerstage.session.watchdog import Watchdog


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def time() -> Time:
    return Time()


def clock_of(time: Time, limits: Limits, received: int = 0) -> Clock:
    return Clock(limits, Watchdog(limits), lambda: received, now=time)


def test_a_child_that_is_silent_is_given_up_after_the_stall_bound_and_the_grace(time: Time) -> None:
    clock = clock_of(time, Limits(stall_timeout=30), received=100 << 30)
    clock.listen(starting=False)
    assert clock.left() == 30
    time.seconds += 30
    assert clock.left() == GRACE
    time.seconds += GRACE
    with pytest.raises(LimitExceeded, match=r"said nothing for 30 s \(Limits.stall_timeout\)"):
        clock.left()


def test_a_child_that_is_heard_of_has_the_whole_deadline(time: Time) -> None:
    limits = Limits()
    clock = clock_of(time, limits, received=limits.min_rate * 1000)
    for _ in range(1600 // 50):
        time.seconds += 50
        clock.listen(starting=False)
    time.seconds += GRACE
    with pytest.raises(LimitExceeded, match="Not done within 1600 s"):
        clock.listen(starting=False)


def test_what_the_local_disk_takes_is_not_the_childs_silence(time: Time) -> None:
    clock = clock_of(time, Limits(stall_timeout=30))
    clock.listen(starting=False)
    time.seconds += 300
    clock.listen(starting=False)
    assert clock.left() == 30


def test_a_machine_that_was_suspended_ends_no_child_that_goes_on(time: Time) -> None:
    clock = clock_of(time, Limits(deadline=1e6))
    clock.listen(starting=False)
    time.seconds += 9 * 3600
    assert clock.left() == GRACE
    clock.listen(starting=False)
    assert clock.left() == 60


def test_a_child_that_starts_gets_a_minute_for_its_first_word(time: Time) -> None:
    clock = clock_of(time, Limits(stall_timeout=0.5))
    assert clock.left() == 60
    clock.listen(starting=True)
    assert clock.left() == 60
    clock.listen(starting=False)
    assert clock.left() == 0.5


def test_a_run_that_was_cancelled_is_waited_for_no_more(time: Time) -> None:
    watchdog = Watchdog(Limits())
    clock = Clock(Limits(), watchdog, lambda: 0, now=time)
    watchdog.cancel()
    with pytest.raises(Cancelled):
        clock.listen(starting=False)
