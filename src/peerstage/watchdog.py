"""The watchdog: enforces the time limits of everything that waits for a peer.

paramiko's own timeouts are not enough: some apply to a single read, some return without an error. Instead, everything
that could block forever registers a callback that closes it, and one thread calls these callbacks when a limit of
`Limits` is exceeded or the run is cancelled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

from peerstage.errors import Cancelled, LimitExceeded, StageError
from peerstage.peer_log import PeerLog
from peerstage.rates import BandwidthLimit, MinRateCheck, Throttle
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.system_errors import start_thread

#: The field of `Limits` that bounds a phase.
_PHASE_LIMITS = {Reason.LOGIN_TIMEOUT: "login_timeout", Reason.REPLY_TIMEOUT: "reply_timeout"}
_PHASE_ADVICE = {
    Reason.CONNECT_TIMEOUT: "Check that it is up, and that no firewall drops packets to it.",
    Reason.BANNER_TIMEOUT: "Check that an SSH server listens on this port.",
    Reason.LOGIN_TIMEOUT: "See the log of its sshd: DNS lookups (UseDNS), PAM and LDAP can delay a login.",
    Reason.REPLY_TIMEOUT: "See its load, and the log of its sshd.",
}
#: Longest wait between two wake-ups, so that signal handlers run.
_MAX_INTERVAL = 0.5


class _Phase(NamedTuple):
    ends_at: float
    seconds: float
    what: str
    reason: Reason


class Watchdog:
    """Enforces the time limits of one run of operations, across reconnects.

    There are four kinds of limit: a *phase* (connect, login), a *stall* (nothing useful arrived while waiting for the
    peer; time spent on the local disk does not count), the minimum *rate*, and the *deadline* of the whole operation.
    Another connection may help against the first two; the others are final.

    It also enforces the bandwidth limit, across reconnects as well, because no time limit counts the waits for that.

    All methods are thread-safe; `cancel` is meant to be called from another thread.

    Args:
        limits: The limits.
        peer: The peer's name, for the log.
        bandwidth: The bandwidth limit, which other runs may share; None for none.
        clock: Returns monotonic seconds.

    Attributes:
        limits: The limits; with a bandwidth limit below `Limits.min_rate`, that is lowered to it.
        bandwidth: The bandwidth limit, if there is one.
        failure: The limit that was exceeded, or the cancellation; None so far. Interrupted calls raise this instead of
            their own error.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        peer: str = "",
        bandwidth: BandwidthLimit | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if bandwidth is not None and bandwidth.rate < limits.min_rate:
            limits = dataclasses.replace(limits, min_rate=bandwidth.rate)
        self.limits = limits
        self.bandwidth = bandwidth
        self.failure: StageError | None = None
        self._log = PeerLog("peerstage.ssh", peer)
        self._clock = clock
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._callbacks: list[Callable[[], None]] = []
        self._phase: _Phase | None = None
        self._started: float | None = None
        self._min_rate_check = MinRateCheck(limits)
        # Bytes received, for the rate. Of these, replies other than content: over this connection, and the maximum over
        # any earlier one.
        self._received = 0
        self._answered = 0
        self._answered_before = 0
        self._copied = 0  # on this machine
        self._count_kept: Callable[[], int] = lambda: 0
        self._command_deadline: float | None = None
        self._waited = 0.0
        self._waiting_since: float | None = None
        self._waited_at_progress = 0.0
        self._throttle = Throttle(bandwidth, clock)
        self._throttled_before = 0.0  # the current operation

    # Limits.

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Enforce the deadline in the block; a nested operation shares the deadline of the outer one."""
        if self._started is not None:
            yield
            return
        self._start_thread()
        self._received = self._answered = self._answered_before = self._copied = 0
        self._throttled_before = self._throttle.seconds
        self._min_rate_check = MinRateCheck(self.limits, self.seconds_waited)
        self._started = self._clock()
        try:
            yield
        finally:
            self._started = None
            self._count_kept = lambda: 0

    @contextlib.contextmanager
    def command_deadline(self, seconds: float) -> Iterator[None]:
        """Allow the operation *seconds* in all, and no limit on silence: a remote command may work without output."""
        self._command_deadline = seconds
        try:
            yield
        finally:
            self._command_deadline = None
            self.reset_stall()

    @contextlib.contextmanager
    def phase(
        self, what: str, seconds: float, reason: Reason = Reason.REPLY_TIMEOUT, *, since: float | None = None
    ) -> Iterator[None]:
        """Allow the block *seconds*; a nested phase ends with the outer one at the latest.

        Args:
            what: Completes "the peer did not ... within".
            seconds: The limit.
            reason: The reason of the error if it is exceeded.
            since: The start, by the watchdog's clock; by default now.
        """
        self._start_thread()
        outer = self._phase
        start = self._clock() if since is None else since
        inner = _Phase(start + seconds, seconds, what, reason)
        self._phase = inner if outer is None else min(inner, outer)
        try:
            yield
        finally:
            self._phase = outer

    # Callbacks.

    @contextlib.contextmanager
    def on_failure(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call *callback* if a limit is exceeded or the run is cancelled in the block. See `add_callback`."""
        self.add_callback(callback)
        try:
            yield
        finally:
            self.remove_callback(callback)

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Register *callback*, which closes what would otherwise block, and call it at once if there is a failure.

        The watchdog's thread or the cancelling one calls it. It must not block, and may be called more than once.
        """
        self._callbacks.append(callback)
        if self.failure is not None:
            callback()

    def remove_callback(self, callback: Callable[[], None]) -> None:
        """Remove *callback*, if it is registered."""
        with contextlib.suppress(ValueError):
            self._callbacks.remove(callback)

    # Progress.

    def begin_wait(self) -> None:
        """Start to count the time spent waiting for the peer."""
        self._waiting_since = self._clock()

    def end_wait(self) -> None:
        """Stop counting the time spent waiting for the peer."""
        since, self._waiting_since = self._waiting_since, None
        if since is not None:
            self._waited += self._clock() - since

    @property
    def seconds_waited(self) -> float:
        """Seconds spent waiting for the peer so far."""
        since = self._waiting_since
        return self._waited + (self._clock() - since if since is not None else 0.0)

    def reset_stall(self) -> None:
        """Restart `Limits.stall_timeout`, because something useful arrived."""
        self._waited_at_progress = self._waited

    def count_received(self, size: int, *, is_content: bool = False) -> None:
        """Count *size* useful bytes for the rate, and reset the stall.

        Bytes other than file content extend the deadline, too; content does only if it is kept, see
        `extend_deadline_by`.
        """
        self.reset_stall()
        self._received += size
        if not is_content:
            self._answered += size

    def count_copied(self, size: int) -> None:
        """Extend the deadline of the operation by *size* bytes that were copied on this machine.

        Raises:
            StageError: `failure`, if it is final.
        """
        self._copied += size
        self.raise_if_final()

    def extend_deadline_by(self, count_kept: Callable[[], int]) -> None:
        """Extend the deadline of the operation by the bytes that *count_kept* returns, a high-water mark."""
        self._count_kept = count_kept

    def raise_if_failed(self) -> None:
        """Raise `failure`, if there is one."""
        if self.failure is not None:
            raise self.failure

    def raise_if_final(self) -> None:
        """Raise `failure` if it is final: another connection would not help."""
        if self._is_final():
            self.raise_if_failed()

    def reset(self) -> None:
        """Prepare for another connection; raise if the failure is final: the rate, the deadline, or a cancellation.

        Answers over the new connection, such as the listing, repeat earlier ones: they extend the deadline only as far
        as they exceed those over any single earlier connection.
        """
        self.raise_if_final()
        self._answered_before, self._answered = max(self._answered_before, self._answered), 0
        self.failure = None
        self.reset_stall()

    def sleep(self, seconds: float) -> None:
        """Sleep; raise a final failure, or any new one, as soon as there is one."""
        before = self.failure
        until = self._clock() + seconds
        with self._lock:
            while (remaining := until - self._clock()) > 0 and self.failure is before and not self._is_final():
                self._lock.wait(min(remaining, _MAX_INTERVAL))
        if self.failure is not before:
            self.raise_if_failed()
        self.raise_if_final()

    def throttle(self, size: int) -> None:
        """Wait as long as the bandwidth limit requires after *size* bytes were received; raise as `sleep` does.

        No other limit counts this time. The output of a command is not throttled: its deadline has no exceptions.
        """
        if self._command_deadline is None:
            self._throttle.take(size, self.sleep)

    def throttled(self) -> AbstractContextManager[object]:
        """Return a context manager that counts the time of its block as time that the bandwidth limit takes."""
        return self._throttle.waiting()

    def max_throttled(self, received: int) -> float:
        """Return the seconds that `throttle` may add to the deadline of an operation that received *received* bytes.

        These are bytes that extend the deadline, see `count_received`. The time for any others counts: a peer could
        prolong a run for ever by sending what is discarded.
        """
        return self._throttle.seconds_for(received)

    def _is_final(self) -> bool:
        return self.failure is not None and not self.failure.transient

    # The end.

    def cancel(self) -> None:
        """Interrupt whatever is in progress; it raises `Cancelled`, as does everything later on this watchdog."""
        self._fail(Cancelled("Cancelled."))

    def close(self) -> None:
        """Stop the thread. May be called again."""
        with self._lock:
            self._is_closed = True
            self._lock.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)

    def _fail(self, failure: StageError) -> None:
        """Call the callbacks, and set *failure* if there is none, or if it is final and the present one is not."""
        with self._lock:
            if self._outranks(failure):
                self.failure = failure
            callbacks = list(self._callbacks)
            self._lock.notify_all()
        for callback in callbacks:
            try:
                callback()
            except Exception:
                self._log.debug("The callback %r failed.", callback, exc_info=True)

    def _outranks(self, failure: StageError) -> bool:
        return self.failure is None or (self.failure.transient and not failure.transient)

    def _start_thread(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="peerstage-watchdog", daemon=True)
            start_thread(thread)
            self._thread = thread

    def _run(self) -> None:
        limits = self.limits
        shortest = min(limits.login_timeout, limits.reply_timeout, limits.stall_timeout, limits.deadline or 600.0)
        interval = max(0.01, min(_MAX_INTERVAL, shortest / 4))
        while True:
            with self._lock:
                if not self._is_closed:
                    self._lock.wait(interval)
                if self._is_closed:
                    return
            failure = self._exceeded_limit()
            if failure is not None and self._outranks(failure):
                self._fail(failure)

    def _exceeded_limit(self) -> StageError | None:
        """Return the error for a limit that is exceeded now; None if none is."""
        now = self._clock()
        started, phase, seconds = self._started, self._phase, self._command_deadline  # other threads change them
        failure = None if started is None else self._exceeded_final_limit(now - started, seconds)
        if failure is not None:
            return failure
        if phase is not None and now > phase.ends_at:
            message = f"The peer did not {phase.what} within {phase.seconds:.3g} s. {_PHASE_ADVICE[phase.reason]}"
            limit = _PHASE_LIMITS.get(phase.reason, "")
            return LimitExceeded(message, transient=True, reason=phase.reason, limit=limit)
        stall_timeout = self.limits.stall_timeout
        is_waiting = seconds is None and self._waiting_since is not None
        if is_waiting and self.seconds_waited - self._waited_at_progress > stall_timeout:
            message = f"The peer made no progress for {stall_timeout:g} s (Limits.stall_timeout)."
            return LimitExceeded(message, transient=True, reason=Reason.STALLED, limit="stall_timeout")
        return None

    def _exceeded_final_limit(self, elapsed: float, command_deadline: float | None) -> StageError | None:
        if command_deadline is not None:
            if elapsed <= command_deadline:
                return None
            message = f"The command did not end within {command_deadline:g} s (Limits.deadline)."
            return LimitExceeded(message, reason=Reason.DEADLINE_PASSED, limit="deadline")
        received = self._count_kept() + max(self._answered_before, self._answered) + self._copied
        deadline = self.limits.deadline_for(received)
        throttled = min(self._throttle.seconds - self._throttled_before, self.max_throttled(received))
        if elapsed - throttled > deadline:
            besides = f", besides {throttled:.0f} s for the bandwidth limit" if throttled else ""
            return LimitExceeded(
                f"The operation did not complete within {deadline:g} s{besides} (Limits.deadline, min_rate). The peer "
                "or the network is too slow, or the limit too low.",
                reason=Reason.DEADLINE_PASSED,
                limit="deadline",
            )
        if self._min_rate_check.is_too_slow(self._received, self.seconds_waited):
            return LimitExceeded(
                f"The peer sends fewer than {self.limits.min_rate} bytes a second (Limits.min_rate). Check the "
                "network, or lower the limit.",
                reason=Reason.TOO_SLOW,
                limit="min_rate",
            )
        return None
