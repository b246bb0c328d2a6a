"""Who is asked next: pace, pauses, jitter, and the end, on a clock that only the test moves."""

from __future__ import annotations

import datetime
import itertools
import queue
import time
from collections.abc import Callable, Iterator

import pytest

from peerstage.fleet.schedule import Clock, Schedule, find_end
from support.fleet import FrozenClock


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The local time of New York, where clocks are changed at 02:00."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text: str, fold: int = 0) -> float:
    """Return the epoch seconds of a local time."""
    return datetime.datetime.fromisoformat(text).replace(fold=fold).timestamp()


def make_schedule(*names: str, seconds: float | None = None, jitter: Callable[[], float] = lambda: 0.0) -> Schedule:
    """Return a schedule that ends after *seconds*, and its clock as `clock`."""
    clock = FrozenClock()
    made = Schedule(names, end=None if seconds is None else clock.time() + seconds, clock=clock, jitter=jitter)
    made.clock = clock  # type: ignore[attr-defined]
    return made


def ask(due: Schedule) -> str | None:
    """Ask the peer that is due, and return its name."""
    name = due.next_due()
    if name is not None:
        due.pop()
    return name


def ask_all(due: Schedule) -> list[tuple[str, float]]:
    """Ask every peer, none of which is ever ready; return who was asked, and when."""
    asked = []
    clock: FrozenClock = due.clock  # type: ignore[attr-defined]
    start = clock.monotonic()
    while (seconds := due.seconds_to_next()) is not None:
        clock.advance(seconds)
        name = ask(due)
        assert name is not None
        asked.append((name, round(clock.monotonic() - start, 3)))
        due.ask_again(name)
    return asked


def test_without_an_end_every_peer_is_asked_once_in_the_order_of_the_plan() -> None:
    assert [name for name, _ in ask_all(make_schedule("c", "a", "b"))] == ["c", "a", "b"]


def test_at_most_64_connections_are_started_in_a_second() -> None:
    asked = ask_all(make_schedule(*(str(number) for number in range(100))))
    assert max(sum(1 for _, when in asked if start <= when < start + 1) for _, start in asked) <= 65
    assert asked[-1][1] == pytest.approx(99 / 64, abs=0.01)


def test_time_that_was_not_used_is_not_saved_for_a_burst() -> None:
    due = make_schedule("a", "b", "c")
    assert ask(due) == "a"
    due.clock.advance(100)  # type: ignore[attr-defined]
    assert ask(due) == "b"
    assert ask(due) is None


def test_a_peer_that_is_not_ready_is_asked_again_after_pauses_that_double_up_to_a_quarter_of_an_hour() -> None:
    asked = [when for _, when in ask_all(make_schedule("a", seconds=5000))]
    assert [round(later - earlier) for earlier, later in itertools.pairwise(asked)] == [
        60, 120, 240, 480, 900, 900, 900, 900, 500,
    ]  # fmt: skip


def test_the_last_question_comes_at_the_end() -> None:
    assert ask_all(make_schedule("a", seconds=100))[-1] == ("a", 100.0)


@pytest.mark.parametrize("left", [0.3, 1, 4.9])
def test_a_question_that_chance_puts_just_before_the_end_comes_at_the_end(left: float) -> None:
    asked = ask_all(make_schedule("a", seconds=60, jitter=lambda: left / 60 / 0.25))
    assert asked == [("a", 0.0), ("a", 60.0)]


def test_a_peer_that_was_busy_until_just_before_the_end_is_asked_at_the_end() -> None:
    due = make_schedule("a", seconds=60)
    ask(due)
    due.clock.advance(57)  # type: ignore[attr-defined]
    assert due.ask_again("a")
    assert due.seconds_to_next() == pytest.approx(3)
    due.clock.advance(3)  # type: ignore[attr-defined]
    assert ask(due) == "a"
    assert not due.ask_again("a")


def test_pauses_are_shortened_at_random_and_never_lengthened() -> None:
    pauses = []
    for chance in (0.0, 0.5, 1.0):
        due = make_schedule("a", seconds=5000, jitter=lambda chance=chance: chance)  # type: ignore[misc]
        ask(due)
        due.ask_again("a")
        pauses.append(due.seconds_to_next())
    assert pauses == [60, 52.5, 45]


def test_every_peer_is_asked_once_before_one_is_asked_again() -> None:
    due = make_schedule("a", "b", seconds=1000)
    assert ask(due) == "a"
    due.ask_again("a")
    due.clock.advance(500)  # type: ignore[attr-defined]
    assert ask(due) == "b"
    due.clock.advance(1)  # type: ignore[attr-defined]
    assert ask(due) == "a"


def test_a_clock_that_is_set_forward_past_the_end_ends_the_questions() -> None:
    due = make_schedule("a", seconds=5000)
    ask(due)
    due.clock.wall += 6000  # type: ignore[attr-defined]
    assert not due.ask_again("a")


def test_a_peer_that_could_not_be_asked_is_the_next() -> None:
    due = make_schedule("a", "b")
    assert ask(due) == "a"
    due.put_back("a")
    due.clock.advance(1)  # type: ignore[attr-defined]
    assert ask(due) == "a"


def test_what_is_not_asked_yet_is_drained_in_the_order_of_the_plan() -> None:
    due = make_schedule("a", "b", "c", "d", seconds=1000)
    ask(due)
    due.ask_again("a")
    assert list(due.drain()) == ["a", "b", "c", "d"]
    assert not due
    assert due.seconds_to_next() is None


# The end


def test_no_time_of_day_is_no_end() -> None:
    assert find_end(None, time.time()) is None


@pytest.mark.usefixtures("in_new_york")
@pytest.mark.parametrize(
    ("started", "until", "end"),
    [
        ("2026-11-23T03:15:00", "06:00", "2026-11-23T06:00:00"),
        ("2026-11-23T23:15:00", "06:00", "2026-11-24T06:00:00"),
        ("2026-12-31T23:59:59", "00:00", "2027-01-01T00:00:00"),
        ("2026-11-23T18:00:00", "06:00", "2026-11-24T06:00:00"),
    ],
)
def test_the_end_is_the_next_such_time_even_beyond_midnight(started: str, until: str, end: str) -> None:
    assert find_end(datetime.time.fromisoformat(until), at(started)) == at(end)


@pytest.mark.usefixtures("in_new_york")
@pytest.mark.parametrize("started", ["2026-11-23T06:00:00", "2026-11-23T06:00:01", "2026-11-23T17:59:59"])
def test_a_run_that_starts_later_has_no_end_to_wait_for(started: str) -> None:
    assert find_end(datetime.time(6), at(started)) is None


@pytest.mark.usefixtures("in_new_york")
def test_hours_are_those_of_the_wall_when_clocks_change_in_between() -> None:
    spring = find_end(datetime.time(6), at("2026-03-08T01:00:00"))
    autumn = find_end(datetime.time(6), at("2026-11-01T00:30:00"))
    assert spring == at("2026-03-08T01:00:00") + 4 * 3600
    assert autumn == at("2026-11-01T00:30:00") + 6.5 * 3600


@pytest.mark.usefixtures("in_new_york")
def test_a_time_that_the_clock_skips_is_an_hour_later() -> None:
    end = find_end(datetime.time(2, 30), at("2026-03-08T01:00:00"))
    assert end is not None
    assert datetime.datetime.fromtimestamp(end) == datetime.datetime(2026, 3, 8, 3, 30)


@pytest.mark.usefixtures("in_new_york")
def test_of_a_time_that_occurs_twice_the_next_one_counts() -> None:
    until = datetime.time(1, 30)
    assert find_end(until, at("2026-11-01T00:30:00")) == at("2026-11-01T01:30:00", fold=0)
    assert find_end(until, at("2026-11-01T01:45:00", fold=0)) == at("2026-11-01T01:30:00", fold=1)
    assert find_end(until, at("2026-11-01T01:45:00", fold=1)) is None


def test_a_time_of_day_may_have_its_own_time_zone() -> None:
    started = datetime.datetime(2026, 11, 23, 3, 0, tzinfo=datetime.timezone.utc).timestamp()
    assert find_end(datetime.time(6, tzinfo=datetime.timezone.utc), started) == started + 3 * 3600


def test_a_moment_of_the_real_clock_passes() -> None:
    clock = Clock()
    before = clock.monotonic(), clock.time()
    assert clock.wait(queue.SimpleQueue(), 0.001) is None
    assert clock.monotonic() > before[0]
    assert clock.time() > before[1]
