"""The id of a run, which sorts by time, and the day that a run belongs to."""

from __future__ import annotations

import contextlib
import datetime
import re
import secrets
import time

_RUN_ID = re.compile(r"(\d{8}T\d{6}\.\d{3})Z-[0-9a-f]{4}", re.ASCII)
_FORMAT = "%Y%m%dT%H%M%S.%f"
_DAY = "%Y/%m/%d"


def new_run_id(started: float) -> str:
    """Return an id such as ``20261124T021502.417Z-9f3c``: the start time in UTC, and a random number.

    Ids sort by start time, whatever the time zone and its clock changes. They are plain file names.

    Args:
        started: When the run started, in seconds since the epoch.
    """
    moment = datetime.datetime.fromtimestamp(int(started * 1000) / 1000, datetime.timezone.utc)
    return f"{moment.strftime(_FORMAT)[:-3]}Z-{secrets.token_hex(2)}"


def is_run_id(text: str) -> bool:
    """Return whether *text* is an id that `new_run_id` can return."""
    return start_time_of(text) is not None


def start_time_of(run: str) -> float | None:
    """Return when the run with the id *run* started, in seconds since the epoch; None if *run* is not an id."""
    match = _RUN_ID.fullmatch(run)
    if match is None:
        return None
    try:
        moment = datetime.datetime.strptime(match[1], _FORMAT)
    except ValueError:  # such as the 31st of February
        return None
    return moment.replace(tzinfo=datetime.timezone.utc).timestamp()


def day_of(started: float) -> str:
    """Return the daily directory of a run, ``YYYY/MM/DD``: the local day on which it started, however long it lasts.

    Args:
        started: When the run started, in seconds since the epoch.
    """
    return time.strftime(_DAY, time.localtime(started))


def is_day(text: str) -> bool:
    """Return whether *text* is a daily directory that `day_of` can return."""
    with contextlib.suppress(ValueError):
        return datetime.datetime.strptime(text, _DAY).strftime(_DAY) == text
    return False


def days_about(run: str) -> frozenset[str]:
    """Return the daily directories that the run with the id *run* may be of, in whatever time zone it ran."""
    started = start_time_of(run)
    if started is None:
        return frozenset()
    moment = datetime.datetime.fromtimestamp(started, datetime.timezone.utc)
    with contextlib.suppress(OverflowError):  # the first day of the calendar, or the last
        days = (moment + datetime.timedelta(offset) for offset in (-1, 0, 1))
        return frozenset(day.strftime(_DAY) for day in days)
    return frozenset({moment.strftime(_DAY)})
