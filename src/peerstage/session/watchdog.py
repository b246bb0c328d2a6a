"""The watchdog: one clock for everything that waits for a peer.

paramiko's own timeouts are not relied on (some are per read, some return silently). Instead everything that could wait
for ever registers a way to end it, and one thread ends it when a bound of `Limits` has passed or `cancel` was called.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from peerstage.errors import Cancelled, LimitExceeded, StageError
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.system_errors import start_thread

#: The field of `Limits` that bounds a phase.
_PHASE_LIMITS = {Reason.LOGIN_TIMEOUT: "login_timeout", Reason.REPLY_TIMEOUT: "reply_timeout"}
_PHASE_ADVICE = {
    Reason.CONNECT_TIMEOUT: "Check that it is up, and that no firewall drops packets to it.",
    Reason.BANNER_TIMEOUT: "Check that an SSH server listens on this port.",
    Reason.LOGIN_TIMEOUT: "See the log of its sshd: look-ups of names (UseDNS), PAM and LDAP can delay a login.",
    Reason.REPLY_TIMEOUT: "See its load, and the log of its sshd.",
}


class Pace:
    """Whether bytes come at `Limits.min_rate`, in every stretch of an operation (a token bucket of time).

    Each byte buys the time that it takes at that rate; never more than `Limits.grace` is held in advance.
    """

    def __init__(self, limits: Limits) -> None:
        self._grace = limits.grace
        self._per_byte = 1 / limits.min_rate
        self._received = 0
        self._until = self._grace

    def restart(self, now: float) -> None:
        """Grant the whole grace from *now* on, in seconds of waiting."""
        self._received = 0
        self._until = now + self._grace

    def is_too_slow(self, received: int, now: float) -> bool:
        """Return whether the time that *received* bytes have bought is used up *now*. To be asked again and again."""
        bought = (received - self._received) * self._per_byte
        self._received = received
        self._until = min(now + self._grace, self._until + bought)
        return now > self._until


class Watchdog:
    """Ends what takes too long. One for each run of operations on a peer; it outlives a lost connection.

    Four kinds of bound are in force: a *phase* (connect, login), a *stall* (nothing useful came while the peer was
    waited for; time spent on the local disk does not count), the lowest *rate*, and the *deadline* of the operation as
    a whole. Another connection may help against the first two; the others are final.

    Args:
        limits: The bounds.
        peer: The peer's name, for the log.
        clock: Returns seconds that only grow.

    Attributes:
        failure: Why things were ended, or None. What is interrupted raises this rather than what it felt.
        waited: Seconds spent waiting for the peer, ever.

    Safe to use from several threads; `cancel` is meant to be.
    """

    def __init__(self, limits: Limits, *, peer: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._log = PeerLog("peerstage.session", peer)
        self.failure: StageError | None = None
        self._clock = clock
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._endings: list[Callable[[], None]] = []
        self._phase: tuple[float, float, str, Reason] | None = None
        self._started: float | None = None
        self._pace = Pace(limits)
        self._received = 0
        self._answered = 0
        self._answered_before = 0
        self._kept: Callable[[], int] = _nothing
        self._patience: float | None = None
        self._waited = 0.0
        self._waiting_since: float | None = None
        self._waited_at_beat = 0.0

    # What is bounded.

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Put the deadline in force for what is done inside; an operation inside another shares its deadline."""
        if self._started is not None:
            yield
            return
        self._start_thread()
        self._received = self._answered = self._answered_before = 0
        self._pace.restart(self.waited)
        self._started = self._clock()
        try:
            yield
        finally:
            self._started = None
            self._kept = _nothing

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Give the operation *seconds* in all, and let the peer be silent: a command may work without a word."""
        self._patience = seconds
        try:
            yield
        finally:
            self._patience = None
            self.beat()

    @contextlib.contextmanager
    def phase(
        self, what: str, seconds: float, reason: Reason = Reason.REPLY_TIMEOUT, *, since: float | None = None
    ) -> Iterator[None]:
        """Bound what is done inside to *seconds*.

        They count from *since* (by the watchdog's clock), or from now. A phase inside another ends with that one at the
        latest.

        Args:
            what: Completes "the peer did not ... within".
            seconds: How long it may take.
            reason: The reason of the error when it takes longer.
            since: When it began.
        """
        self._start_thread()
        outer = self._phase
        inner = ((self._clock() if since is None else since) + seconds, seconds, what, reason)
        self._phase = inner if outer is None else min(inner, outer)
        try:
            yield
        finally:
            self._phase = outer

    @contextlib.contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Call *end*, from the watchdog's thread, if something must be ended while the block is running."""
        self.attach(end)
        try:
            yield
        finally:
            self.detach(end)

    def attach(self, end: Callable[[], None]) -> None:
        """Register *end*, which closes what would otherwise wait. It must not wait itself, and may be called twice."""
        self._endings.append(end)
        if self.failure is not None:
            end()

    def detach(self, end: Callable[[], None]) -> None:
        """Take *end* off again."""
        with contextlib.suppress(ValueError):
            self._endings.remove(end)

    # What happens meanwhile.

    def begin_wait(self) -> None:
        """Say that the peer is being waited for from now on."""
        self._waiting_since = self._clock()

    def end_wait(self) -> None:
        """Say that the wait is over, whatever came of it."""
        since, self._waiting_since = self._waiting_since, None
        if since is not None:
            self._waited += self._clock() - since

    @property
    def waited(self) -> float:
        """Seconds spent waiting for the peer so far."""
        since = self._waiting_since
        return self._waited + (self._clock() - since if since is not None else 0.0)

    def beat(self) -> None:
        """Say that something useful came: the stall is measured from here."""
        self._waited_at_beat = self._waited

    def received(self, size: int, *, content: bool = False) -> None:
        """Say that *size* useful bytes came.

        They count for the rate, and towards the deadline unless they are *content* of files: of that only what is
        kept counts, see `count_kept`.
        """
        self._waited_at_beat = self._waited
        self._received += size
        if not content:
            self._answered += size

    def count_kept(self, kept: Callable[[], int]) -> None:
        """Let the deadline of the operation move with *kept*, which returns the most bytes of files there ever were."""
        self._kept = kept

    def check(self) -> None:
        """Raise what has ended the run, if anything has."""
        if self.failure is not None:
            raise self.failure

    def renew(self) -> None:
        """Make ready for another connection. Raises what ends the run for good: rate, deadline and cancel.

        What the peer answers over the new one, such as the listing, it has answered before: it moves the deadline only
        by what is more than over any connection before.
        """
        self.check_final()
        self._answered_before, self._answered = max(self._answered_before, self._answered), 0
        self.failure = None
        self.beat()

    def check_final(self) -> None:
        """Raise the failure that another connection would not mend, if there is one."""
        if self.failure is not None and self._is_over():
            raise self.failure

    def sleep(self, seconds: float) -> None:
        """Wait *seconds*, or until something ends the run meanwhile, and raise that."""
        before = self.failure
        until = self._clock() + seconds
        with self._lock:
            while (left := until - self._clock()) > 0 and self.failure is before and not self._is_over():
                self._lock.wait(min(left, 0.5))  # signals are heeded in between
        if self.failure is not before:
            self.check()
        self.check_final()

    def _is_over(self) -> bool:
        """Return whether another connection would not help."""
        return self.failure is not None and not self.failure.transient

    # What ends it.

    def cancel(self) -> None:
        """End whatever is under way; it raises `Cancelled`. Lasts for the life of this watchdog."""
        self._end(Cancelled("Cancelled."))

    def close(self) -> None:
        """End the thread. Closing again is allowed."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)

    def _end(self, failure: StageError) -> None:
        with self._lock:
            if self.failure is None or (self.failure.transient and not failure.transient):
                self.failure = failure
            endings = list(self._endings)
            self._lock.notify_all()
        for end in endings:
            try:
                end()
            except Exception:
                self._log.debug("Ending %r failed.", end, exc_info=True)

    def _start_thread(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="peerstage-watchdog", daemon=True)
            start_thread(thread)
            self._thread = thread

    def _run(self) -> None:
        limits = self.limits
        bounds = (limits.login_timeout, limits.reply_timeout, limits.stall_timeout, limits.deadline or 600.0)
        interval = max(0.01, min(0.5, min(bounds) / 4))
        while True:
            with self._lock:
                if self._closed:
                    return
                self._lock.wait(interval)
                if self._closed:
                    return
            failure = self._overdue()
            if failure is not None and (self.failure is None or (self.failure.transient and not failure.transient)):
                self._end(failure)

    def _overdue(self) -> StageError | None:
        now = self._clock()
        started, phase, limits, patience = self._started, self._phase, self.limits, self._patience
        if started is not None and patience is not None and now - started > patience:
            return LimitExceeded(
                f"The command did not end within {patience:g} s (Limits.deadline).",
                reason=Reason.DEADLINE_PASSED,
                limit="deadline",
            )
        if patience is None and started is not None and now - started > (allowed := self._allowed()):
            return LimitExceeded(
                f"Not done within {allowed:g} s (Limits.deadline, min_rate). The peer or the network is too slow, "
                "or the limit too low.",
                reason=Reason.DEADLINE_PASSED,
                limit="deadline",
            )
        if patience is None and started is not None and self._pace.is_too_slow(self._received, self.waited):
            return LimitExceeded(
                f"The peer sends fewer than {limits.min_rate} bytes a second (Limits.min_rate). Check the network, or "
                "lower the limit.",
                reason=Reason.TOO_SLOW,
                limit="min_rate",
            )
        if phase is not None and now > phase[0]:
            _, seconds, what, reason = phase
            return LimitExceeded(
                f"The peer did not {what} within {seconds:.3g} s. {_PHASE_ADVICE[reason]}",
                transient=True,
                reason=reason,
                limit=_PHASE_LIMITS.get(reason, ""),
            )
        if (
            patience is None
            and self._waiting_since is not None
            and self.waited - self._waited_at_beat > limits.stall_timeout
        ):
            return LimitExceeded(
                f"The peer sent nothing useful for {limits.stall_timeout:g} s (Limits.stall_timeout).",
                transient=True,
                reason=Reason.STALLED,
                limit="stall_timeout",
            )
        return None

    def _allowed(self) -> float:
        """Return the deadline, in seconds from the beginning of the operation."""
        return self.limits.seconds_for(self._kept() + max(self._answered_before, self._answered))


def _nothing() -> int:
    """Return how many bytes are kept where nobody counts them."""
    return 0
