"""The bandwidth limit: accurate over ten seconds, smooth over one, whatever the sizes of the chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.rates import BandwidthLimit, Throttle
from support.clock import Clock
from support.examples import examples

KIB = 1024


def receive(rate: int, sizes: list[int], pauses: list[float]) -> list[tuple[float, int]]:
    """Receive chunks after pauses, and wait as the limit demands; return when each arrived, and its size."""
    clock = Clock()
    throttle = Throttle(BandwidthLimit(rate, clock), clock)
    arrived = []
    for size, pause in zip(sizes, pauses, strict=True):
        clock.now += pause
        arrived.append((clock.now, size))
        throttle.take(size, clock.sleep)
    return [*arrived, (clock.now, 0)]


def max_bytes_within(seconds: float, arrived: list[tuple[float, int]]) -> int:
    """Return the most bytes that arrived within any *seconds*."""
    return max(sum(size for at, size in arrived if start <= at < start + seconds) for start, _ in arrived)


@pytest.mark.parametrize("rate", [KIB, 100_000, 2_000_000, 20_000_000, 10**9])
@pytest.mark.parametrize("share", [1e-5, 1e-3, 0.1])
def test_a_fast_peer_is_received_at_the_limit(rate: int, share: float) -> None:
    size = max(1, int(rate * share))
    count = 20 * rate // size
    if count > 100_000:
        count = 100_000
    arrived = receive(rate, [size] * count, [0.0] * count)
    assert arrived[-1][0] * rate == pytest.approx(size * count, rel=0.01)


@examples(30)
@given(
    chunks=st.lists(st.tuples(st.integers(1, 25_000), st.sampled_from([0.0, 0.0, 0.01, 0.3, 5.0])), max_size=400),
)
def test_whatever_arrives_no_interval_exceeds_the_limit_by_more_than_the_peer_sends_ahead(
    chunks: list[tuple[int, float]],
) -> None:
    rate = 100_000
    arrived = receive(rate, [size for size, _ in chunks], [pause for _, pause in chunks])
    ahead = 0.1 * rate + 25_000 + 0.01 * rate
    for seconds in (1.0, 10.0):
        assert max_bytes_within(seconds, arrived) <= rate * seconds + ahead


def test_a_slow_peer_is_never_held_up() -> None:
    throttle = Throttle(BandwidthLimit(1000, clock := Clock()), clock)
    for second in range(1, 100):
        clock.now = second
        throttle.take(100, clock.sleep)
        assert clock.now == second


def test_a_pause_is_not_made_up_for() -> None:
    throttle = Throttle(BandwidthLimit(1000, clock := Clock()), clock)
    clock.now = 3600.0
    throttle.take(1100, clock.sleep)
    assert clock.now == pytest.approx(3601.0)


@pytest.mark.parametrize("rate", [KIB, 50 * KIB, 2_000_000, 10**9])
@pytest.mark.parametrize("round_trip", [0.0, 0.05, 0.3, 5.0])
def test_what_is_in_flight_fills_the_line_and_takes_a_second_at_most(rate: int, round_trip: float) -> None:
    in_flight = BandwidthLimit(rate).max_in_flight(round_trip)
    assert in_flight <= rate
    assert in_flight >= rate * min(1.0, 1.5 * round_trip)
    if rate > 1_000_000 and round_trip < 0.1:
        assert in_flight == rate // 4, "a burst of a quarter of a second"
