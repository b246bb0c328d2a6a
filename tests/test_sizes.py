"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.sizes import format_size_exactly, parse_size
from support.examples import examples


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("1k", 1 << 10), ("10M", 10 << 20), ("3G", 3 << 30), ("16T", 16 << 40), ("007K", 7 << 10)],
)
def test_a_suffix_stands_for_a_power_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "K", "-1", "+1", "1.5G", "1 M", " 1", "1\n", "1MB", "1KiB", "1P", "0x10", "1e3", "١", "1_000", "9" * 19],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a number of bytes, or one with K, M, G or T"):
        parse_size(text)


@examples(40)
@given(st.integers(0, 1 << 50))
def test_a_size_survives_formatting(size: int) -> None:
    assert parse_size(format_size_exactly(size)) == size


def test_the_largest_suffix_is_used_that_keeps_a_size_exact() -> None:
    assert [format_size_exactly(size) for size in (0, 1023, 1 << 20, (1 << 20) + 1024)] == ["0", "1023", "1M", "1025K"]
