"""Slots: how many peers are staged at a time, and what becomes of the slot of one that does not answer."""

from __future__ import annotations

import threading

import pytest

from peerstage.errors import Cancelled
from peerstage.fleet.slots import LEND_AFTER, Slots
from support.fleet import FrozenClock
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
    assert taken == 4 * 5


def test_slots_that_were_taken_away_are_not_given_again() -> None:
    slots = Slots(3, FrozenClock())
    slots.take("a")
    slots.take("b")
    slots.count = 2
    assert not slots.take("c")
    slots.release("a")
    assert slots.take("c")
