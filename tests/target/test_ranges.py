"""`Ranges`, compared with a set of integers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peerstage.target import Ranges
from support.examples import examples


@examples(40)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=30), st.integers(0, 80))
def test_ranges_are_a_set_of_bytes(added: list[tuple[int, int]], size: int) -> None:
    ranges, model = Ranges(), set[int]()
    for start, length in added:
        new = set(range(start, start + length)) - model
        assert ranges.add(start, start + length) == len(new)
        model |= new
        missing = list(ranges.missing(size))
        assert {byte for low, high in missing for byte in range(low, high)} == set(range(size)) - model
        assert missing == sorted(missing)
        assert all(low < high <= size for low, high in missing)
        assert ranges.covers(size) == (model == set(range(size)))
        top = max(model, default=-1) + 1
        assert ranges.covers(top) == (model == set(range(top)))


@examples(40)
@given(st.permutations(range(12)))
def test_adjacent_ranges_merge_in_any_order(order: list[int]) -> None:
    ranges = Ranges()
    assert [ranges.add(number * 10, number * 10 + 10) for number in order] == [10] * 12
    assert ranges.covers(120)
    assert list(ranges.missing(125)) == [(120, 125)]
    assert ranges.add(0, 120) == 0
