"""`Coordinator`: has every peer of a run asked, until each has its result."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from peerstage.errors import Cancelled, StageError, format_log_line
from peerstage.fleet.results import PeerResult, Verdict
from peerstage.fleet.run_peer import PeerWork
from peerstage.fleet.schedule import Clock, Schedule
from peerstage.fleet.slots import Slots
from peerstage.fleet.verdicts import result_of_error, result_of_not_started
from peerstage.fleet.workers import Inbox, WorkerMessage, Workers
from peerstage.reasons import Reason

log = logging.getLogger("peerstage.fleet")

#: Longest wait for a message: a signal that arrives just before an unbounded wait would not interrupt it.
_INTERVAL = 0.5
#: Seconds between two looks for workers that were lost.
_POLL_INTERVAL = 1.0
#: Seconds that peers have to end once the run is cancelled, and between two attempts to cancel them.
_SECONDS_TO_END = 10.0
_CANCEL_INTERVAL = 0.2


@dataclass
class _Asked:
    """A peer that has been asked, and has no result."""

    attempts: int = 0
    started: float = 0.0
    started_at: float = 0.0
    has_begun: bool = False
    is_running: bool = False
    not_ready: PeerResult | None = None


class Coordinator:
    """Asks the peers of a run, several at a time. Every peer gets exactly one result, whatever happens.

    Args:
        works: The work for each peer, in the plan's order.
        workers: Who does it.
        inbox: What they tell.
        schedule: When peers are asked.
        slots: How many at a time.
        clock: The clock.
        cancelled: Set, from any thread, to cancel the run; put None into *inbox* after that.
        on_started: Called with the name of a peer when a worker begins with it, and the number of the attempt.
        on_waiting: Called with the result of a peer that is not ready, and will be asked again.
        on_result: Called with each result.
        on_assign: Called with the name of a peer just before a worker is given its work.
    """

    def __init__(
        self,
        works: Mapping[str, PeerWork],
        workers: Workers,
        inbox: Inbox,
        schedule: Schedule,
        slots: Slots,
        clock: Clock,
        *,
        on_assign: Callable[[str], object],
        on_started: Callable[[str, int], object],
        on_waiting: Callable[[PeerResult], object],
        on_result: Callable[[PeerResult], object],
        cancelled: threading.Event,
    ) -> None:
        self._works = works
        self._workers = workers
        self._inbox = inbox
        self._schedule = schedule
        self._slots = slots
        self._clock = clock
        self._on_assign = on_assign
        self._on_started = on_started
        self._on_waiting = on_waiting
        self._on_result = on_result
        self._open = {name: _Asked() for name in works}
        self._next_poll = 0.0
        self._cancelled = cancelled

    def run(self) -> None:
        """Ask every peer, and return when each has its result.

        An exception of a callback, and KeyboardInterrupt, cancel the run; they are raised once each peer has a result.
        """
        try:
            while self._open and not self._cancelled.is_set():
                self._start_due()
                if self._open:
                    self._handle_next(self._seconds_to_wait())
        finally:
            if self._open:
                self._end_early()

    def _start_due(self) -> None:
        while (name := self._schedule.next_due()) is not None and self._slots.take(name):
            self._schedule.pop()
            state = self._open[name]
            state.attempts += 1
            state.is_running, state.has_begun = True, False
            if state.attempts == 1:
                state.started, state.started_at = self._clock.time(), self._clock.monotonic()
            try:
                self._on_assign(name)
                self._workers.start(self._works[name])
            except Exception as exc:
                self._handle_failed_start(name, exc)

    def _handle_failed_start(self, name: str, error: Exception) -> None:
        """Try again, with fewer peers at a time, if the system refuses a thread; else give the peer its result."""
        self._slots.release(name)
        state = self._open[name]
        state.is_running = False
        running = sum(other.is_running for other in self._open.values())
        if isinstance(error, StageError) and error.reason is Reason.OUT_OF_THREADS and running:
            log.warning("%s From now on, %d peers at a time are staged.", format_log_line(error), running)
            state.attempts -= 1
            self._slots.count = running
            self._schedule.put_back(name)
        elif isinstance(error, StageError) and error.reason is Reason.WORKER_LOST:
            self._finish(result_of_not_started(name, error.reason, error.message))
        else:
            self._finish(result_of_error(self._works[name].job, error))

    def _seconds_to_wait(self) -> float:
        if self._schedule.next_due() is not None:  # but there is no slot
            return _INTERVAL
        return min(_INTERVAL, self._schedule.seconds_to_next() or _INTERVAL)

    def _handle_next(self, seconds: float) -> None:
        """Handle the next message, for which to wait *seconds* at most, and look for workers that were lost."""
        message = self._clock.wait(self._inbox, seconds)
        if message is not None:
            self._handle(message)
        if self._clock.monotonic() >= self._next_poll:
            self._next_poll = self._clock.monotonic() + _POLL_INTERVAL
            for found in self._workers.poll():
                self._handle(found)

    def _handle(self, message: WorkerMessage) -> None:
        state = self._open.get(message.peer)
        if state is None or not state.is_running:
            return  # of a worker that was given up
        outcome = message.outcome
        if not state.has_begun and (outcome is None or outcome.verdict is not Verdict.NOT_STARTED):
            state.has_begun = True
            self._on_started(message.peer, state.attempts)
        if outcome is None:
            return
        state.is_running = False
        self._slots.release(message.peer)
        self._workers.forget(message.peer)
        may_wait = outcome.verdict is Verdict.NOT_READY and not self._cancelled.is_set()
        if may_wait and self._schedule.ask_again(message.peer):
            state.not_ready = outcome
            self._on_waiting(outcome)
        else:
            self._finish(outcome)

    def _finish(self, result: PeerResult) -> None:
        state = self._open.pop(result.peer)
        self._slots.release(result.peer)
        attempts = state.attempts if state.has_begun else state.attempts - 1
        if attempts > 0:
            seconds = self._clock.monotonic() - state.started_at
            result = dataclasses.replace(result, attempts=attempts, started=state.started, seconds=seconds)
        self._on_result(result)

    def _end_early(self) -> None:
        """Give every peer that has none its result: cancel those that are running; the others are not started."""
        self._cancelled.set()
        for name in self._schedule.drain():
            self._finish(self._open[name].not_ready or _not_started(name))
        until = self._clock.monotonic() + _SECONDS_TO_END
        next_cancel = 0.0
        while self._open and self._clock.monotonic() < until:
            if self._clock.monotonic() >= next_cancel:
                next_cancel = self._clock.monotonic() + _CANCEL_INTERVAL
                for name in self._workers.cancel():
                    self._handle(WorkerMessage(name, _not_started(name)))
            self._handle_next(_CANCEL_INTERVAL)
        for name in list(self._open):
            if not self._open[name].has_begun:
                self._finish(_not_started(name))
                continue
            text = f"The run was cancelled, and this peer did not end within {_SECONDS_TO_END:g} s. It was given up."
            self._finish(result_of_error(self._works[name].job, Cancelled(text)))


def _not_started(name: str) -> PeerResult:
    return result_of_not_started(name, Reason.CANCELLED, "The run was cancelled before.")
