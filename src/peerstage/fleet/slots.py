"""Slots: how many peers are staged at a time, without those that do not answer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from peerstage.fleet.schedule import Clock

#: Seconds after which a peer that has not answered lends its slot.
LEND_AFTER = 3.0
#: Peers that may have lent their slots, as a multiple of the slots, and in all: each costs threads, and perhaps a child
#: process.
_LENT_PER_SLOT = 2
_MAX_LENT = 32
#: Longest wait between two looks at whether the run is cancelled.
_INTERVAL = 0.2


class Slots:
    """The slots of a run: a peer takes one when it is asked, and keeps it until it has its result.

    A peer that has not answered after `LEND_AFTER` seconds lends its slot to another, so that it delays no other.
    If it answers after all, it waits for a slot, before any peer that was not asked yet.

    Args:
        count: The number of slots.
        clock: The clock.
        may_lend: Whether peers lend their slots. They must not where `wait_for` is not called, because slots would be
            lent for good; nor where peers share a bounded number of threads, because those that wait for slots could
            keep those that hold them from being run.

    Attributes:
        count: The number of slots. It may be lowered.
    """

    def __init__(self, count: int, clock: Clock, *, may_lend: bool = True) -> None:
        self.count = count
        self._clock = clock
        self._may_lend = may_lend
        self._changed = threading.Condition()
        self._asked: dict[str, float] = {}  # when, for each that holds a slot and has not answered
        self._answered: set[str] = set()
        self._lent: set[str] = set()
        self._waiting: deque[str] = deque()

    def take(self, peer: str) -> bool:
        """Take a slot for *peer*, which is to be asked; return False if none is free."""
        with self._changed:
            if self._may_lend:
                self._lend_overdue()
            if not self._is_free(len(self._waiting)):
                return False
            self._asked[peer] = self._clock.monotonic()
            return True

    def wait_for(self, peer: str, raise_if_cancelled: Callable[[], object]) -> None:
        """Keep the slot of *peer*, which has answered; if it has lent it, wait for another.

        Args:
            peer: The peer.
            raise_if_cancelled: Called again and again during the wait; an exception that it raises ends it.
        """
        with self._changed:
            if self._asked.pop(peer, None) is None:
                self._lent.discard(peer)
                self._waiting.append(peer)
                try:
                    while self._waiting[0] != peer or not self._is_free():
                        raise_if_cancelled()
                        self._changed.wait(_INTERVAL)
                finally:
                    self._waiting.remove(peer)
                    self._changed.notify_all()
            self._answered.add(peer)

    def release(self, peer: str) -> None:
        """Free the slot of *peer*, if it has one."""
        with self._changed:
            self._asked.pop(peer, None)
            self._answered.discard(peer)
            self._lent.discard(peer)
            self._changed.notify_all()

    def _is_free(self, reserved: int = 0) -> bool:
        return len(self._asked) + len(self._answered) + reserved < self.count

    def _lend_overdue(self) -> None:
        overdue = self._clock.monotonic() - LEND_AFTER
        for peer in [peer for peer, since in self._asked.items() if since <= overdue]:
            if len(self._lent) >= min(_LENT_PER_SLOT * self.count, _MAX_LENT):
                return
            del self._asked[peer]
            self._lent.add(peer)
