"""Durations as people write them: with a unit, in the time formats of sshd_config(5)."""

from __future__ import annotations

import re

_UNITS = {"w": 7 * 86_400, "d": 86_400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:[0-9]{1,9}[wdhms])+", re.ASCII)
_PART = re.compile(r"([0-9]+)([wdhms])", re.ASCII)


def parse_duration(text: str) -> int:
    """Return the number of seconds in *text*: numbers, each with s, m, h, d or w behind it, which are added.

    Unlike in sshd_config(5), a number needs its unit: 20 could mean seconds or hours.

    Raises:
        ValueError: If *text* has another form.
    """
    lower = text.lower()
    if _DURATION.fullmatch(lower) is None:
        raise ValueError(f"a duration such as 90m, 20h or 8d, with the unit s, m, h, d or w: {text!r}")
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(lower))
