"""Durations as people write them."""

from __future__ import annotations

import pytest

from peerstage.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("90s", 90),
        ("90m", 5400),
        ("20h", 72_000),
        ("8d", 691_200),
        ("2W", 1_209_600),
        ("1h30m", 5400),
        ("1d1d", 172_800),
    ],
)
def test_units_are_those_of_sshd_config(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "20", "h", "-1h", "+1h", "1.5h", "1 h", " 1h", "1h\n", "1hour", "1y", "١h", "1h30", "9" * 10 + "h"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration such as 90m, 20h or 8d"):
        parse_duration(text)
