"""A bandwidth limit that several peers share: the sum stays at the limit, and each gets what is due to it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerstage import rates
from peerstage.rates import BandwidthLimit, Throttle
from peerstage.records import KIB, MIB, Limits
from peerstage.watchdog import Watchdog
from support.children import run_in_fork
from support.clock import Clock
from support.simulated_time import SimulatedTime

SECONDS = 20.0


class Receiver:
    """A peer's thread that receives chunks for `SECONDS`.

    Args:
        limit: The shared limit.
        time: The clock.
        chunk: Bytes in each chunk.
        pause: Seconds that the peer takes for each.
        start: When it begins.

    Attributes:
        received: Bytes in all.
    """

    def __init__(
        self, limit: BandwidthLimit, time: SimulatedTime, chunk: int, *, pause: float = 0.0, start: float = 0.0
    ) -> None:
        self._throttle = Throttle(limit, time)
        self._time = time
        self._chunk = chunk
        self._pause = pause
        self._start = start
        self.received = 0

    def run(self) -> None:
        self._time.sleep(self._start)
        while self._time.now < SECONDS:
            if self._pause:
                self._time.sleep(self._pause)
            self.received += self._chunk
            self._throttle.take(self._chunk, self._time.sleep)


def receive_together(
    rate: int, add_receivers: Callable[[BandwidthLimit, SimulatedTime], list[Receiver]]
) -> list[float]:
    """Return the bytes per second that each has received."""
    time = SimulatedTime()
    receivers = add_receivers(BandwidthLimit(rate, time), time)
    time.run([receiver.run for receiver in receivers])
    return [receiver.received / SECONDS for receiver in receivers]


@pytest.mark.parametrize("rate", [100 * KIB, 2_000_000, 100_000_000])
@pytest.mark.parametrize(
    "chunks",
    [
        [32 * KIB] * 8,
        [KIB, 4 * KIB, 16 * KIB, 32 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, MIB],
        [MIB, KIB],
        [32 * KIB] * 32,
    ],
    ids=["eight alike", "eight that differ", "a large and a small one", "32"],
)
def test_peers_that_want_more_get_equal_shares_whatever_the_size_of_their_chunks(rate: int, chunks: list[int]) -> None:
    shares = receive_together(rate, lambda limit, time: [Receiver(limit, time, chunk) for chunk in chunks])
    portion = max(KIB, rate // 50)
    assert sum(shares) * SECONDS <= rate * (SECONDS + 0.1) + sum(chunks) + portion * len(chunks)
    assert sum(shares) >= rate * 0.98
    for share in shares:
        assert share == pytest.approx(rate / len(chunks), rel=0.15, abs=(max(chunks) + portion) / SECONDS)


def test_one_that_is_alone_gets_all_of_it() -> None:
    rate = 2_000_000

    def add(limit: BandwidthLimit, time: SimulatedTime) -> list[Receiver]:
        for _ in range(7):  # they have ended
            Throttle(limit, time).take(32 * KIB, lambda seconds: None)
        return [Receiver(limit, time, 32 * KIB)]

    (share,) = receive_together(rate, add)
    assert share == pytest.approx(rate, rel=0.02)


def test_what_slow_peers_leave_goes_to_the_fast_ones() -> None:
    rate = 2_000_000

    def add(limit: BandwidthLimit, time: SimulatedTime) -> list[Receiver]:
        slow = [Receiver(limit, time, 10 * KIB, pause=0.1) for _ in range(6)]
        return [*slow, Receiver(limit, time, 32 * KIB), Receiver(limit, time, MIB)]

    *slow, small, large = receive_together(rate, add)
    for share in slow:
        assert share == pytest.approx(100 * KIB, rel=0.25), "it is hardly held up"
    assert sum(slow) + small + large == pytest.approx(rate, rel=0.05)
    assert small == pytest.approx(large, rel=0.1)


def test_one_that_comes_later_has_its_share_at_once() -> None:
    rate = 1_000_000

    def add(limit: BandwidthLimit, time: SimulatedTime) -> list[Receiver]:
        return [Receiver(limit, time, MIB), Receiver(limit, time, 32 * KIB, start=SECONDS / 2)]

    first, second = receive_together(rate, add)
    assert first == pytest.approx(rate * 0.75, rel=0.1)
    assert second == pytest.approx(rate * 0.25, rel=0.1)


@settings(max_examples=20, deadline=None)
@given(
    peers=st.lists(
        st.tuples(st.integers(4000, 200_000), st.sampled_from([0.0, 0.0, 0.01, 0.5])), min_size=1, max_size=6
    ),
)
def test_whoever_shares_it_the_sum_stays_at_the_limit_and_nobody_starves(peers: list[tuple[int, float]]) -> None:
    rate = 500_000
    shares = receive_together(
        rate, lambda limit, time: [Receiver(limit, time, chunk, pause=pause) for chunk, pause in peers]
    )
    assert sum(shares) <= rate * 1.02 + sum(chunk + rate // 50 for chunk, _ in peers) / SECONDS
    for share, (chunk, pause) in zip(shares, peers, strict=True):
        portion = rate // 50
        rounds = chunk / portion + 1  # in each of which every peer has a portion
        assert share + chunk / SECONDS >= 0.95 * chunk / (pause + rounds * len(peers) * portion / rate)


def test_no_update_by_two_threads_is_lost() -> None:
    rate, takes, threads = 1000, 5000, 8
    limit = BandwidthLimit(rate, Clock())
    ready = threading.Barrier(threads)

    def take() -> None:
        ready.wait(30)
        for _ in range(takes):
            limit.take(2000)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=take) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    size, delay = limit.take(2000)
    assert delay == pytest.approx((takes * threads + 1) * size / rate - 0.1, abs=0.2)


def test_a_fork_while_another_thread_takes_leaves_the_child_a_limit() -> None:
    limit = BandwidthLimit(1000, Clock())

    def take_in_child() -> None:
        assert limit.take(2000)[0] > 0

    with rates._lock:
        run_in_fork(take_in_child)


@pytest.mark.parametrize("rate", [0, -1, 1.5, True, "20M", None])
def test_a_rate_is_a_whole_number_above_0(rate: object) -> None:
    with pytest.raises(ValueError, match="A bandwidth limit must be an integer above 0"):
        BandwidthLimit(rate)  # type: ignore[arg-type]


# What may be in flight


def test_peers_that_compete_have_less_in_flight() -> None:
    limit = BandwidthLimit(4_000_000, Clock())
    alone = limit.fair_in_flight(0.05)
    assert alone == limit.max_in_flight(0.05) == 1_000_000
    for _ in range(3):  # each waits for a portion
        limit.take(MIB)
    assert limit.fair_in_flight(0.05) == alone // 4


# Limits of time


def test_time_spent_waiting_for_others_counts_for_no_limit() -> None:
    time, rate = SimulatedTime(), 100_000
    limit = BandwidthLimit(rate, time)

    class Run(Watchdog):
        """Receives a MiB for its share of the rate, and checks its limits whenever it wakes up."""

        def __init__(self) -> None:
            super().__init__(Limits(deadline=5, stall_timeout=1, min_rate=50_000), bandwidth=limit, clock=time)
            self.kept = 0
            self.extend_deadline_by(lambda: self.kept)
            self._started = 0.0

        def sleep(self, seconds: float) -> None:
            time.sleep(seconds)
            assert self._exceeded_limit() is None

        def receive(self) -> None:
            for _ in range(32):
                self.throttle(32 * KIB)
                self.count_received(32 * KIB, is_content=True)
                self.kept += 32 * KIB
                assert self._exceeded_limit() is None

    time.run([Run().receive for _ in range(4)])
    assert time.now == pytest.approx(4 * MIB / rate, rel=0.05)


def test_time_spent_waiting_counts_for_what_is_discarded() -> None:
    time, rate = SimulatedTime(), 100_000
    limit = BandwidthLimit(rate, time)
    ended: list[float] = []

    class Run(Watchdog):
        """Receives what it discards, until it is given up."""

        def sleep(self, seconds: float) -> None:
            time.sleep(seconds)

        def receive(self) -> None:
            self._started = 0.0
            while self._exceeded_limit() is None:
                self.throttle(32 * KIB)
                self.count_received(32 * KIB, is_content=True)
            ended.append(time.now)

    time.run([Run(Limits(deadline=20), bandwidth=limit, clock=time).receive for _ in range(4)])
    assert max(ended) < 25
