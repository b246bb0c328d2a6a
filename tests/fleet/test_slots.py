"""Slots: how many peers are staged at a time, and what becomes of the slot of one that does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from peerstage.errors import Cancelled
from peerstage.fleet.slots import LEND_AFTER, Slots
from peerstage.testing import memory_job
from support.fleet import READY, FrozenClock, run
from support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def never() -> None:
    """The run is not cancelled."""


def answer(slots: Slots, peer: str) -> threading.Thread:
    """Let *peer* answer, in a thread, which ends when the peer has a slot."""
    thread = threading.Thread(target=slots.wait_for, args=(peer, never))
    thread.start()
    return thread


def test_only_so_many_peers_have_a_slot() -> None:
    slots = Slots(2, FrozenClock())
    assert [slots.take(peer) for peer in "abc"] == [True, True, False]
    slots.release("a")
    assert slots.take("c")


def test_a_peer_that_has_answered_keeps_its_slot_however_long_it_takes() -> None:
    clock = FrozenClock()
    slots = Slots(1, clock)
    slots.take("a")
    slots.wait_for("a", never)
    clock.advance(1000)
    assert not slots.take("b")


def test_a_peer_that_does_not_answer_lends_its_slot() -> None:
    clock = FrozenClock()
    slots = Slots(1, clock)
    slots.take("dead")
    clock.advance(LEND_AFTER - 0.1)
    assert not slots.take("b")
    clock.advance(0.1)
    assert slots.take("b")
    slots.release("dead")
    assert not slots.take("c"), "the slot was lent only once"


def test_a_late_peer_waits_for_a_slot_and_comes_before_those_that_were_not_asked() -> None:
    clock = FrozenClock()
    slots = Slots(1, clock)
    slots.take("late")
    clock.advance(LEND_AFTER)
    slots.take("b")
    slots.wait_for("b", never)
    waiting = answer(slots, "late")
    wait_until(lambda: slots._waiting)
    assert waiting.is_alive()
    assert not slots.take("c")
    slots.release("b")
    waiting.join()
    assert not slots.take("c")
    slots.release("late")
    assert slots.take("c")


def test_a_slot_that_is_free_is_kept_for_a_late_peer_that_waits() -> None:
    """Its thread may take a moment to notice that another peer has released the slot."""
    slots = Slots(1, FrozenClock())
    slots._waiting.append("late")
    assert not slots.take("b")


def test_late_peers_get_slots_in_the_order_of_their_answers() -> None:
    clock = FrozenClock()
    slots = Slots(1, clock)
    for peer in ("late1", "late2", "b"):
        assert slots.take(peer)
        clock.advance(LEND_AFTER if peer != "b" else 0)
    slots.wait_for("b", never)
    second = answer(slots, "late2")
    wait_until(lambda: len(slots._waiting) == 1)
    first = answer(slots, "late1")
    wait_until(lambda: len(slots._waiting) == 2)
    slots.release("b")
    second.join()
    assert first.is_alive()
    slots.release("late2")
    first.join()


def test_a_wait_for_a_slot_ends_if_the_run_is_cancelled() -> None:
    clock = FrozenClock()
    slots = Slots(1, clock)
    slots.take("late")
    clock.advance(LEND_AFTER)
    slots.take("b")

    def cancelled() -> None:
        raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        slots.wait_for("late", cancelled)
    slots.release("b")
    assert slots.take("c"), "nobody waits any more"


def test_not_all_peers_of_a_dead_network_are_dialled_at_once() -> None:
    clock = FrozenClock()
    slots = Slots(4, clock)
    taken = 0
    while slots.take(f"dead{taken}"):
        taken += 1
        clock.advance(LEND_AFTER)
    assert taken == 4 * 3


def test_slots_that_were_taken_away_are_not_given_again() -> None:
    slots = Slots(3, FrozenClock())
    slots.take("a")
    slots.take("b")
    slots.count = 2
    assert not slots.take("c")
    slots.release("a")
    assert slots.take("c")


class _SlowThreads(ThreadPoolExecutor):
    """Threads that begin with each peer a minute after they could, on the run's clock."""

    def __init__(self) -> None:
        super().__init__(1)
        self.most = 0
        self._waiting: list[Callable[[], object]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        self._waiting.append(lambda: done.set_result(fn(*args, **kwargs)))
        self.most = max(self.most, len(self._waiting))
        return done

    def run_one(self) -> None:
        if self._waiting:
            self._waiting.pop(0)()


class _SlowWorkers(Executor):
    """The same, for an executor that does not consist of threads of the run's process."""

    def __init__(self) -> None:
        self.threads = _SlowThreads()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.threads.submit(fn, *args, **kwargs)


class _MinuteClock(FrozenClock):
    """A clock on which the executor runs one peer a minute."""

    def __init__(self, threads: _SlowThreads) -> None:
        super().__init__()
        self._threads = threads
        self._next = self.monotonic() + 60

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        if self.monotonic() >= self._next:
            self._next = self.monotonic() + 60
            self._threads.run_one()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("is_of_threads", [True, False], ids=["threads", "other workers"])
def test_an_executor_is_given_no_more_peers_than_the_plan_allows_at_a_time(pool: Path, is_of_threads: bool) -> None:
    workers = _SlowWorkers()
    executor = workers.threads if is_of_threads else workers
    jobs = [memory_job(f"db{number}", READY) for number in range(6)]
    report = run(pool, *jobs, parallel=2, executor=executor, clock=_MinuteClock(workers.threads))
    assert report.counts == {"staged": 6}
    assert workers.threads.most == 2
