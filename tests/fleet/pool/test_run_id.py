"""The id of a run, and the day that it belongs to."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import pytest

from peerstage.fleet.pool.run_id import day_of, days_about, is_day, is_run_id, new_run_id, start_time_of

#: Berlin: summer time ends on 2026-10-25 at 03:00 (01:00 UTC), and begins on 2026-03-29 at 02:00 (01:00 UTC).
BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"
ZONES = ["UTC0", BERLIN, "LINE-14", "WEST12"]


def utc(*parts: int) -> float:
    return datetime.datetime(*parts, tzinfo=datetime.timezone.utc).timestamp()  # type: ignore[misc, arg-type]


@pytest.mark.parametrize("zone", ZONES)
def test_ids_sort_by_start_time_also_when_the_local_clock_is_set_back(
    zone: str, time_zone: Callable[[str], None]
) -> None:
    time_zone(zone)
    moments = [utc(2026, 10, 25, 0, 59, 59) + 0.0015 * number for number in range(2000)]
    ids = [new_run_id(moment) for moment in moments]
    assert ids == sorted(ids)


def test_an_id_tells_when_the_run_started() -> None:
    started = utc(2026, 11, 24, 2, 15, 2) + 0.417
    run = new_run_id(started)
    assert run.startswith("20261124T021502.417Z-")
    assert is_run_id(run)
    assert start_time_of(run) == pytest.approx(started, abs=0.001)


def test_two_runs_that_start_at_the_same_time_on_two_hosts_differ() -> None:
    assert len({new_run_id(1.5) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    "text",
    [
        *("", "..", "lock", "20261124T021502.417Z", "20261124T021502.417Z-9F3C", "20260231T021502.417Z-9f3c"),
        *("20261124T021502.417Z-9f3c\n", "x20261124T021502.417Z-9f3c", "２0261124T021502.417Z-9f3c"),
    ],
)
def test_another_text_is_no_id(text: str) -> None:
    assert not is_run_id(text)
    assert days_about(text) == frozenset()


@pytest.mark.parametrize(
    ("zone", "moment", "day"),
    [
        ("UTC0", utc(2026, 11, 23, 23, 59, 59), "2026/11/23"),
        ("UTC0", utc(2026, 11, 24), "2026/11/24"),
        (BERLIN, utc(2026, 11, 23, 22, 59, 59), "2026/11/23"),
        (BERLIN, utc(2026, 11, 23, 23, 0, 0), "2026/11/24"),
        (BERLIN, utc(2026, 3, 29, 0, 59, 59), "2026/03/29"),
        (BERLIN, utc(2026, 3, 29, 1, 0, 0), "2026/03/29"),
        (BERLIN, utc(2026, 3, 29, 21, 59, 59), "2026/03/29"),
        (BERLIN, utc(2026, 3, 29, 22, 0, 0), "2026/03/30"),
        (BERLIN, utc(2026, 10, 25, 0, 30, 0), "2026/10/25"),
        (BERLIN, utc(2026, 10, 25, 1, 30, 0), "2026/10/25"),
        (BERLIN, utc(2026, 10, 25, 22, 59, 59), "2026/10/25"),
        (BERLIN, utc(2026, 10, 25, 23, 0, 0), "2026/10/26"),
        (BERLIN, utc(2026, 12, 31, 23, 0, 0), "2027/01/01"),
    ],
)
def test_the_day_is_the_local_one_on_which_the_run_started(
    zone: str, moment: float, day: str, time_zone: Callable[[str], None]
) -> None:
    time_zone(zone)
    assert day_of(moment) == day
    assert is_day(day)


@pytest.mark.parametrize("zone", ZONES)
def test_an_id_is_about_its_day_in_every_time_zone_and_not_about_days_far_away(
    zone: str, time_zone: Callable[[str], None]
) -> None:
    time_zone(zone)
    for hour in range(48):
        started = utc(2026, 3, 28) + 3600 * hour
        run = new_run_id(started)
        assert day_of(started) in days_about(run)
        assert day_of(started - 3 * 86400) not in days_about(run)
        assert day_of(started + 3 * 86400) not in days_about(run)


@pytest.mark.parametrize("text", ["", "2026/11", "2026/11/24/", "/2026/11/24", "2026/11/24\n", "../../etc", "26/11/24"])
def test_another_text_is_no_day(text: str) -> None:
    assert not is_day(text)
