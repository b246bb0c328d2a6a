"""Retries: of a connection that was lost, to continue where the work stopped, and of one that could not be made."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from peerstage.documented import Documented
from peerstage.errors import ConnectError, LimitExceeded, RemoteError, StageError, log_line
from peerstage.landing.base import Buffer, Landing
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.records import Capabilities
from peerstage.session.watchdog import Watchdog
from peerstage.transport.base import Transport
from peerstage.transport.counting import CountingLanding
from peerstage.transport.wrapper import T, Wrapper

#: Why a first connection fails to a peer that is booting, or over a network that comes up.
_MAY_PASS = frozenset(
    {Reason.RESOLVER_TIMEOUT, Reason.CONNECTION_REFUSED, Reason.CONNECT_TIMEOUT, Reason.HOST_UNREACHABLE}
    | {Reason.CLOSED_BEFORE_BANNER, Reason.BANNER_TIMEOUT, Reason.KEY_EXCHANGE_TIMEOUT}
    | {Reason.HOP_CANNOT_CONNECT, Reason.PROXY_COMMAND_FAILED}
)
#: What helps when the last attempt has failed: at the first connection, and after a login.
_NOT_REACHED = "If it takes longer to boot, raise Retry(connect=...) or --connect-retries."
_LOST = (
    "Check the network and the log of the peer's sshd, then run this again; Retry(tries=...) or --retries allows more."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(metaclass=Documented):
    """How often and how patiently connections are retried: the first one, and one that was lost after a login.

    The deadline of an operation holds for all its attempts together, and `cancel` ends them at once.

    Attributes:
        tries: Attempts at one operation after a login, the first included; 1 is no retry of a lost connection. They
            count from the beginning again after an attempt that made progress: more of the files is there than ever
            before.
        connect: Attempts to connect, the first included, for peers that may be booting; 1, the default, is no retry.
            A connection that is refused, times out, finds no route, or is closed before the server has named itself
            is retried, likewise through a jump host or a ProxyCommand, and so is a name that cannot be resolved at the
            moment. A host key, a login or a configuration that is refused never is. ConnectionAttempts of
            ssh_config(5) counts within each.
        delay: Seconds before the second attempt.
        factor: What the delay is multiplied by from one attempt to the next.
        most: Seconds that a delay is at most.
    """

    tries: int = 3
    connect: int = 1
    delay: float = 1.0
    factor: float = 2.0
    most: float = 30.0

    def __post_init__(self) -> None:
        for name in ("tries", "connect"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Retry: {name} must be 1 or more, not {value!r}.")
        for name in ("delay", "factor", "most"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"Retry: {name} must be a finite number, not {value!r}.")

    def pause(self, attempt: int) -> float:
        """Seconds to wait after *attempt* (1 is the first) has failed."""
        try:
            return min(self.most, self.delay * float(self.factor) ** (attempt - 1))
        except OverflowError:  # the factor's power, as a float
            return self.most if self.delay else 0.0


class Retrying(Wrapper):
    """Opens a transport when it is first needed, and another one when a transient error has ended that.

    The deadline of an operation holds for all attempts together: once it has passed, or the run is cancelled, nothing
    is tried again. It moves only with bytes that are kept, so that a peer cannot prolong a run by sending little and
    closing the connection.

    Args:
        open_transport: Connects, and returns a transport.
        capabilities: Those of the transports that it returns, as far as that is known before one is open.
        retry: How often.
        watchdog: Bounds each operation.
        peer: The peer's name, for the log.
    """

    def __init__(
        self,
        open_transport: Callable[[], Transport],
        capabilities: Capabilities,
        retry: Retry,
        watchdog: Watchdog,
        *,
        peer: str = "",
    ) -> None:
        self._log = PeerLog("peerstage.transport", peer)
        self._expected = capabilities
        self._open_transport = open_transport
        self._retry = retry
        self._watchdog = watchdog
        self._transport: Transport | None = None

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self._expected if self._transport is None else self._transport.capabilities

    def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def pull(self, directory: bytes, landing: Landing) -> None:
        """See `Transport.pull`."""
        counting = CountingLanding(landing)

        def kept() -> int:
            return counting.high_water

        with self._watchdog.operation():
            self._watchdog.count_kept(kept)
            self._attempt(lambda transport: transport.pull(directory, counting), progress=kept)

    def execute(self, command: bytes, said: Callable[[Buffer], object]) -> int | None:
        """See `Transport.execute`: one attempt, whatever the retry says, once there is a connection."""
        return self._attempt(lambda transport: transport.execute(command, said), tries=1)

    def _attempt(
        self, operation: Callable[[Transport], T], tries: int | None = None, progress: Callable[[], int] = lambda: 0
    ) -> T:
        with self._watchdog.operation():
            attempt, before, made, started = 1, progress(), 0, time.monotonic()
            while True:
                was_logged_in = self._is_logged_in
                made += 1
                try:
                    self._watchdog.check_final()
                    return operation(self._connected())
                except RemoteError:  # an answer: the connection is as good as before
                    raise
                except StageError as exc:
                    self.close()
                    self._watchdog.check_final()
                    if (now := progress()) > before or (self._is_logged_in and not was_logged_in):
                        attempt, before = 1, now
                    attempts = (tries or self._retry.tries) if self._is_logged_in else self._retry.connect
                    if not (exc.transient if self._is_logged_in else exc.reason in _MAY_PASS):
                        raise
                    if attempt >= attempts:
                        if made > 1 or (self._is_logged_in and tries is None):
                            advice = _LOST if self._is_logged_in else _NOT_REACHED
                            exc.message = f"{exc.message} {_count(made, started)} {advice}"
                        raise
                    pause = self._retry.pause(attempt)
                    self._log.warning("%s Attempt %d of %d in %g s.", log_line(exc), attempt + 1, attempts, pause)
                    self._sleep(pause, exc, made, started)
                    attempt += 1
                    if self._is_logged_in:
                        self.retries += 1
                except BaseException:
                    self.close()
                    raise

    @property
    def _is_logged_in(self) -> bool:
        """Whether there has been a login."""
        return self.host_key is not None

    def _sleep(self, seconds: float, reason: StageError, made: int, started: float) -> None:
        """Wait before the next attempt; if the deadline passes, say what all the attempts have failed with."""
        try:
            self._watchdog.sleep(seconds)
        except LimitExceeded as exc:
            exc.message = f"{reason.message} {_count(made, started)} {exc.message}"
            raise

    def _connected(self) -> Transport:
        if self._transport is None:
            self._watchdog.renew()  # a limit that the last connection passed must not end what precedes the next one
            try:
                self._transport = self._open_transport()
            except StageError as exc:
                if self._is_logged_in and isinstance(exc, ConnectError):  # the peer may just be coming back
                    exc.transient = True
                raise
            self.host_key = self._transport.host_key
        return self._transport


def _count(made: int, started: float) -> str:
    return f"{made} attempt{'s' if made > 1 else ''} in {time.monotonic() - started:.0f} s."
